"""Pairs of any SPEC as frozen towers see them, each caption a pair of its own."""

import itertools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from otter_jax.data.records import Source
from otter_jax.data.sources import open_source
from otter_jax.embedding.image_collections import compute_features, from_source
from otter_jax.terminal import progress
from otter_jax.training.parts import Parts
from studies import noise as noises

# Ours, and which of Karpathy's make them.
SPLITS = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}


class Side(NamedTuple):
    """The pairs of one split, as the frozen towers see them."""

    image: np.ndarray  # float32 [n, d].
    text: np.ndarray  # float32 [m, e], of every caption.
    captions: noises.Captions
    categories: tuple[tuple[str, ...], ...]  # Of every caption.


def open_split(spec: str) -> Source:
    """Open `SPEC`, or `SPEC@SPLIT` of a collection that comes with the package."""
    name, _, split = spec.partition("@")
    return open_source(name, split or "train", progress=progress)


def write_karpathy(file: Path, images: Path, workdir: Path) -> dict[str, str]:
    """Write a table for each split of Karpathy's JSON of COCO or Flickr30K; return their SPECs.

    Raises:
        ValueError: if the file is none of these.
    """
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))["images"]
        rows = [
            (
                each["split"],
                str(images.resolve() / each.get("filepath", "") / each["filename"]),
                [sentence["raw"] for sentence in each["sentences"]],
            )
            for each in listed
        ]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file} is no dataset_coco.json or dataset_flickr30k.json: {error!r}"
        ) from None
    specs = {}
    for name, splits in SPLITS.items():
        path = workdir / f"{name}.jsonl"
        own = (row for row in rows if row[0] in splits)
        lines = [json.dumps({"image": image, "captions": texts}) for _, image, texts in own]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        specs[name] = f"csv:{path}"
    return specs


def load_side(source: Source, parts: Parts, name: str, category: str | None) -> Side:
    """Return the features of a source; `parts.store` keeps them.

    Raises:
        ValueError: if a record cannot be read: numbers of published files would go astray.
    """
    records = [source[number] for number in progress(range(len(source)), len(source), name)]
    collection = from_source(source, [record.key for record in records])
    found = compute_features(collection, parts.encoder, parts.store, name)
    if found.unreadable:
        key, reason = next(iter(found.unreadable.items()))
        raise ValueError(
            f"{source.name}: {len(found.unreadable)} images cannot be read ({key}: {reason})"
        )
    own = [record.captions or (record.caption,) for record in records]
    counts = [len(each) for each in own]
    captions = noises.Captions(tuple(itertools.chain(*own)), np.repeat(np.arange(len(own)), counts))
    distinct = list(dict.fromkeys(captions.text))
    place = {text: number for number, text in enumerate(distinct)}
    features = parts.store.text_features(parts.encoder, distinct, f"{name} captions")
    text = features[[place[each] for each in captions.text]]
    of_image = [categories_of(record.key, record.metadata, category) for record in records]
    return Side(found.features, text, captions, tuple(of_image[i] for i in captions.image_of))


def categories_of(key: str, metadata: dict[str, Any], field: str | None) -> tuple[str, ...]:
    """Return a record's categories: of a field of its metadata, or what its key begins with.

    >>> categories_of("birds/owl-3", {}, None), categories_of("mdi:home", {}, None)
    (('birds',), ('mdi',))
    >>> categories_of("7", {"tags": ["cat", "dog"]}, "tags")
    ('cat', 'dog')
    """
    if field is None:
        head = re.match(r"(.+)[/:]", key)
        return (head.group(1),) if head else ()
    found = metadata.get(field, ())
    return tuple(map(str, found)) if isinstance(found, list | tuple) else (str(found),)


def arrange(side: Side, order: Path) -> Side:
    """Return a side with its images and captions in the order of a file."""
    images, numbers = noises.in_order(order, side.captions)
    place = np.argsort(images)
    captions = noises.Captions(
        tuple(side.captions.text[number] for number in numbers),
        place[side.captions.image_of[numbers]],
    )
    categories = tuple(side.categories[number] for number in numbers)
    return Side(side.image[images], side.text[numbers], captions, categories)
