"""One's own labelled images: a folder of a folder a class, a CSV, or pairs with a class list."""

import csv
from collections import Counter
from pathlib import Path

from otter_jax.data.sources import Source
from otter_jax.embedding.image_collections import from_files, from_source, named_records
from otter_jax.evaluation.benchmarks.labelled import ZeroShotSet, is_image, refuse_no_images
from otter_jax.evaluation.class_lists import ClassList


def load_folder(name: str, folder: Path, classes: ClassList | None = None) -> ZeroShotSet:
    """Return a folder of one folder a class, such as `red_panda/1.jpg`.

    Classes are called as their folders are, with spaces for underscores, unless a class list gives
    them other names (and may add classes without images).

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if no class folder has an image, or the class list lacks one.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    labels: dict[str, str] = {}
    folders = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    for entry in folders:
        for file in sorted(entry.rglob("*")):
            if is_image(file):
                labels[str(file.relative_to(folder))] = entry.name
    loose = sum(map(is_image, folder.iterdir()))
    left_out = {"image beside the class folders": loose} if loose else {}
    refuse_no_images(f"{folder} (one folder a class)", labels, left_out)
    if classes is None:
        used = sorted(set(labels.values()))
        classes = ClassList(
            tuple(used), tuple((each.replace("_", " "),) for each in used), str(folder)
        )
    return ZeroShotSet(
        name=name,
        images=from_files(folder, list(labels)),
        labels=classes.numbers([[label] for label in labels.values()], str(folder)),
        class_names=classes.names,
        left_out=left_out,
    )


def load_csv(name: str, path: Path, classes: ClassList | None = None) -> ZeroShotSet:
    """Read a CSV with the columns `image` (a path from its folder) and `labels` ("cat|animal").

    Classes are all labels that occur, in alphabetical order, unless a class list is given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for other columns, no image, or a label that the class list lacks.
    """
    left_out: Counter[str] = Counter()
    names, labels = [], []
    for image, listed in read_columns(path, "image", "labels"):
        if not (path.parent / image).is_file():
            left_out["image missing"] += 1
            continue
        names.append(image)
        labels.append(split_labels(listed))
    refuse_no_images(path, [each for each in labels if each], left_out)
    classes = classes or listed_classes(labels, str(path))
    return ZeroShotSet(
        name=name,
        images=from_files(path.parent, names),
        labels=classes.numbers(labels, str(path)),
        class_names=classes.names,
        left_out=dict(left_out),
    )


def from_pairs(name: str, source: Source, classes: ClassList) -> ZeroShotSet:
    """Return pairs whose captions are labels of a class list ("cat|animal").

    Raises:
        ValueError: naming the first label that the class list lacks.
    """
    captions = {name: record.caption if record else "" for name, record in named_records(source)}
    labels = [split_labels(caption) for caption in captions.values()]
    return ZeroShotSet(
        name=name,
        images=from_source(source, list(captions)),
        labels=classes.numbers(labels, name),
        class_names=classes.names,
        left_out=source.skipped,
    )


def read_header(path: str) -> list[str]:
    """Return the column names of a CSV; none where there is no file, which its reader will say."""
    if not Path(path).is_file():
        return []
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        return next(csv.reader(file), [])


def read_columns(path: Path, *columns: str) -> list[list[str]]:
    """Return some columns of a CSV, by the names in its first line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing, or a line is short of one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        found = reader.fieldnames or []
        if lacking := [column for column in columns if column not in found]:
            raise ValueError(
                f"{path}: lacks the column {', '.join(lacking)}; it has {', '.join(found)}"
            )
        rows = []
        for row in reader:
            if any(row[column] is None for column in columns):
                raise ValueError(f"{path}: line {reader.line_num} should have {len(found)} fields")
            rows.append([row[column] for column in columns])
    return rows


def split_labels(text: str) -> list[str]:
    """Return "cat|animal" -> ["cat", "animal"]; none where it is blank."""
    return [label.strip() for label in text.split("|") if label.strip()]


def listed_classes(labels: list[list[str]], origin: str) -> ClassList:
    """Return all labels that occur, in alphabetical order, as classes."""
    used = sorted({label for each in labels for label in each})
    return ClassList(tuple(used), tuple((each,) for each in used), origin)
