"""What the study trains and tests on: features of frozen towers, splits by family, wrong captions.

The pairs are the embedded clip art, all 5,278 of them; the test set of another style is OpenMoji.
Both towers are those of configs/quickstart.py. They run once; what is trained are heads on top.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from configs import quickstart
from otter_jax import objectives, sharding
from otter_jax.data.sources import open_source
from otter_jax.embedding.image_collections import compute_features, from_source
from otter_jax.training.parts import build_parts

NUM_SPLITS = 3
VALIDATION_SHARE = TEST_SHARE = 0.1


class Collection(NamedTuple):
    """Features of n pairs, and of m images of c classes in another style."""

    image: np.ndarray  # float32 [n, 1280].
    text: np.ndarray  # float32 [n, 384].
    family: np.ndarray  # int [n]: drawings of one family are variants of a kind.
    folder: np.ndarray  # int [n]: the category a drawing was put into.
    class_image: np.ndarray  # float32 [m, 1280].
    class_text: np.ndarray  # float32 [c, 384], of "a photo of NAME."
    labels: np.ndarray  # int [m, L], padded with -1.


class Split(NamedTuple):
    """Numbers of the pairs to train, to validate and to test on; no family is in two of them."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    validation_images: np.ndarray  # Of the other style; classes are always ranked among all.
    test_images: np.ndarray


def load(workdir: Path) -> Collection:
    """Return the features in `workdir`/collection.npz, computed first if it is missing."""
    path = workdir / "collection.npz"
    if not path.is_file():
        collection = compute(workdir)
        with path.with_suffix(".partial").open("wb") as file:
            np.savez(file, **collection._asdict())
        path.with_suffix(".partial").replace(path)
    with np.load(path) as arrays:
        return Collection(**arrays)


def compute(workdir: Path) -> Collection:
    """Run the frozen towers; `workdir`/features keeps their outputs, as that of a run does."""
    config = quickstart.get_config()
    config.evaluate.sets = ("openmoji",)
    options = objectives.make_method(**config.objective)
    parts = build_parts(config, workdir, sharding.make_mesh(), options)
    images, texts, metadata = [], [], []
    for split in ("train", "heldout"):
        source = open_source("open_clipart", split)
        records = [source[number] for number in range(len(source))]
        collection = from_source(source, [record.key for record in records])
        images.append(compute_features(collection, parts.encoder, parts.store, split).features)
        captions = [record.caption for record in records]
        texts.append(parts.store.text_features(parts.encoder, captions))
        metadata += [record.metadata for record in records]
    labelled = parts.sets[0].labelled
    found = compute_features(labelled.images, parts.encoder, parts.store, "openmoji")
    prompts = [f"a photo of {',or '.join(names)}." for names in labelled.class_names]
    return Collection(
        image=np.concatenate(images),
        text=np.concatenate(texts),
        family=numbered([each["family"] for each in metadata]),
        folder=numbered([each["path"].rpartition("/")[0] for each in metadata]),
        class_image=found.features,
        class_text=parts.store.text_features(parts.encoder, prompts),
        labels=labelled.labels[found.numbers],
    )


def numbered(names: Sequence[str]) -> np.ndarray:
    """Return a number for every distinct name, int [n]."""
    return np.unique(names, return_inverse=True)[1]


def make_split(collection: Collection, number: int) -> Split:
    """Return one of `NUM_SPLITS` divisions, whose test sets have no family in common."""
    rng = np.random.default_rng(0)
    families = rng.permutation(collection.family.max() + 1)
    shares = np.bincount(collection.family)[families].cumsum() / len(collection.family)
    # Each division turns the same circle of families by a third.
    turned = (shares - number / NUM_SPLITS) % 1.0
    place = np.empty_like(turned)
    place[families] = turned
    place = place[collection.family]
    is_test, is_validation = place < TEST_SHARE, place >= 1.0 - VALIDATION_SHARE
    images = np.random.default_rng((1, number)).permutation(len(collection.class_image))
    half = len(images) // 2
    return Split(
        train=np.flatnonzero(~is_test & ~is_validation),
        validation=np.flatnonzero(is_validation),
        test=np.flatnonzero(is_test),
        validation_images=np.sort(images[:half]),
        test_images=np.sort(images[half:]),
    )


def shuffled_captions(
    groups: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return whose caption each of n images gets, and which of these are wrong.

    Args:
        groups: int [n]; captions change places within a group only.
        share: how much of each group, of those that have two members and more.
        rng: source of the choice.

    Returns:
        int [n] and bool [n]. Every chosen image has a caption that was another's.
    """
    source = np.arange(len(groups))
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        # Groups are small: rounding at random keeps the share over all of them.
        count = int(share * len(members) + rng.random())
        chosen = members[:count] if count > 1 else members[:0]
        source[chosen] = np.roll(chosen, 1)
    return source, source != np.arange(len(groups))
