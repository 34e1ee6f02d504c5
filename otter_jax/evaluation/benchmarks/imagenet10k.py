"""ImageNet-10K: the ImageNet part of Tencent ML-Images' validation set, as OTTER evaluates on it.

In the folder:

    dictionary_and_semantic_hierarchy.txt (or tencent_classes.txt)
        index<TAB>id<TAB>index of the parent<TAB>name, name, ...; with or without a header, and in
        an older release without the index
    val_image_id_from_imagenet.txt (or tencent_val_image_id_from_imagenet.txt)
        n04162706/n04162706_17303.JPEG<TAB>3371<TAB>2609 ..., classes by index, as Tencent gives
        them with a confidence (3371:1)
    images/n04162706_17303.JPEG, or images/n04162706/n04162706_17303.JPEG

All 11,166 classes of the dictionary are ranked, as in the released evaluation. The released list
of 50,000 images has 10,231 of them, 9,831 synsets and their ancestors; only images of another part
have the others. Labels include all ancestors, so that "object, physical object" alone hits nine
images of ten. Hits are therefore counted twice: as published, and (`leaf_hit@k`) by the labels that
are no ancestor of another label of the image.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from otter_jax.data.text_files import numbered_lines
from otter_jax.embedding.image_collections import from_files
from otter_jax.evaluation.benchmarks.labelled import (
    ZeroShotSet,
    find_file,
    find_folder,
    refuse_no_images,
)
from otter_jax.evaluation.class_lists import ClassList, pad_labels

# The released first row has two blanks for a tab, which made its name "-1  thing".
CLASS_LINE = re.compile(r"(?:(\d+)\t)?([^\s]+)\t(-?\d+)\s+(\S.*)")


def load(name: str, folder: Path) -> ZeroShotSet:
    """Read the release in `folder`.

    Raises:
        FileNotFoundError: naming a file that is missing.
        ValueError: for a line in another format, or a class index that does not exist.
    """
    classes, parents = read_dictionary(
        find_file(folder, "dictionary_and_semantic_hierarchy.txt", "tencent_classes.txt")
    )
    path = find_file(folder, "*val_image_id_from_imagenet.txt")
    files = find_folder(folder, "images")
    left_out: Counter[str] = Counter()
    names, rows = [], []
    for image, labels in read_synset_labels(path, len(classes)):
        found = next((p for p in (image, image.split("/")[-1]) if (files / p).is_file()), None)
        if found is None:
            left_out["image missing"] += 1
            continue
        names.append(found)
        rows.append(labels)
    refuse_no_images(folder, names, left_out)
    return ZeroShotSet(
        name=name,
        images=from_files(files, names),
        labels=pad_labels(rows),
        class_names=classes.names,
        left_out=dict(left_out),
        other_labels={"leaf_": pad_labels([leaves(row, parents) for row in rows])},
    )


def read_dictionary(path: Path) -> tuple[ClassList, np.ndarray]:
    """Return the classes, and the number of each one's parent (-1: none)."""
    ids, names, parents = [], [], []
    for number, line in numbered_lines(path):
        if not ids and line.startswith("category_index"):
            continue
        found = CLASS_LINE.fullmatch(line.rstrip())
        if not found or (found[1] and int(found[1]) != len(ids)):
            raise ValueError(
                f"{path}: line {number} should be class {len(ids)}, as index, id, index of the "
                f"parent and names with tabs between; found {line!r}"
            )
        ids.append(found[2])
        parents.append(int(found[3]))
        names.append(tuple(part.strip() for part in found[4].split(", ")))
    for number, parent in enumerate(parents):
        if parent >= len(ids):
            raise ValueError(
                f"{path}: class {number} ({ids[number]}) has the unknown parent {parent}: there "
                f"are {len(ids)} classes"
            )
    return ClassList(tuple(ids), tuple(names), str(path)), np.array(parents)


def read_synset_labels(path: Path, num_classes: int) -> list[tuple[str, list[int]]]:
    """Return every image's path and the numbers of its classes."""
    images = []
    for number, line in numbered_lines(path):
        image, *labels = line.split()
        try:
            numbers = [int(label.partition(":")[0]) for label in labels]
        except ValueError:
            raise ValueError(
                f"{path}: line {number} should be image and classes: {line!r}"
            ) from None
        for each in numbers:
            if not 0 <= each < num_classes:
                raise ValueError(
                    f"{path}: line {number} ({image}) has the unknown class {each}: "
                    f"there are {num_classes}"
                )
        images.append((image, numbers))
    return images


def leaves(labels: list[int], parents: np.ndarray) -> list[int]:
    """Return the labels that are no ancestor of another label."""
    ancestors = set()
    for label in labels:
        while (label := int(parents[label])) >= 0 and label not in ancestors:
            ancestors.add(label)
    return [label for label in labels if label not in ancestors]
