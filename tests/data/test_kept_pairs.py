"""Lists of pairs to keep, against what is plainly in them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_shard

from otter_jax.commands import prepare
from otter_jax.data.kept_pairs import keep_listed, read_list
from otter_jax.data.records import key_of
from otter_jax.data.sources import left_out, open_source
from otter_jax.train import train

KINDS = ("webdataset", "csv", "folder", "parquet", "tfds")
TABLE = "key,trust,other\na,0.9,x\nb,0.2,y\n c,0.5,z\n"


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory, shape_pairs: list) -> dict[str, str]:
    """The same twelve pairs as a source of every kind."""
    folder, pairs = tmp_path_factory.mktemp("pairs"), shape_pairs[:12]
    write_shard(folder / "pairs.tar", pairs)
    rows = ["image,caption"]
    (folder / "images").mkdir()
    for number, (image, caption) in enumerate(pairs):
        (folder / "images" / f"{number:02d}.png").write_bytes(image)
        (folder / "images" / f"{number:02d}.txt").write_text(caption)
        rows.append(f"images/{number:02d}.png,{caption}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images, captions = map(list, zip(*pairs, strict=True))
    parquet.write_table(arrow.table({"image": images, "caption": captions}), folder / "p.parquet")
    pytest.importorskip("tensorflow_datasets")
    spec = f"webdataset:{folder / 'pairs.tar'}"
    prepare.main([f"--from={spec}", f"--to={folder / 'tfds'}", "--workers=1"])
    return {
        "webdataset": spec,
        "csv": f"csv:{folder / 'pairs.csv'}",
        "folder": f"folder:{folder / 'images'}",
        "parquet": f"csv:{folder / 'p.parquet'}",
        "tfds": f"tfds:{folder / 'tfds'}",
    }


def test_every_kind_of_list_names_the_same(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines, table = tmp_path / "keep.txt", tmp_path / "trust.csv"
    lines.write_bytes("\ufeffa\r\n c\n\n".encode())
    table.write_text(TABLE)
    columns = {"record": [0, 1, 2], "key": ["a", "b", " c"], "trust": [0.9, 0.2, 0.5]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "trust.parquet")
    scores = tmp_path / "scores.csv"
    scores.write_text("key,score\na,31.5\nb,11\n c,28\n")
    for listed in (str(lines), f"{table}?above=0.5", f"{tmp_path}/trust.parquet?above=0.5",
                   f"{scores}?above=28"):  # fmt: skip
        assert read_list(listed) == {"a", " c"}, listed


@pytest.mark.parametrize(
    ("name", "text", "above", "words"),
    [
        ("keep.txt", "a\n", "?above=0.5", "a list without scores has no"),
        ("keep.txt", "\n\n", "", "names no pair"),
        ("trust.csv", TABLE, "", r"say how much a pair must have, as \?above=0.5"),
        ("trust.csv", TABLE, "?above=much", "say how much a pair must have"),
        ("trust.csv", TABLE, "?above=nan", "say how much a pair must have"),
        ("trust.csv", TABLE, "?above=1.5", r"trust lies in \[0, 1\]"),
        ("trust.csv", TABLE, "?above=0.95", "names no pair"),
        ("trust.csv", "name,trust\na,1\n", "?above=0.5", "row 1 lacks 'key'.* it has name, trust"),
        ("trust.csv", "key,trust\na,high\n", "?above=0.5", "row 1 has 'high' where a number"),
        ("trust.csv", "key,trust\na,nan\n", "?above=0.5", r"row 1 has 'nan', and trust must be in"),
        (
            "trust.csv",
            "key,trust\na,1\nb,7\n",
            "?above=0.5",
            r"row 2 has '7', and trust must be in",
        ),
        ("s.csv", "key,score\na,1e400\n", "?above=9", "'1e400', and score must be finite"),
        ("s.csv", "key,trust,score\na,,9\n", "?above=0.5", "row 1 has '' where a number"),
        ("s.csv", "key,trust\na,.9\na,.1\n", "?above=0.5", "'a' is there twice, above 0.5 and"),
        ("trust.parquet", "PAR1", "?above=0.5", "is no whole Parquet file"),
    ],
)
def test_what_is_no_list_is_one_line(
    name: str, text: str, above: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_list(f"{tmp_path / name}{above}")
    assert "\n" not in str(caught.value)


def test_keys_of_bytes_are_refused_as_they_would_match_none(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"key": [b"a"], "trust": [0.9]})
    parquet.write_table(table, tmp_path / "trust.parquet")
    with pytest.raises(ValueError, match="row 1: 'key' has bytes, and must be text"):
        read_list(f"{tmp_path}/trust.parquet?above=0.5")


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.data\.keep: there is no file"):
        read_list(str(tmp_path / "keep.txt"))


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_kept_by_what_they_are_called(
    kind: str, specs: dict[str, str], tmp_path: Path
) -> None:
    source = open_source(specs[kind], cache_dir=tmp_path)
    keys = [source[number].key for number in range(len(source))]
    assert [key_of(source, number) for number in range(len(source))] == keys
    (tmp_path / "keep.txt").write_text("\n".join([*keys[1::2], "of another set"]))
    said = []
    kept = keep_listed(source, str(tmp_path / "keep.txt"), remark=said.append)
    assert said[0].endswith(f": 1 of its {len(keys[1::2]) + 1} keys are of no pair here")
    wanted = [source[number] for number in range(1, len(source), 2)]
    assert [kept[number] for number in range(len(kept))] == wanted
    assert left_out(kept) == {"not in data.keep": len(source) - len(kept)}
    assert kept.fingerprint != source.fingerprint


def test_parts_of_several_sources_stay_parts(specs: dict[str, str], tmp_path: Path) -> None:
    chosen = [specs[kind] for kind in ("csv", "folder")]
    source = open_source(chosen, cache_dir=tmp_path)
    keys = [key_of(source, number) for number in range(len(source))]
    assert keys == [source[number].key for number in range(len(source))]
    (tmp_path / "keep.txt").write_text("\n".join(keys[::3]))
    kept = keep_listed(source, str(tmp_path / "keep.txt"))
    assert [kept[number].key for number in range(len(kept))] == keys[::3]
    assert np.all(np.array(kept.lengths) < np.array(source.lengths))
    assert left_out(kept) == {"not in data.keep": len(source) - len(kept)}


def test_a_list_of_another_set_is_refused(specs: dict[str, str], tmp_path: Path) -> None:
    source = open_source(specs["csv"], cache_dir=tmp_path)
    (tmp_path / "keep.txt").write_text("x1\nx2\n")
    with pytest.raises(ValueError, match=r"none of its 2 keys \('x1', 'x2'\) .* are like '\S+'$"):
        keep_listed(source, str(tmp_path / "keep.txt"))
    (tmp_path / "keep.txt").write_text("x1\nx2\nx3\nx4\n")
    with pytest.raises(ValueError, match=r"none of its 4 keys \('x1', 'x2', 'x3', ...\) "):
        keep_listed(source, str(tmp_path / "keep.txt"))


def test_blanks_around_keys_are_pointed_out(specs: dict[str, str], tmp_path: Path) -> None:
    source = open_source(specs["csv"], cache_dir=tmp_path)
    keys = [source[number].key for number in range(3)]
    (tmp_path / "keep.txt").write_text("".join(f"{key} \n" for key in keys))
    with pytest.raises(ValueError, match="without the blanks around them 3 would be: remove"):
        keep_listed(source, str(tmp_path / "keep.txt"))
    (tmp_path / "keep.txt").write_text(f"{keys[0]}\n{keys[1]}\t\nx1\n")
    said: list[str] = []
    assert len(keep_listed(source, str(tmp_path / "keep.txt"), remark=said.append)) == 1
    assert "2 of its 3 keys are of no pair here; without the blanks around them 1 would" in said[0]


def test_a_run_trains_on_what_is_kept(
    specs: dict[str, str], tiny_config: Callable, tmp_path: Path
) -> None:
    source = open_source(specs["csv"])
    (tmp_path / "keep.txt").write_text("\n".join(source[n].key for n in range(10)))
    config = tiny_config(**{
        "data.train": specs["csv"], "data.keep": str(tmp_path / "keep.txt"), "batch_size": 8,
        "total_steps": 1, "objective.name": "infonce", "evaluate.sets": (),
        "model.text.frozen": True,
    })  # fmt: skip
    train(config, tmp_path / "run")
    note = json.loads((tmp_path / "run" / "data.json").read_text())["train"]
    assert (note["pairs"], note["left_out"]) == (10, {"not in data.keep": 2})
    assert "left out: not in data.keep" in (tmp_path / "run" / "report.html").read_text()


def test_a_cleaned_set_is_written(specs: dict[str, str], tmp_path: Path) -> None:
    source = open_source(specs["webdataset"], cache_dir=tmp_path)
    (tmp_path / "keep.txt").write_text("\n".join(source[n].key for n in (1, 5, 7)))
    arguments = [f"--from={specs['webdataset']}", f"--to={tmp_path / 'clean'}", "--workers=1"]
    prepare.main([*arguments, f"--keep={tmp_path / 'keep.txt'}"])
    clean = open_source(f"tfds:{tmp_path / 'clean'}")
    found = [(clean[n].image, clean[n].caption) for n in range(len(clean))]
    assert found == [(source[n].image, source[n].caption) for n in (1, 5, 7)]


def test_a_list_in_another_encoding_is_named(tmp_path: Path) -> None:
    for name in ("keep.txt", "trust.csv?above=0.5"):
        path = tmp_path / name.partition("?")[0]
        path.write_bytes("key,trust\ncafé,1\n".encode("latin-1"))
        with pytest.raises(ValueError, match=rf"{path.name} is not in UTF-8"):
            read_list(f"{tmp_path}/{name}")


def test_what_csv_can_make_nothing_of_is_named(tmp_path: Path) -> None:
    (tmp_path / "trust.csv").write_text(f"key,trust\n{'a' * 200},1\n")
    limit = csv.field_size_limit(100)
    try:
        with pytest.raises(ValueError, match=r"trust\.csv: line \d: field larger"):
            read_list(f"{tmp_path / 'trust.csv'}?above=0.5")
    finally:
        csv.field_size_limit(limit)
