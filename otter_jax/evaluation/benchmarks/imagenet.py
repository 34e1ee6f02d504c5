"""ImageNet-1k, ImageNet-21k (21,843 synsets), and both ranked together, as OTTER's release does.

Images of a folder (or of its images/ or val/) lie in folders named by synset
(n01440764/anything.JPEG), or beside each other with the synset first in their name
(n01440764_18.JPEG). Kaggle's validation images have a LOC_val_solution.csv beside them.

Which classes there are, in their order, and their names, is read from the first of

    *wordnet_ids.txt and *wordnet_lemmas.txt   one synset a line, its names a line
    LOC_synset_mapping.txt                     n01440764 tench, Tinca tinca
    words.txt                                  n01440764<TAB>tench, Tinca tinca; of all of
                                               WordNet, so the classes are those with images

Names lose their underscores.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from otter_jax.data import folders
from otter_jax.data.text_files import numbered_lines, read_csv
from otter_jax.embedding.image_collections import ImageCollection, from_files
from otter_jax.evaluation.benchmarks.labelled import (
    ZeroShotSet,
    find_file,
    find_folder,
    is_image,
    refuse_no_images,
)
from otter_jax.evaluation.class_lists import ClassList, Names

NAME_FILES = ("*wordnet_ids.txt", "LOC_synset_mapping.txt", "words.txt")


def load(name: str, folder: Path, classes: ClassList | None = None) -> ZeroShotSet:
    """Read one set.

    Args:
        name: what results call the set.
        folder: holds the images and the names.
        classes: what is ranked instead, by synset.

    Raises:
        FileNotFoundError: naming a file that is missing.
        ValueError: for a synset that has no name, or no images.
    """
    files, synsets = find_images(folder)
    refuse_no_images(folder, synsets, {})
    classes = classes or read_names(folder, set(synsets.values()))
    return ZeroShotSet(
        name=name,
        images=from_files(files, list(synsets)),
        labels=classes.numbers([[synset] for synset in synsets.values()], str(files)),
        class_names=classes.names,
        left_out=missing_images(folder, synsets),
    )


def load_22k(name: str, folder: Path) -> ZeroShotSet:
    """Return both sets: imagenet21k/ and imagenet1k/ in `folder`.

    The 1,000 classes follow the 21,843 with numbers of their own, as released. Their synsets are
    there already, under the same names, so `hit@k` counts an ImageNet-1k image as a hit only where
    its class comes behind its twin; `merged_hit@k` takes classes of one name for one.
    """
    parts = [load(each, folder / each) for each in ("imagenet21k", "imagenet1k")]
    large, small = parts
    shifted = np.where(small.labels < 0, -1, small.labels + len(large.class_names))
    return ZeroShotSet(
        name=name,
        images=_together([part.images for part in parts]),
        labels=np.concatenate([large.labels, shifted]),
        class_names=large.class_names + small.class_names,
        left_out=dict(Counter(large.left_out) + Counter(small.left_out)),
    )


def _together(parts: list[ImageCollection]) -> ImageCollection:
    places = [(part, number) for part in parts for number in range(len(part))]
    return ImageCollection(
        keys=[f"{n}/{key}" for n, part in enumerate(parts) for key in part.keys],
        decode=lambda number: places[number][0].decode(places[number][1]),
        fingerprint="".join(part.fingerprint for part in parts),
    )


def find_images(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return the folder of the images, and the synset of each by its path in it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = find_folder(folder, "images", "val")
    solutions = folder / "LOC_val_solution.csv"
    if solutions.is_file():
        found = {file.stem: file.name for file in sorted(files.iterdir()) if is_image(file)}
        known = read_solutions(solutions)
        return files, {found[image]: known[image] for image in known if image in found}
    synsets = {}
    for entry in sorted(files.iterdir()):
        if entry.is_dir() and not folders.is_hidden(entry.name):
            for file in sorted(filter(is_image, entry.iterdir())):
                synsets[f"{entry.name}/{file.name}"] = entry.name
        elif is_image(entry):
            synsets[entry.name] = entry.name.split("_")[0]
    return files, synsets


def read_solutions(path: Path) -> dict[str, str]:
    """Return the synset of every validation image, from Kaggle's ImageId,PredictionString."""
    rows = read_csv(path)
    if next(rows, (1, []))[1] != ["ImageId", "PredictionString"]:
        raise ValueError(f"{path}: the columns should be ImageId,PredictionString")
    found = {}
    for line, row in rows:
        if len(row) != 2 or not row[1].split():
            raise ValueError(f"{path}: line {line} should be an image and its synset, found {row}")
        found[row[0]] = row[1].split()[0]
    return found


def missing_images(folder: Path, synsets: dict[str, str]) -> dict[str, int]:
    """Return how many images a list beside them names that are not there."""
    path = folder / "LOC_val_solution.csv"
    missing = len(read_solutions(path)) - len(synsets) if path.is_file() else 0
    return {"image missing": missing} if missing else {}


def read_names(folder: Path, present: set[str]) -> ClassList:
    """Return the classes in their order; `present` are the synsets that have images."""
    path = find_file(folder, *NAME_FILES)
    lines = [line for _, line in numbered_lines(path)]
    if path.name.endswith("wordnet_ids.txt"):
        lemmas = find_file(folder, path.name.replace("_ids", "_lemmas"))
        names = [line for _, line in numbered_lines(lemmas)]
        if len(names) != len(lines):
            raise ValueError(f"{lemmas}: {len(names)} lines for {len(lines)} synsets")
        pairs = list(zip(lines, names, strict=True))
    else:
        separator = "\t" if path.name == "words.txt" else " "
        pairs = [(synset, names) for synset, _, names in (x.partition(separator) for x in lines)]
    if path.name == "words.txt":
        pairs = sorted(pair for pair in pairs if pair[0] in present)
    ids = tuple(synset.strip() for synset, _ in pairs)
    return ClassList(ids, tuple(synonyms(names) for _, names in pairs), str(path))


def synonyms(line: str) -> Names:
    """Return "great_white_shark, white shark" -> its two names, in words."""
    return tuple(name.replace("_", " ").strip() for name in line.split(","))
