"""The program from its command line to its files."""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_shard
from ml_collections import ConfigDict
from PIL import Image
from pyarrow import parquet

from otter_jax import sharding
from otter_jax.commands import inspect
from otter_jax.embedding.encoder import build_module, make_encoder
from otter_jax.models import dual_encoder


@pytest.fixture(scope="module")
def out(pairs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected") / "out"
    inspect.main([f"--data=webdataset:{pairs_folder}", f"--out={folder}"])
    return folder


@pytest.fixture
def tiny_model(tiny_config: Callable[..., ConfigDict], tmp_path: Path) -> Path:
    config = tiny_config()
    model, variables = dual_encoder.split(build_module(config))
    mesh = sharding.make_mesh()
    make_encoder(config, model, sharding.put_state(mesh, variables), mesh).save(tmp_path / "model")
    return tmp_path / "model"


def test_what_is_found(out: Path) -> None:
    found = json.loads((out / "inspect.json").read_text())
    assert found["pairs"] == found["inspected"] == found["readable"] == 48
    for name in ("skipped", "skipped_files", "unreadable", "unreadable_by_reason"):
        assert found[name] == {}
    assert found["formats"] == {"PNG RGB": 48}
    assert found["width"]["median"] == found["height"]["max"] == 48
    assert found["words"]["max"] == 3
    assert found["copies of captions"]["count"] == 0


@pytest.mark.parametrize("several", [False, True])
def test_several_sources_and_the_names_of_what_is_bad(
    several: bool, shape_pairs: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_shard(tmp_path / "a.tar", [*shape_pairs[:2], (b"broken", "a red bar")])
    write_shard(tmp_path / "b.tar", shape_pairs[2:6])
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[: 2 * 3 * 1024])
    specs = [f"webdataset:{tmp_path}/{name}.tar" for name in "ab"]
    asked = [f"--data={spec}" for spec in specs] if several else [f"--data={tuple(specs)}"]
    inspect.main([*asked, f"--out={tmp_path / 'out'}"])
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert found["data"] == ", ".join(specs) and found["pairs"] == 5
    assert list(found["unreadable"]) == ["0:00002 (record 2)"]
    assert found["unreadable_by_reason"] == {"not an image": 1}
    assert list(found["skipped_files"]) == [f"{tmp_path}/b.tar"]
    said = capsys.readouterr().out
    assert f"truncated, download again: {tmp_path}/b.tar; about 1 pairs are lost of 6" in said
    assert "0:00002" not in said


def test_pictures(out: Path) -> None:
    for name in ("histograms.png", "samples.png"):
        with Image.open(out / name) as picture:
            picture.load()
            assert min(picture.size) > 200
            assert len(set(picture.convert("L").histogram())) > 10  # Not a blank sheet.


def test_a_part_is_drawn_by_the_seed(
    pairs_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = [f"--data=webdataset:{pairs_folder}", "--limit=7"]
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        inspect.main([*command, f"--seed={seed}", f"--out={tmp_path / name}"])
    assert "inspected           7\n" in capsys.readouterr().out
    sheets = [(tmp_path / name / "samples.png").read_bytes() for name in "abc"]
    assert sheets[0] == sheets[1] != sheets[2]


def test_match_probability_of_a_model(pairs_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = [f"--data=webdataset:{pairs_folder}", f"--model={tiny_model}", "--batch_size=16"]
    inspect.main([*command, f"--out={tmp_path}"])
    found = json.loads((tmp_path / "inspect.json").read_text())["match probability"]
    assert found["batches"] == 3 and 1 <= found["scale"] <= 100
    assert found["on_diagonal"] + 15 * found["off_diagonal"] == pytest.approx(1.0)
    assert found["off_diagonal"] <= found["off_diagonal_max"] <= 1


def test_trust_of_every_pair(pairs_folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = [f"--data=webdataset:{pairs_folder}", f"--model={tiny_model}", "--batch_size=16"]
    inspect.main([*command, "--trust", f"--out={tmp_path}"])
    share = json.loads((tmp_path / "inspect.json").read_text())["wrong pairs"]["estimated share"]
    table = parquet.read_table(tmp_path / "trust.parquet").to_pydict()
    assert table["record"] == list(range(48))
    assert table["key"][:2] == ["00000", "00001"]
    assert np.mean(table["trust"]) == pytest.approx(1 - share, abs=0.2)
    kept = [k for k, trust in zip(table["key"], table["trust"], strict=True) if trust >= 0.5]
    assert (tmp_path / "keep.txt").read_text().splitlines() == kept
    for name in ("trust.png", "least_trusted.png", "most_trusted.png"):
        with Image.open(tmp_path / name) as picture:
            picture.load()
            assert len(set(picture.convert("L").histogram())) > 10  # Not a blank sheet.
    sheets = [(tmp_path / f"{name}_trusted.png").read_bytes() for name in ("least", "most")]
    assert sheets[0] != sheets[1]
    # Nothing is left of the features.
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path != tiny_model]


def test_trust_is_said_without_files(
    pairs_folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture
) -> None:
    command = [f"--data=webdataset:{pairs_folder}", f"--model={tiny_model}", "--trust"]
    inspect.main([*command, "--limit=40"])
    assert "wrong pairs         estimated share " in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"at least 31 different pairs.*found 12$"):
        inspect.main([*command, "--limit=12"])
    assert "captions as they are" not in capsys.readouterr().out  # Before anything is read.


def test_the_table_is_csv_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    table = tmp_path / inspect.trust_files()[0]
    columns = {"record": np.arange(2), "key": ["a", "b,c"], "trust": np.float32([0.5, 1])}
    inspect.write_table(table, columns)
    assert table.name == "trust.csv"
    assert table.read_text() == 'record,key,trust\n0,a,0.5\n1,"b,c",1.0\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=nonsense"], "nonsense"),
        (["--data=webdataset:/no/such/place.tar"], "/no/such/place.tar"),
        (["--data=open_clipart", "--limit=0"], "--limit=0"),
        (["--data=open_clipart", "--batch_size=1"], "--batch_size=1"),
        (["--data=nonsense", f"--out={__file__}"], f"--out={__file__}: {__file__} is a file"),
        (["--data=nonsense", f"--out={__file__}/new"], f"/new: {__file__} is a file; name another"),
        (["--data=(open_clipart"], 'write \'("SPEC","SPEC")\''),
        (["--data=open_clipart", "--model=/no/such/model"], "/no/such/model"),
    ],
)
def test_wrong_input_ends_in_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as end:
        inspect.main(arguments)
    assert str(end.value).startswith("otter_jax: ")
    assert message in str(end.value) and "\n" not in str(end.value)


def test_captions_are_shown_and_what_looks_wrong_is_said(
    tmp_path: Path, shape_pairs: list, capsys: pytest.CaptureFixture
) -> None:
    wrong = [(image, f"IMG_{n:04d}.jpg") for n, (image, _) in enumerate(shape_pairs[:20])]
    write_shard(tmp_path / "0.tar", wrong)
    found = inspect.inspect(inspect.parse([f"--data=webdataset:{tmp_path}/0.tar"]))
    said = capsys.readouterr().out
    assert "100% of the captions are names of files or addresses: 'IMG_0000.jpg'" in said
    assert said.count("\n  'IMG_00") == len(found["captions"]) == 10
    assert len(found["looks wrong"]) == 1


def test_names_of_folders_as_captions_are_said(
    tmp_path: Path, shape_pairs: list, capsys: pytest.CaptureFixture
) -> None:
    for folder in ("cat", "dog", "cow"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(shape_pairs[0][0])
    inspect.main([f"--data=folder:{tmp_path}"])
    assert f"{tmp_path}: captions are the names of 3 folders" in capsys.readouterr().out


def test_a_negative_seed_is_refused_by_name(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match=r"--seed=-1; it must not be negative"):
        inspect.main(["--data=open_clipart", "--seed=-1"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_that_is_stopped_leaves_nothing_behind(
    pairs_folder: Path, tiny_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    arguments = [f"--data=webdataset:{pairs_folder}", f"--model={tiny_model}", f"--out={out}"]
    code = (
        "import time\nfrom otter_jax.commands import inspect\n"
        "from otter_jax.embedding import pair_features\n"
        "pair_features.embed_pairs = lambda *_: time.sleep(60)\n"
        f"inspect.main({[*arguments, '--trust']})\n"
    )
    together = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **together) as process:
        while not list(out.glob("*")):  # The folder of the features.
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        said = process.stdout.read().splitlines()
    assert process.returncode == 128 + number
    assert said[-1] == "otter_jax: stopped; --limit=N looks at a random part"
    assert not any("Traceback" in line for line in said) and not list(out.iterdir())
