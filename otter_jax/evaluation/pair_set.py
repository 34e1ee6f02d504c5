"""Held-out pairs as a set: does an image find a caption of its own among all, and the reverse?"""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from otter_jax.data.records import clean_captions
from otter_jax.data.sources import Record, Source
from otter_jax.data.tables import Table
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.features import FeatureStore
from otter_jax.embedding.image_collections import (
    ImageCollection,
    compute_features,
    from_rows,
    from_source,
    named_records,
)
from otter_jax.evaluation import retrieval
from otter_jax.evaluation.answers import Answers, answer
from otter_jax.evaluation.retrieval import EqualItems, first_equal


@dataclasses.dataclass
class PairSet:
    """Retrieval among images and their captions.

    Attributes:
        name: the set's SPEC.
        images: the images.
        captions: all captions.
        image_of_text: int [len(captions)], the image each belongs to.
        left_out: what was left out, by reason.
        first_image: int [len(images)], of each the first one of the same contents, where that is
            known.
    """

    name: str
    images: ImageCollection
    captions: list[str]
    image_of_text: np.ndarray
    left_out: dict[str, int]
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    first_image: np.ndarray | None = None

    def evaluate(self, encoder: Encoder, store: FeatureStore) -> dict[str, float]:
        """Return recall@1, 5, 10 in both directions, among what can be read.

        Where images or captions are equal, also with their answers counted for each other.
        """
        images, numbers, texts = self._embed(encoder, store)
        place = np.full(len(self.images), -1)
        place[numbers] = np.arange(len(numbers))
        kept = np.flatnonzero(place[self.image_of_text] >= 0)
        texts, image_of_text = texts[kept], place[self.image_of_text[kept]]
        found = retrieval.recalls(images, texts, image_of_text, mesh=encoder.mesh)
        if self.equal.exist:
            equal = EqualItems(
                first_equal(self.equal.images[numbers].tolist()),
                first_equal(self.equal.texts[kept].tolist()),
            )
            found |= retrieval.recalls_with_equal(
                images, texts, image_of_text, equal, mesh=encoder.mesh
            )
        return found

    def answers(self, encoder: Encoder, store: FeatureStore, count: int) -> Answers:
        """Return some images with the captions that fit them best.

        Captions that equal one of an image's own are true as well: they cannot be told apart.
        """
        images, numbers, texts = self._embed(encoder, store)
        features = np.zeros((len(self.images), images.shape[1]), np.float32)
        features[numbers] = images
        pairs = np.stack([self.equal.images[self.image_of_text], self.equal.texts])
        of_first = retrieval.padded(*np.unique(pairs, axis=1), len(self.images))
        truth = np.full_like(of_first, -1)
        truth[numbers] = of_first[self.equal.images[numbers]]
        texts = texts[self.equal.texts]
        return answer(self.images, encoder, features, texts, self.captions, truth, count)

    def contents(self) -> dict[str, Any]:
        """Return the number of pairs, and what was left out."""
        several = {"captions": len(self.captions)} if len(self.captions) != len(self.images) else {}
        return {
            "pairs": len(self.images) - len(self.unreadable),
            **several,
            "fingerprint": self.images.fingerprint,
            "skipped": self.left_out,
            "unreadable": self.unreadable,
        }

    def chance(self) -> dict[str, float]:
        """Return recalls of a random ranking."""
        found = retrieval.chance_recalls(self.image_of_text, len(self.images))
        if self.equal.exist:
            found |= retrieval.chance_recalls_with_equal(self.image_of_text, self.equal)
        return found

    @functools.cached_property
    def equal(self) -> EqualItems:
        """Which images and which captions are equal."""
        images = np.arange(len(self.images)) if self.first_image is None else self.first_image
        return EqualItems(images, first_equal([caption.strip() for caption in self.captions]))

    def _embed(
        self, encoder: Encoder, store: FeatureStore
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return embeddings of the readable images, which these are, and of all captions."""
        found = compute_features(self.images, encoder, store, self.name)
        self.unreadable = found.unreadable
        texts = store.embed_texts(encoder, self.captions, f"{self.name} captions")
        return encoder.project_image(found.features), found.numbers, texts


def pairs_of_source(name: str, source: Source) -> PairSet:
    """Return the pairs of a data SPEC; an image may have several captions."""
    keys, contents, captions, owners = [], [], [], []
    for number, (name_of_record, record) in enumerate(named_records(source)):
        keys.append(name_of_record)
        contents.append(hashlib.sha256(record.image).digest() if record else number)
        for caption in captions_of(record) if record else ():
            captions.append(caption)
            owners.append(number)
    return PairSet(
        name,
        from_source(source, keys),
        captions,
        np.array(owners),
        source.skipped,
        first_image=first_equal(contents),
    )


def captions_of(record: Record) -> list[str]:
    """Return the list `captions` of a record's metadata if there is one, else all its captions."""
    listed = record.metadata.get("captions")
    cleaned = clean_captions(listed) if isinstance(listed, list) else ()
    return list(cleaned or record.captions)


def pairs_of_tables(name: str, tables: Sequence[Table]) -> PairSet:
    """Return the pairs of `csv:`; rows that name the same file are captions of one image."""
    first_row: dict[object, tuple[int, int]] = {}
    captions_of_image: dict[object, list[str]] = {}
    skipped: Counter[str] = Counter()
    for table, opened in enumerate(tables):
        skipped.update(opened.skipped)
        for number in range(len(opened)):
            row = opened.row(number)
            image = (table, number) if row.image is None else row.image
            first_row.setdefault(image, (table, number))
            captions_of_image.setdefault(image, []).extend(row.captions)
    captions = [(n, text) for n, each in enumerate(captions_of_image.values()) for text in each]
    return PairSet(
        name,
        from_rows(tables, list(first_row.values())),
        [text for _, text in captions],
        np.array([number for number, _ in captions]),
        dict(skipped),
    )
