"""ImageNet's folders and every file that its names come in."""

from pathlib import Path

import numpy as np
import pytest

from otter_jax.evaluation import benchmarks, labelled_set
from otter_jax.evaluation.benchmarks import imagenet

SYNSETS = {"n01440764": "tench, Tinca_tinca", "n01443537": "goldfish", "n01484850": "white_shark"}
WORDS = {**SYNSETS, "n00001740": "entity"}


def write_images(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"jpeg")
    return folder


def write_lemmas(folder: Path, synsets: dict[str, str], prefix: str = "imagenet21k") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ids, names = ("\n".join(part) + "\n" for part in (synsets, synsets.values()))
    (folder / f"{prefix}_wordnet_ids.txt").write_text(ids)
    (folder / f"{prefix}_wordnet_lemmas.txt").write_text(names)


def test_flat_images_with_synsets_and_lemmas(tmp_path: Path) -> None:
    write_lemmas(tmp_path, SYNSETS)
    write_images(tmp_path / "images", ["n01484850_9.JPEG", "n01440764_18.JPEG"])
    found = imagenet.load("in21k", tmp_path)
    assert found.class_names == (("tench", "Tinca tinca"), ("goldfish",), ("white shark",))
    assert list(found.images.keys) == ["n01440764_18.JPEG", "n01484850_9.JPEG"]
    np.testing.assert_array_equal(found.labels, [[0], [2]])


@pytest.mark.parametrize("under", ["", "val", "images"])
def test_folders_with_kaggles_mapping(tmp_path: Path, under: str) -> None:
    lines = [f"{synset} {names}" for synset, names in SYNSETS.items()]
    (tmp_path / "LOC_synset_mapping.txt").write_text("\n".join(lines))
    write_images(tmp_path / under, ["n01443537/a.JPEG", "n01443537/b.png", "n01484850/x.JPEG"])
    found = benchmarks.load(f"imagenet1k:{tmp_path}", 32)
    assert len(found.class_names) == 3
    np.testing.assert_array_equal(found.labels, [[1], [1], [2]])


def test_words_name_the_classes_that_have_images(tmp_path: Path) -> None:
    lines = [f"{synset}\t{names}" for synset, names in WORDS.items()]
    (tmp_path / "words.txt").write_text("\n".join(lines))
    write_images(tmp_path / "images", ["n01484850_9.JPEG", "n01440764_18.JPEG"])
    found = imagenet.load("in21k", tmp_path)
    assert found.class_names == (("tench", "Tinca tinca"), ("white shark",))


def test_kaggles_validation_list(tmp_path: Path) -> None:
    write_lemmas(tmp_path, SYNSETS, "imagenet1k")
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000002,n01443537 1 2 3 4 n01443537 5 6 7 8 \n"
        "ILSVRC2012_val_00000001,n01440764 1 2 3 4\n"
        "ILSVRC2012_val_00000003,n01440764 1 2 3 4\n"
    )
    names = [f"ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2)]
    write_images(tmp_path / "val", names)
    found = imagenet.load("in1k", tmp_path)
    assert dict(zip(found.images.keys, found.labels[:, 0].tolist(), strict=True)) == {
        names[0]: 0, names[1]: 1,
    }  # fmt: skip
    assert found.left_out == {"image missing": 1}


def test_both_together_have_classes_of_their_own(tmp_path: Path) -> None:
    write_lemmas(tmp_path / "imagenet21k", WORDS)
    write_images(tmp_path / "imagenet21k" / "images", ["n00001740_1.JPEG", "n01443537_1.JPEG"])
    write_lemmas(tmp_path / "imagenet1k", SYNSETS, "imagenet1k")
    write_images(tmp_path / "imagenet1k" / "val", ["n01484850/a.JPEG"])
    found = benchmarks.load(f"imagenet22k:{tmp_path}", 32)
    assert len(found.class_names) == 4 + 3 and len(found.images) == 3
    np.testing.assert_array_equal(found.labels[:, 0], [3, 1, 4 + 2])
    merged = labelled_set.LabelledSet(found).countings["merged_"]
    assert len(merged.classes) == 4
    np.testing.assert_array_equal(merged.labels[:, 0], [3, 1, 2])


def test_the_first_unknown_synset_is_named(tmp_path: Path) -> None:
    write_lemmas(tmp_path, SYNSETS)
    write_images(tmp_path / "images", ["n01440764_1.JPEG", "n00000001_1.JPEG", "n00000002_1.JPEG"])
    with pytest.raises(ValueError, match="unknown class 'n00000001'"):
        imagenet.load("in21k", tmp_path)


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no image with a label"):
        imagenet.load("in1k", tmp_path)
    write_images(tmp_path / "val", ["n01440764/a.JPEG"])
    with pytest.raises(FileNotFoundError, match=r"wordnet_ids.txt or LOC_synset_mapping.txt or wo"):
        imagenet.load("in1k", tmp_path)
    write_lemmas(tmp_path, SYNSETS)
    (tmp_path / "imagenet21k_wordnet_lemmas.txt").write_text("tench\n")
    with pytest.raises(ValueError, match="1 lines for 3 synsets"):
        imagenet.load("in1k", tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        imagenet.load("in1k", tmp_path / "nowhere")
