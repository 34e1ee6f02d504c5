"""A small data set of TensorFlow Datasets, prepared here, read without TensorFlow."""

import importlib.util
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import mutate

from otter_jax.data.sources import RecordError, open_source

tfds = pytest.importorskip("tensorflow_datasets")

JPEG = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffdb0043") + bytes(64) + b"\xff\xd9"


class Pairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = tfds.features
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict({
            "image": features.Image(shape=(None, None, 3)),
            "title": features.Text(),
            "words": features.Sequence(features.Text()),
            "captions": features.Sequence({"text": features.Text(), "id": np.int64}),
            "label": features.ClassLabel(names=["red_panda", "cat"]),
        }))  # fmt: skip

    def _split_generators(self, manager: Any) -> Any:
        return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

    def _generate_examples(self, count: int) -> Any:
        for number in range(count):
            texts = [] if number == 2 else [f"first {number}", f"second {number}"]
            yield (
                number,
                {
                    "image": JPEG + bytes([number]),
                    "title": f"title {number}",
                    "words": texts,
                    "captions": [{"text": text, "id": number} for text in texts],
                    "label": -1 if number == 4 else number % 2,
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    Pairs(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def by_number(source: Any) -> dict[int, tuple[str, ...]]:
    """Captions by the number at the end of the image: the data are shuffled when written."""
    records = (_record(source, i) for i in range(len(source)))
    return {record.image[-1]: record.captions for record in records if record}


def test_captions_are_found_and_encoded_images_come_back(data_dir: Path) -> None:
    source = open_source(f"tfds:{data_dir}/pairs/1.0.0")
    assert len(source) == 6
    expected = {n: (f"first {n}", f"second {n}") for n in (0, 1, 3, 4, 5)}
    assert by_number(source) == expected
    assert next(r for i in range(6) if (r := _record(source, i))).image.startswith(JPEG)


def _record(source: Any, i: int) -> Any:
    try:
        return source[i]
    except RecordError:
        return None


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("title", ("title 1",)),
        ("words", ("first 1", "second 1")),
        ("captions/text", ("first 1", "second 1")),
        ("label", ("cat",)),
    ],
)
def test_features_by_name(data_dir: Path, caption: str, expected: tuple[str, ...]) -> None:
    source = open_source(f"tfds:pairs:test?data_dir={data_dir}&caption={caption}")
    assert by_number(source)[1] == expected


@pytest.mark.parametrize("caption", ["title", "label"])
def test_single_captions_are_all_of_them(data_dir: Path, caption: str) -> None:
    spec = f"tfds:pairs:test?data_dir={data_dir}&caption={caption}"
    assert by_number(open_source(spec, every_caption=True)) == by_number(open_source(spec))


@pytest.mark.parametrize("caption", ["words", "captions/text"])
def test_lists_of_captions_are_not_counted(data_dir: Path, caption: str) -> None:
    with pytest.raises(ValueError, match=r"captions='all' needs to know.*use 'one', or the tar"):
        open_source(f"tfds:pairs?data_dir={data_dir}&caption={caption}", every_caption=True)


def test_a_record_without_a_label_has_no_caption(data_dir: Path) -> None:
    source = open_source(f"tfds:{data_dir}/pairs/1.0.0?caption=label")
    found = by_number(source)
    assert found == {n: (("red panda", "cat")[n % 2],) for n in (0, 1, 2, 3, 5)}
    reasons = []
    for number in range(len(source)):
        try:
            source[number]
        except RecordError as error:
            reasons.append(str(error))
    assert reasons == ["no label"]


def test_splits(data_dir: Path) -> None:
    spec = f"tfds:{data_dir}/pairs/1.0.0"
    lengths = [len(open_source(f"{spec}{s}")) for s in ("", ":train", ":test", ":train[:4]")]
    assert lengths == [6, 6, 3, 4]
    with pytest.raises(ValueError, match=r"say which split is meant.*it has train, test"):
        open_source(spec, split="heldout")
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        open_source(f"{spec}:dev")


def test_fingerprint_tells_splits_apart(data_dir: Path) -> None:
    splits = ("train", "train", "test", "train[:4]")
    prints = [open_source(f"tfds:{data_dir}/pairs/1.0.0:{s}").fingerprint for s in splits]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_fingerprint_follows_the_files_of_the_split_alone(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs" / "1.0.0"
    shutil.copytree(data_dir / "pairs" / "1.0.0", folder)

    def fingerprint(split: str) -> str:
        return open_source(f"tfds:{folder}:{split}").fingerprint

    train, test = fingerprint("train"), fingerprint("test")
    assert train == open_source(f"tfds:{data_dir}/pairs/1.0.0:train").fingerprint
    (folder / "notes.txt").write_text("a stray file")
    assert (fingerprint("train"), fingerprint("test")) == (train, test)
    (file,) = folder.glob("*test*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert fingerprint("train") == train and fingerprint("test") != test


def test_what_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="no 'sound' among 'captions/text', 'label', 'title', 'words'"
    ):
        open_source(f"tfds:pairs?data_dir={data_dir}&caption=sound")
    with pytest.raises(ValueError, match="image column not found: there is no 'title' among"):
        open_source(f"tfds:pairs?data_dir={data_dir}&image=title")
    with pytest.raises(FileNotFoundError, match="no such data set"):
        open_source(f"tfds:nosuchset?data_dir={data_dir}")
    with pytest.raises(FileNotFoundError, match="no such data set"):
        open_source(f"tfds:{data_dir}/none")
    with pytest.raises(FileNotFoundError, match=r"not prepared in .*run: tfds build mnist"):
        open_source(f"tfds:mnist?data_dir={data_dir}")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'otter_jax\[tfds\]'"):
        open_source(f"tfds:{data_dir}/pairs/1.0.0")


def test_a_builder_that_needs_tensorflow_is_one_line(capfd: pytest.CaptureFixture) -> None:
    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("TensorFlow is installed")
    with pytest.raises(ModuleNotFoundError, match=r"not prepared.*'tensorflow'.*: tfds build coco"):
        open_source("tfds:coco_captions")
    assert "***" not in "".join(capfd.readouterr())


def test_tensorflow_is_not_imported(data_dir: Path) -> None:
    code = (
        "import sys; from otter_jax.data.sources import open_source; "
        f"open_source('tfds:{data_dir}/pairs/1.0.0')[0]; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_damaged_descriptions_are_one_line(data_dir: Path, tmp_path: Path) -> None:
    folder, rng = tmp_path / "pairs" / "1.0.0", random.Random(0)
    shutil.copytree(data_dir / "pairs" / "1.0.0", folder)
    refused = 0
    for name in ("dataset_info.json", "features.json", "label.labels.txt"):
        whole = (folder / name).read_bytes()
        for _ in range(60):
            (folder / name).write_bytes(mutate(whole, rng))
            try:
                source = open_source(f"tfds:{folder}:train")
            except (ValueError, OSError) as error:
                refused += 1
                assert str(error).strip()
                continue
            for record in source.read_many(range(len(source))):
                assert isinstance(record, RecordError) or record.captions
        (folder / name).write_bytes(whole)
    assert 20 < refused < 170


def test_damaged_records_are_counted_and_spare_the_others(data_dir: Path, tmp_path: Path) -> None:
    folder, rng = tmp_path / "pairs" / "1.0.0", random.Random(0)
    shutil.copytree(data_dir / "pairs" / "1.0.0", folder)
    (file,) = folder.glob("*train*")
    whole, damaged = file.read_bytes(), 0
    for _ in range(60):
        file.write_bytes(mutate(whole, rng, in_place=True))
        try:
            source = open_source(f"tfds:{folder}:train")
        except (ValueError, OSError) as error:
            assert str(error).strip()
            continue
        read = source.read_many(range(len(source)))
        damaged += sum(str(record).startswith("damaged record") for record in read)
        assert len(read) == 6
    assert damaged > 0
