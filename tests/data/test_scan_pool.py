"""Files scanned by several processes: the same results, in order, and errors where they belong."""

from pathlib import Path

import numpy as np
import pytest
from shard_files import pair, write

from otter_jax.data.scan_pool import scan_in_order
from otter_jax.data.tar_shards import scan_shard


@pytest.mark.parametrize("processes", [None, 1, 2, 3])
def test_processes_change_nothing(tmp_path: Path, processes: int | None) -> None:
    paths = [str(write(tmp_path / f"{n}.tar", pair(f"k{n}"), pair("x"))) for n in range(5)]
    scans = list(scan_in_order(scan_shard, paths, processes))
    assert [scan.keys for scan in scans] == [[f"k{n}".encode(), b"x"] for n in range(5)]
    for scan, path in zip(scans, paths, strict=True):
        np.testing.assert_array_equal(scan.rows, scan_shard(path).rows)


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_are_raised_here(tmp_path: Path, processes: int) -> None:
    paths = [str(write(tmp_path / f"{n}.tar", pair("x"))) for n in range(3)]
    Path(paths[1]).write_bytes(b"\x1f\x8b nonsense")
    with pytest.raises(ValueError, match=r"1\.tar: not an uncompressed tar"):
        list(scan_in_order(scan_shard, paths, processes))


def test_small_files_are_not_worth_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(write(tmp_path / f"{n}.tar", pair("x"))) for n in range(2)]
    monkeypatch.setattr("subprocess.Popen", None)
    assert len(list(scan_in_order(scan_shard, paths))) == 2


def test_a_process_that_dies_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(write(tmp_path / f"{n}.tar", pair("x"))) for n in range(2)]
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(OSError, match=r"0\.tar: the process at work on it died \(1\)"):
        list(scan_in_order(scan_shard, paths, 2))
