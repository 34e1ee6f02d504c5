"""Open Images V6, image-level labels, as officially released.

In the folder:

    *class-descriptions.csv                 LabelName,DisplayName (V4's has no header)
    *test-annotations-human-imagelabels.csv ImageID,Source,LabelName,Confidence
    test/ImageID.jpg                        the images (or images/, or the folder itself)
    classes.txt                             optional: the LabelNames that are ranked, one a line

A human label of confidence 0 says that the class is absent; only the others are truth. See
https://storage.googleapis.com/openimages/web/download_v6.html.
"""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from otter_jax.embedding.image_collections import from_files
from otter_jax.evaluation.benchmarks.labelled import (
    ZeroShotSet,
    find_file,
    find_folder,
    is_image,
    refuse_no_images,
)
from otter_jax.evaluation.class_lists import ClassList

LABEL_COLUMNS = ("ImageID", "Source", "LabelName", "Confidence")


def load(name: str, folder: Path, classes: ClassList | None = None) -> ZeroShotSet:
    """Read the release in `folder`.

    Args:
        name: what results call the set.
        folder: holds the files above.
        classes: what is ranked instead, by LabelName.

    Raises:
        FileNotFoundError: naming a file that is missing.
        ValueError: for a file in another format, or a LabelName that has no description.
    """
    described = read_descriptions(find_file(folder, "*class-descriptions.csv"))
    classes = classes or ranked_classes(folder / "classes.txt", described)
    path = find_file(folder, "*test-annotations-human-imagelabels.csv", "*human-imagelabels.csv")
    left_out: Counter[str] = Counter()
    labels = read_labels(path, described, set(classes.ids), left_out)
    files = find_folder(folder, "test", "images")
    present = {file.stem: file.name for file in files.iterdir() if is_image(file)}
    missing = [image for image in labels if image not in present]
    for image in missing:
        del labels[image]
    left_out["image missing"] = len(missing)
    left_out += Counter()  # Drops zeros.
    refuse_no_images(folder, labels, left_out)
    return ZeroShotSet(
        name=name,
        images=from_files(files, [present[image] for image in labels]),
        labels=classes.numbers(labels.values(), str(path)),
        class_names=classes.names,
        left_out=dict(left_out),
    )


def read_descriptions(path: Path) -> ClassList:
    """Return all classes with their names."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and rows[0] == ["LabelName", "DisplayName"]:
        del rows[0]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise ValueError(f"{path}: row {number} should be LabelName,DisplayName, found {row}")
    return ClassList(
        tuple(label for label, _ in rows), tuple((name.strip(),) for _, name in rows), str(path)
    )


def ranked_classes(path: Path, described: ClassList) -> ClassList:
    """Return the classes that a list of LabelNames names, or all where there is no list."""
    if not path.is_file():
        return described
    ids = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line)
    names = dict(zip(described.ids, described.names, strict=True))
    for each in ids:
        if each not in names:
            raise ValueError(f"{path}: unknown class {each!r}, which is not in {described.origin}")
    return ClassList(ids, tuple(names[each] for each in ids), str(path))


def read_labels(
    path: Path, described: ClassList, ranked: set[str], left_out: Counter[str]
) -> dict[str, list[str]]:
    """Return the LabelNames that are true of each image, and counts what is no truth."""
    known, labels = set(described.ids), {}
    for image, label, confidence in label_rows(path):
        if label not in known:
            raise ValueError(
                f"{path}: image {image} has the unknown class {label!r}, which is not in "
                f"{described.origin}"
            )
        true = labels.setdefault(image, [])
        if confidence <= 0:
            continue
        if label in ranked:
            true.append(label)
        else:
            left_out["label that is not ranked"] += 1
    unlabelled = [image for image, true in labels.items() if not true]
    for image in unlabelled:
        del labels[image]
    left_out["image without a true label"] = len(unlabelled)
    return labels


def label_rows(path: Path) -> Iterator[tuple[str, str, float]]:
    """Yield ImageID, LabelName and confidence of every row."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if lacking := [c for c in LABEL_COLUMNS if c not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: lacks the columns {', '.join(lacking)}")
        for row in reader:
            try:
                yield row["ImageID"], row["LabelName"], float(row["Confidence"])
            except (TypeError, ValueError):
                raise ValueError(
                    f"{path}: line {reader.line_num} has no confidence (0 or 1): {row}"
                ) from None
