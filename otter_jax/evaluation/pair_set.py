"""Held-out pairs as a set: does an image find a caption of its own among all, and the reverse?"""

import dataclasses
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


@dataclasses.dataclass
class PairSet:
    """Retrieval among images and their captions.

    Attributes:
        name: the set's SPEC.
        images: the images.
        captions: all captions.
        image_of_text: int [len(captions)], the image each belongs to.
        left_out: what was left out, by reason.
    """

    name: str
    images: ImageCollection
    captions: list[str]
    image_of_text: np.ndarray
    left_out: dict[str, int]
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)

    def evaluate(self, encoder: Encoder, store: FeatureStore) -> dict[str, float]:
        """Return Recall@1, 5, 10 in both directions, among what can be read."""
        images, numbers, texts = self._embed(encoder, store)
        place = np.full(len(self.images), -1)
        place[numbers] = np.arange(len(numbers))
        image_of_text = place[self.image_of_text]
        kept = image_of_text >= 0
        return retrieval.recalls(images, texts[kept], image_of_text[kept], mesh=encoder.mesh)

    def answers(self, encoder: Encoder, store: FeatureStore, count: int) -> Answers:
        """Return some images with the captions that fit them best."""
        images, numbers, texts = self._embed(encoder, store)
        features = np.zeros((len(self.images), images.shape[1]), np.float32)
        features[numbers] = images
        truth = np.full_like(own_texts := self._texts_of_images(), -1)
        truth[numbers] = own_texts[numbers]
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
        return retrieval.chance_recalls(self.image_of_text, len(self.images))

    def _texts_of_images(self) -> np.ndarray:
        return retrieval.texts_of_images(self.image_of_text, len(self.images))

    def _embed(
        self, encoder: Encoder, store: FeatureStore
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return embeddings of the readable images, which these are, and of all captions."""
        found = compute_features(self.images, encoder, store, self.name)
        self.unreadable = found.unreadable
        texts = store.embed_texts(encoder, self.captions)
        return encoder.project_image(found.features), found.numbers, texts


def pairs_of_source(name: str, source: Source) -> PairSet:
    """Return the pairs of a data SPEC; an image may have several captions."""
    keys, captions, owners = [], [], []
    for number, (name_of_record, record) in enumerate(named_records(source)):
        keys.append(name_of_record)
        for caption in captions_of(record) if record else ():
            captions.append(caption)
            owners.append(number)
    return PairSet(name, from_source(source, keys), captions, np.array(owners), source.skipped)


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
