"""Damaged files as sets for evaluation: one line or counts, and the same pairs as in training."""

import random
from collections import Counter
from pathlib import Path

import pytest

from otter_jax.commands import inspect
from otter_jax.data.sources import open_source
from otter_jax.evaluation import sets
from otter_jax.evaluation.pair_set import PairSet
from tests.data.mutations import (
    FORMS,
    PNG,
    REFUSALS,
    SECONDS,
    cases,
    limited,
    mutate,
    write_images,
)

pytest.importorskip("pyarrow")

PAIRS = [form for form in FORMS if form.name.partition(".")[2] != "txt" and form.name != "l.tar"]

# Releases by their kind: (name of a file, contents); "images" are empty but for a pixel.
RELEASES = {
    "imagenet10k": {
        "dictionary_and_semantic_hierarchy.txt": "category_index\tcategory_id\tx\ty\n"
        "0\tn0\t-1\tthing\n1\tn1\t0\tcat, kitty\n\n2\tn2\t1\ttabby\n",
        "val_image_id_from_imagenet.txt": "n1/n1_1.png\t1\t0\n\nn2/n2_1.png\t2:1\t1:1\t0:1\n",
    },
    "imagenet1k": {
        "LOC_synset_mapping.txt": "n1 cat, kitty\n\nn2 tabby\n",
        "LOC_val_solution.csv": "ImageId,PredictionString\nn1_1,n1 1 2 3 4\nn2_1,n2 1\n",
    },
    "imagenet21k": {
        "x_wordnet_ids.txt": "n1\nn2\n\n",
        "x_wordnet_lemmas.txt": "cat\n\ntabby_cat\n",
    },
    "open_images": {
        "oidv6-class-descriptions.csv": "LabelName,DisplayName\n/m/1,Cat\n/m/2,Dog\n",
        "test-annotations-human-imagelabels.csv": "ImageID,Source,LabelName,Confidence\n"
        "n1_1,verification,/m/1,1\nn2_1,verification,/m/2,0\nn2_1,verification,/m/1,1\n",
        "classes.txt": "/m/1\n\n/m/2\n",
    },
}


def write_release(folder: Path, kind: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in RELEASES[kind].items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("n1_1.png", "n2_1.png"):
        (folder / name).write_bytes(PNG)


def opened_or_refused(spec: str) -> sets.EvaluationSet | None:
    with limited(SECONDS):
        try:
            (opened,) = sets.open_sets([spec], image_size=8)
        except REFUSALS as error:
            assert str(error).strip()
            return None
    opened.contents()
    opened.chance()
    return opened


@pytest.mark.parametrize("kind", RELEASES)
def test_official_lists(tmp_path: Path, kind: str) -> None:
    rng, found = random.Random(0), Counter()
    folder = tmp_path / kind
    write_release(folder, kind)
    assert opened_or_refused(f"{kind}:{folder}") is not None
    for name, text in RELEASES[kind].items():
        for _ in range(100):
            (folder / name).write_bytes(mutate(text.encode(), rng))
            found[opened_or_refused(f"{kind}:{folder}") is not None] += 1
        write_release(folder, kind)
    assert min(found[True], found[False]) >= 5


@pytest.mark.parametrize(
    ("name", "text", "spec"),
    [
        ("classes.txt", "cat\ttabby|house cat\ndog\tdog\n", "folder:{0}/images?classes={1}"),
        ("labels.csv", "image,labels\na.png,cat|animal\nb.png,\na.png,dog\n", "csv:{1}"),
        ("labels.jsonl", '{"image": "a.png", "label": ["cat", "animal"]}\n' * 3, "csv:{1}"),
    ],
)
def test_lists_of_ones_own(tmp_path: Path, name: str, text: str, spec: str) -> None:
    rng, found = random.Random(0), Counter()
    write_images(tmp_path)
    for folder in ("cat", "dog"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        (tmp_path / "images" / folder / "1.png").write_bytes(PNG)
    path = tmp_path / name
    for _ in range(200):
        path.write_bytes(mutate(text.encode(), rng))
        found[opened_or_refused(spec.format(tmp_path, path)) is not None] += 1
    assert min(found[True], found[False]) >= 5


@pytest.mark.parametrize("form", PAIRS, ids=lambda form: form.name)
def test_pairs_are_those_of_training(tmp_path: Path, form: object) -> None:
    write_images(tmp_path)
    path, found = tmp_path / form.name, Counter()
    spec = f"{'webdataset' if form.name.endswith('tar') else 'csv'}:{path}"
    for _, data in cases(100, 1, (form,)):
        path.write_bytes(data)
        opened = opened_or_refused(spec)
        if not isinstance(opened, PairSet):  # Or its caption column has become one of labels.
            found["refused"] += 1
            continue
        source = open_source(spec)
        assert opened.contents()["skipped"] == source.skipped
        if form.name.endswith("tar"):  # Where metadata list captions, evaluation takes those alone.
            assert len(opened.images) == len(source)
        else:
            assert len(opened.captions) == sum(source.caption_counts)
        found["read"] += 1
    assert found["read"] >= 5


@pytest.mark.parametrize("form", PAIRS, ids=lambda form: form.name)
def test_inspect_ends_in_one_line_or_in_counts(
    tmp_path: Path, form: object, capsys: pytest.CaptureFixture
) -> None:
    write_images(tmp_path)
    path = tmp_path / form.name
    spec = f"{'webdataset' if form.name.endswith('tar') else 'csv'}:{path}"
    for _, data in cases(30, 2, (form,)):
        path.write_bytes(data)
        with limited(SECONDS):
            try:
                found = inspect.inspect(inspect.parse([f"--data={spec}"]))
            except REFUSALS as error:
                assert str(error).strip()
                continue
        unreadable = sum(found["unreadable_by_reason"].values())
        assert found["readable"] + unreadable == found["inspected"] == found["pairs"]
    capsys.readouterr()
