"""Conversion for TFDS: the same pairs, the same bytes however often it was interrupted."""

import hashlib
import json
import mmap
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_shard

from otter_jax.commands import prepare
from otter_jax.data import shard_index
from otter_jax.data.sources import open_source

tfds = pytest.importorskip("tensorflow_datasets")
SHARD = "pairs-train.array_record-{:05d}-of-00005"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, shape_pairs: list) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    write_shard(folder / "0.tar", [*shape_pairs[:20], (b"", "an empty image")])
    write_shard(folder / "1.tar", shape_pairs[20:])
    return f"webdataset:{folder}"


def convert(spec: str, folder: Path, *options: str, workers: int = 1) -> None:
    prepare.main([f"--from={spec}", f"--to={folder}", "--records_per_shard=10",
                  f"--workers={workers}", *options])  # fmt: skip


@pytest.fixture(scope="module")
def whole(pairs: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "pairs"
    convert(pairs, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_come_back(pairs: str, whole: Path) -> None:
    before, after = open_source(pairs), open_source(f"tfds:{whole}")
    assert len(after) == len(before) == 48
    for i in range(48):
        assert after[i].image == before[i].image
        assert after[i].captions == before[i].captions
    builder = tfds.builder_from_directory(whole)
    decoded = builder.as_data_source(split="train[30:]")[0]
    assert decoded["image"].shape == (48, 48, 3) and decoded["key"].decode() == before[30].key
    assert json.loads(decoded["metadata"]) == before[30].metadata


@pytest.mark.parametrize("spec", ["tfds:{}", "tfds:./{}", "tfds:{}/", "tfds:./{}:train"])
def test_a_folder_may_be_named_from_where_one_is(
    whole: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole.parent)
    found, expected = open_source(spec.format(whole.name)), open_source(f"tfds:{whole}")
    assert found.fingerprint == expected.fingerprint
    assert found[0] == expected[0]


def test_the_spec_that_is_said_can_be_pasted(
    tmp_path: Path,
    shape_pairs: list,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(Path("my pairs.tar"), shape_pairs[:3])
    prepare.main(["--from=webdataset:my pairs.tar", "--to=my data", "--workers=1"])
    (said,) = re.findall(r"to train on them: (.+)", capsys.readouterr().out)
    (flag,) = shlex.split(said)
    monkeypatch.chdir("/")
    assert len(open_source(flag.removeprefix("--config.data.train="))) == 3
    with pytest.raises(SystemExit, match="--to=a:b: a SPEC cannot name it"):
        prepare.main(["--from=webdataset:x.tar", "--to=a:b"])


def test_manifest(pairs: str, whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["pairs"] == 48 and manifest["skipped"] == {"no image": 1}
    assert manifest["fingerprint"] == open_source(pairs).fingerprint
    assert [note["records"] for note in manifest["shards"].values()] == [10, 10, 10, 10, 8]
    for name, note in manifest["shards"].items():
        assert hashlib.sha256((whole / name).read_bytes()).hexdigest() == note["sha256"]
    assert manifest["skipped_files"] == {}
    assert set(contents(whole)) == {
        "manifest.json", "dataset_info.json", "features.json", *map(SHARD.format, range(5)),
    }  # fmt: skip


def test_several_processes_write_the_same_bytes(pairs: str, whole: Path, tmp_path: Path) -> None:
    convert(pairs, tmp_path / "pairs", workers=2)
    assert contents(tmp_path / "pairs") == contents(whole)


def test_a_killed_conversion_goes_on(
    pairs: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pairs"
    slow = (
        "import time; from otter_jax.commands import prepare; original = prepare._explained\n"
        "def slowly(*arguments): time.sleep(0.05); original(*arguments)\n"
        f"prepare._explained = slowly; prepare.main(['--from={pairs}', '--to={folder}', "
        "'--records_per_shard=10', '--workers=1'])"
    )
    process = subprocess.Popen([sys.executable, "-c", slow])
    while not (folder / SHARD.format(1)).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / SHARD.format(4)).exists() and not (folder / "manifest.json").exists()
    with pytest.raises(FileNotFoundError, match=r"unfinished; run otter-jax prepare --to="):
        open_source(f"tfds:{folder}")
    first = (folder / SHARD.format(0)).stat().st_mtime_ns
    convert(pairs, folder)
    assert contents(folder) == contents(whole)
    assert (folder / SHARD.format(0)).stat().st_mtime_ns == first


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_conversion_says_one_line_and_goes_on(
    whole: Path, tmp_path: Path, shape_pairs: list, number: signal.Signals
) -> None:
    folder = tmp_path / "pairs"
    pairs = [pair for pair in shape_pairs for _ in range(300)]  # Enough to be stopped in.
    write_shard(tmp_path / "0.tar", pairs)
    command = ["-m", "otter_jax.commands.prepare", f"--from=webdataset:{tmp_path / '0.tar'}",
               f"--to={folder}", "--records_per_shard=1200", "--workers=2"]  # fmt: skip
    together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, *command], **together, start_new_session=True)
    while not list(folder.glob(".unfinished/*.partial")):
        assert process.poll() is None
        time.sleep(0.001)
    os.killpg(process.pid, number)  # All of them, as a terminal and SLURM do.
    said, _ = process.communicate()
    assert process.returncode == 128 + number
    assert said.split("\n")[-2] == "otter_jax: stopped; the same command goes on"
    assert "Traceback" not in said
    assert not list(folder.glob(".unfinished/*.partial"))
    prepare.main(command[2:])
    assert len(open_source(f"tfds:{folder}")) == 14400


def test_what_is_damaged_or_gone_is_written_again_and_nothing_else(
    pairs: str, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pairs"
    shutil.copytree(whole, folder)
    damaged = bytearray((folder / SHARD.format(2)).read_bytes())
    damaged[100] ^= 1
    (folder / SHARD.format(2)).write_bytes(damaged)
    (folder / SHARD.format(4)).unlink()
    times = {name: (folder / name).stat().st_mtime_ns for name in map(SHARD.format, (0, 1, 3))}
    convert(pairs, folder)
    assert contents(folder) == contents(whole)
    assert times == {name: (folder / name).stat().st_mtime_ns for name in times}


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, shape_pairs: list) -> None:
    large = (np.random.default_rng(0).bytes(1_000_000), "too large for the third shard")
    write_shard(tmp_path / "0.tar", [*shape_pairs[:25], large])
    spec, folder = f"webdataset:{tmp_path / '0.tar'}", tmp_path / "pairs"
    arguments = [f"--from={spec}", f"--to={folder}", "--records_per_shard=10", "--workers=1"]
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000)); "
        f"from otter_jax.commands import prepare; prepare.main({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"otter_jax: --to={folder} cannot be written: ")
    assert line.endswith("File too large; finished shards are kept")
    finished = folder / "pairs-train.array_record-00001-of-00003"
    kept = finished.stat().st_mtime_ns
    prepare.main(arguments)
    assert len(open_source(f"tfds:{folder}")) == 26
    assert finished.stat().st_mtime_ns == kept


def test_records_that_turn_out_unusable_are_counted(tmp_path: Path, shape_pairs: list) -> None:
    rows = []
    for number, (image, caption) in enumerate(shape_pairs[:20]):
        (tmp_path / f"{number}.png").write_bytes(image)
        rows.append(f"{number}.png,{caption}\n")
    (tmp_path / "pairs.csv").write_text("image,caption\n" + "".join(rows))
    source = open_source(f"csv:{tmp_path / 'pairs.csv'}")
    for number in range(10, 20):
        (tmp_path / f"{number}.png").unlink()
    job = prepare.Job(source, tmp_path / "out", "pairs", records_per_shard=10)
    with prepare.claimed_folder(job.folder):
        prepare.begin(job)
        for shard in job.shards:
            prepare.write_shard(job, shard)
        manifest = prepare.finish(job)
    assert manifest["pairs"] == 10 and manifest["skipped"] == {"missing image": 10}
    prepared = open_source(f"tfds:{tmp_path / 'out'}")  # Its second shard is empty.
    assert [prepared[i].image for i in range(len(prepared))] == [x for x, _ in shape_pairs[:10]]


def test_workers_share_one_index_that_cannot_lie_beside_the_shards(
    whole: Path, tmp_path: Path, shape_pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "0.tar", shape_pairs)
    (tmp_path / ".otter_jax").write_text("no folder can be made here")
    monkeypatch.setattr(shard_index, "_WORTH_KEEPING", 0)
    scan, sent = prepare.scan_in_order, []

    def note(write: object, shards: list[str], processes: int) -> object:
        (description,) = write.args
        job = pickle.loads(description.read_bytes())
        sent.append((len(pickle.dumps(write)), job.source._index._data))
        return scan(write, shards, processes=processes)

    monkeypatch.setattr(prepare, "scan_in_order", note)
    convert(f"webdataset:{tmp_path / '0.tar'}", tmp_path / "pairs", workers=2)
    ((size, index),) = sent
    assert size < 1000 and isinstance(index, mmap.mmap)
    assert set(contents(tmp_path / "pairs")) == set(contents(whole))


def test_two_at_a_time_are_refused(pairs: str, tmp_path: Path) -> None:
    command = (f"--from={pairs}", f"--to={tmp_path / 'pairs'}")
    with prepare.claimed_folder(tmp_path / "pairs"):
        said = refusal(*command)
        assert f"{tmp_path / 'pairs'} is in use by process {os.getpid()} of" in said
        assert (tmp_path / "pairs" / prepare.LOCK).is_file()
    assert not (tmp_path / "pairs").exists()


def refusal(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        prepare.main(arguments)
    return str(stopped.value)


def test_what_is_refused(pairs: str, whole: Path, tmp_path: Path) -> None:
    before = contents(whole)
    to_whole = (f"--from={pairs}", f"--to={whole}")
    assert "holds another data set (records_per_shard: 10, now 9)" in refusal(
        *to_whole, "--records_per_shard=9"
    )
    said = refusal("--from=open_clipart", to_whole[1], "--records_per_shard=10")
    assert f"(spec: {pairs}, now open_clipart/train): choose a new folder" in said
    assert contents(whole) == before
    (tmp_path / "file").write_text("mine")
    assert "is a file; name a new folder" in refusal(to_whole[0], f"--to={tmp_path / 'file'}")
    assert "is not empty; name a new folder" in refusal(to_whole[0], f"--to={tmp_path}")
    assert "cannot be written: Not a directory" in refusal(
        to_whole[0], f"--to={tmp_path / 'file' / 'x'}"
    )
    assert "--workers=0; it must be at least 1" in refusal(*to_whole, "--workers=0")
    assert "--name=My Set: use a-z, 0-9 and _" in refusal(*to_whole, "--name=My Set")
    assert "there is no recipe 'coco'; choose from conceptual_captions" in refusal(
        *to_whole, "--recipe=coco"
    )
    assert "unknown data source 'nothing'" in refusal("--from=nothing", to_whole[1])
    assert contents(whole) == before
    refusal("--from=nothing", f"--to={tmp_path / 'new' / 'pairs'}")
    said = refusal("--from=nothing", f"--to={tmp_path / 'new'}", "--keep=nowhere.txt")
    assert said == "otter_jax: --keep: there is no file nowhere.txt"
    assert not (tmp_path / "new").exists()


def test_beam_writes_the_same_bytes(pairs: str, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("apache_beam")
    convert(pairs, tmp_path / "pairs", "--beam=--runner=FnApiRunner")
    assert contents(tmp_path / "pairs") == contents(whole)


def test_beam_that_is_missing(pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert "apache_beam is needed (apache_beam is missing)" in refusal(
        f"--from={pairs}", f"--to={tmp_path / 'x'}", "--beam"
    )
    assert not (tmp_path / "x").exists()
