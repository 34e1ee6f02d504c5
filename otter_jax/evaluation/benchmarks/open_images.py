"""Open Images V6, image-level labels, as officially released.

In the folder:

    *class-descriptions.csv                 LabelName,DisplayName (V4's has no header)
    *test-annotations-human-imagelabels.csv ImageID,Source,LabelName,Confidence
    test/ImageID.jpg                        the images (or images/, or the folder itself)
    classes.txt                             optional: the LabelNames that are ranked, one a line

A human label of confidence 0 says that the class is absent; only the others are truth. See
https://storage.googleapis.com/openimages/web/download_v6.html.
"""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from otter_jax.data.text_files import numbered_lines, read_csv
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
    rows = [row for _, row in read_csv(path)]
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
    ids = tuple(line.strip() for _, line in numbered_lines(path))
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
    rows = read_csv(path)
    _, header = next(rows, (1, []))
    if lacking := [column for column in LABEL_COLUMNS if column not in header]:
        raise ValueError(f"{path}: lacks the columns {', '.join(lacking)}")
    image, label, confidence = map(header.index, ("ImageID", "LabelName", "Confidence"))
    for line, row in rows:
        try:
            known = float(row[confidence])
        except (IndexError, ValueError):
            known = math.nan
        if math.isnan(known) or len(row) < len(header):
            raise ValueError(f"{path}: line {line} has no confidence (0 or 1): {row}")
        yield row[image], row[label], known
