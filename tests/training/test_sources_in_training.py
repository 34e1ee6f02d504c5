"""A tiny training on every kind of SPEC, and on two of them mixed."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_shard

from otter_jax import objectives, train
from otter_jax.commands import prepare
from otter_jax.training.data import open_training_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, shape_pairs: list) -> Path:
    """The same 24 pairs in every form."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "classes").mkdir()
    names = []
    for number, (image, caption) in enumerate(shape_pairs[:24]):
        place = folder / "classes" / caption.replace(" ", "_") / f"{number}.png"
        place.parent.mkdir()
        place.write_bytes(image)
        names.append((str(place.relative_to(folder)), caption))
    for suffix, separator in ((".csv", ","), (".tsv", "\t")):
        lines = [f"image{separator}caption", *(f"{a}{separator}{b}" for a, b in names)]
        (folder / f"pairs{suffix}").write_text("\n".join(lines) + "\n")
    write_shard(folder / "pairs.tar", shape_pairs[:24])
    return folder


def write_parquet(folder: Path, shape_pairs: list) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images, captions = zip(*shape_pairs[:24], strict=True)
    table = arrow.table({"image": list(images), "caption": list(captions)})
    parquet.write_table(table, folder / "pairs.parquet", row_group_size=5)


def write_tfds(folder: Path) -> None:
    pytest.importorskip("tensorflow_datasets")
    prepare.main([f"--from=webdataset:{folder / 'pairs.tar'}", f"--to={folder / 'tfds'}",
                  "--records_per_shard=10", "--workers=1"])  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "pairs", "weights"),
    [
        ("open_clipart", 4751, ()),
        ("icons", 30_059, ()),
        ("webdataset:{}/pairs.tar", 24, ()),
        ("csv:{}/pairs.csv", 24, ()),
        ("csv:{}/pairs.tsv", 24, ()),
        ("csv:{}/pairs.parquet", 24, ()),
        ("folder:{}/classes", 24, ()),
        ("tfds:{}/tfds", 24, ()),
        (("webdataset:{}/pairs.tar", "csv:{}/pairs.csv"), 48, (1.0, 3.0)),
    ],
)
def test_training_on_every_kind_of_source(
    tiny_config: Callable,
    tmp_path: Path,
    data: Path,
    shape_pairs: list,
    spec: str | tuple[str, str],
    pairs: int,
    weights: tuple[float, ...],
) -> None:
    if "parquet" in spec:
        write_parquet(data, shape_pairs)
    if "tfds" in spec:
        write_tfds(data)
    several = not isinstance(spec, str)
    named = tuple(each.format(data) for each in spec) if several else spec.format(data)
    config = tiny_config(**{
        "data.train": named, "data.weights": weights, "total_steps": 3, "model.text.frozen": True,
        "objective.name": "infonce", "evaluate.sets": (),
    })  # fmt: skip
    train.train(config, tmp_path)
    note = json.loads((tmp_path / "data.json").read_text())["train"]
    assert note["pairs"] == pairs
    assert note["skipped"] == note["unreadable"] == note["unreadable_by_reason"] == {}
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [2, 3]


def test_training_on_every_caption(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list
) -> None:
    for number, (image, caption) in enumerate(shape_pairs[:12]):
        (tmp_path / f"{number}.png").write_bytes(image)
        (tmp_path / f"{number}.txt").write_text(f"{caption}\nnot {caption}")
    config = tiny_config(**{
        "data.train": f"folder:{tmp_path}", "data.captions": "all", "total_epochs": 2.0,
        "total_steps": None, "batch_size": 8, "model.text.frozen": True,
        "objective.name": "infonce", "evaluate.sets": (),
    })  # fmt: skip
    train.train(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train"]["pairs"] == 24
    last = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 6  # Two epochs of 24 pairs, and not of 12.


@pytest.mark.parametrize("decoding", [1, 2])
def test_how_images_are_decoded_is_said_by_the_config(tiny_config: Callable, decoding: int) -> None:
    config = tiny_config(**{
        "data.decoding": decoding, "data.augmentation": "random_resized_crop",
        "data.fit": "crop", "objective.name": "infonce",
    })  # fmt: skip
    method = objectives.make_method(**config.objective)
    encoder = SimpleNamespace(tokenizer=None, resize=None)
    parts = SimpleNamespace(config=config, method=method, encoder=encoder)
    assert open_training_data(parts, []).load.decodes_crops == (decoding == 2)
