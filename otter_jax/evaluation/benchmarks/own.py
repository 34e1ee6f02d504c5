"""One's own labelled images: a folder of a folder a class, a CSV, or pairs with a class list."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from otter_jax.data import folders, specs
from otter_jax.data.columns import CAPTION_NAMES, LABEL_NAMES
from otter_jax.data.records import RecordError
from otter_jax.data.sources import Source
from otter_jax.data.tables import Table, open_tables
from otter_jax.embedding.image_collections import (
    from_files,
    from_rows,
    from_source,
    named_records,
)
from otter_jax.evaluation.benchmarks.labelled import ZeroShotSet, refuse_no_images
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
    found = folders.Found()
    labels: dict[str, str] = {}
    for path in sorted(folders.image_paths(folder, found), key=Path):
        try:
            folders.class_name(path)
        except RecordError as error:
            if classes is None or os.sep not in path:
                found.skipped[str(error)] += 1
                continue
        labels[path] = path.partition(os.sep)[0]
    refuse_no_images(f"{folder} (one folder a class)", labels, found.skipped)
    if classes is None:
        used = sorted(set(labels.values()))
        names = tuple((each.replace("_", " ").strip(),) for each in used)
        classes = ClassList(tuple(used), names, str(folder))
    return ZeroShotSet(
        name=name,
        images=from_files(folder, list(labels)),
        labels=classes.numbers([[label] for label in labels.values()], str(folder)),
        class_names=classes.names,
        left_out=dict(found.skipped),
    )


def load_csv(
    name: str,
    path: Path,
    classes: ClassList | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
) -> ZeroShotSet:
    """Read a table with columns such as `image` (a path from its folder) and `labels`.

    An image has several labels as "cat|animal" or as a list. The table is read as training reads
    tables: of any of their forms, and what cannot be used is left out and counted. Classes are all
    labels that occur, in alphabetical order, unless a class list is given.

    Args:
        name: what results call the set.
        path: the table, or several.
        classes: what is ranked instead.
        options: `image` and `caption`, columns, where they have no customary names.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for other columns, no image, or a label that the class list lacks.
    """
    spec = specs.Spec(name, "csv", str(path), dict(options))
    names = ("labels", *LABEL_NAMES, *(CAPTION_NAMES if classes else ()))
    tables = open_tables(spec, caption_names=names, needs_caption=False)
    return from_tables(name, tables, classes, str(path))


def holds_captions(spec: specs.Spec) -> bool:
    """Return whether the tables of a SPEC have captions, rather than labels, by their columns."""
    names = ("caption", "labels", *CAPTION_NAMES, *LABEL_NAMES)
    tables = open_tables(spec, caption_names=names, needs_caption=False)
    return not all(name.lower() in LABEL_NAMES for name in tables[0].caption_names)


def from_tables(
    name: str, tables: Sequence[Table], classes: ClassList | None, origin: str
) -> ZeroShotSet:
    """Return the images of tables with their labels; errors as of `load_csv`."""
    left_out: Counter[str] = Counter()
    rows, labels = [], []
    for table, opened in enumerate(tables):
        left_out.update(opened.skipped)
        for number in range(len(opened)):
            rows.append((table, number))
            captions = opened.row(number).captions
            labels.append([label for caption in captions for label in split_labels(caption)])
    if missing := left_out.pop("missing image", 0):
        left_out["image missing"] = missing  # As all labelled sets call it.
    refuse_no_images(origin, [each for each in labels if each], left_out)
    classes = classes or listed_classes(labels, origin)
    return ZeroShotSet(
        name=name,
        images=from_rows(tables, rows),
        labels=classes.numbers(labels, origin),
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


def split_labels(text: str) -> list[str]:
    """Return "cat|animal" -> ["cat", "animal"]; none where it is blank."""
    return [label.strip() for label in text.split("|") if label.strip()]


def listed_classes(labels: list[list[str]], origin: str) -> ClassList:
    """Return all labels that occur, in alphabetical order, as classes."""
    used = sorted({label for each in labels for label in each})
    return ClassList(tuple(used), tuple((each,) for each in used), origin)
