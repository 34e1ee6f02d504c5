"""The sets a run is evaluated on: pairs give retrieval, labelled images give zero-shot ranking."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from otter_jax.data import images
from otter_jax.data.sources import Source, open_source
from otter_jax.encoder import Encoder
from otter_jax.evaluation import benchmarks, metrics, retrieval, zero_shot
from otter_jax.features import FeatureStore, fingerprint
from otter_jax.reporting import progress

Metrics = dict[str, float]


class EvaluationSet(Protocol):
    """Anything a dual encoder can be measured on."""

    name: str

    def evaluate(self, encoder: Encoder, store: FeatureStore) -> Metrics:
        """`{metric: value}` of the encoder as it is now."""
        ...

    def chance(self) -> Metrics:
        """The same metrics of a random ranking."""
        ...

    def answers(self, encoder: Encoder, store: FeatureStore, count: int) -> "Answers":
        """What the encoder says of `count` images, spread evenly over the set."""
        ...

    def contents(self) -> dict[str, Any]:
        """What the set consists of, and what was left out and why, for data.json."""
        ...


class Answers(NamedTuple):
    """Some images and what a model ranks first for them."""

    images: np.ndarray  # uint8 [n, S, S, 3]
    names: Sequence[str]  # All that is ranked.
    truth: list[str]  # [n]
    ranked: np.ndarray  # int [n, 5], best first
    scores: np.ndarray  # float [n, 5]


def _answers(
    pixels: np.ndarray,
    image: np.ndarray,
    text: np.ndarray,
    names: Sequence[str],
    truth: Sequence[str],
    count: int,
) -> Answers:
    """The five best rows of `text` for some rows of `image`."""
    chosen = np.linspace(0, len(pixels) - 1, min(count, len(pixels))).astype(int)
    ranked, scores = zero_shot.rank_classes(image[chosen], text, min(5, len(names)))
    return Answers(pixels[chosen], names, [truth[number] for number in chosen], ranked, scores)


@dataclasses.dataclass
class PairSet:
    """Held-out pairs: does an image find its caption among all captions, and the reverse?"""

    name: str
    source: Source
    image_size: int
    fit: str

    @cached_property
    def _readable(self) -> tuple[np.ndarray, list[str], dict[str, str]]:
        """Transformed images, their captions, and why others cannot be read."""
        pixels, captions, unreadable = [], [], {}
        for number in range(len(self.source)):
            record = self.source[number]
            try:
                image = images.decode(record.image)
            except images.ImageError as error:
                unreadable[record.key] = str(error)
                continue
            pixels.append(images.evaluation_transform(image, self.image_size, fit=self.fit))
            captions.append(record.caption)
        if not pixels:
            raise ValueError(f"{self.name}: not one of {len(self.source)} images can be read")
        return np.stack(pixels), captions, unreadable

    @property
    def images(self) -> np.ndarray:
        """uint8 [N, image_size, image_size, 3]."""
        return self._readable[0]

    @property
    def captions(self) -> list[str]:
        """The caption of every image."""
        return self._readable[1]

    @property
    def unreadable(self) -> dict[str, str]:
        """Key of every record whose image cannot be read, and why."""
        return self._readable[2]

    def evaluate(self, encoder: Encoder, store: FeatureStore) -> Metrics:
        """Recall@1, 5, 10 in both directions."""
        return retrieval.recalls(*self._embed(encoder, store))

    def answers(self, encoder: Encoder, store: FeatureStore, count: int) -> Answers:
        """Some images with the captions that fit them best; right is the given one."""
        embeddings = self._embed(encoder, store)
        return _answers(self.images, *embeddings, self.captions, self.captions, count)

    def _embed(self, encoder: Encoder, store: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
        image = store.embed_images(
            encoder, self.source.fingerprint, lambda: _shown(self.images, self.name)
        )
        return image, store.embed_texts(encoder, self.captions)

    def contents(self) -> dict[str, Any]:
        """Number of pairs, and what was left out."""
        return {
            "pairs": len(self.captions),
            "fingerprint": self.source.fingerprint,
            "skipped": self.source.skipped,
            "unreadable": self.unreadable,
        }

    def chance(self) -> Metrics:
        """Recalls of a random ranking."""
        return retrieval.chance_recalls(len(self.captions))


@dataclasses.dataclass
class LabelledSet:
    """Labelled images: is a true class among the first of all classes, ranked by their names?"""

    labelled: benchmarks.ZeroShotSet
    template: str

    @cached_property
    def _fingerprint(self) -> str:
        """Of the pixels: hundreds of megabytes, so hashed once and not at every evaluation."""
        return fingerprint(self.labelled.images)

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.labelled.name

    def answers(self, encoder: Encoder, store: FeatureStore, count: int) -> Answers:
        """Some images with the class names that fit them best."""
        names, labels = self.labelled.class_names, self.labelled.labels
        truth = [" | ".join(names[label] for label in row if label >= 0) for row in labels]
        embeddings = self._embed(encoder, store)
        return _answers(self.labelled.images, *embeddings, names, truth, count)

    def evaluate(self, encoder: Encoder, store: FeatureStore) -> Metrics:
        """Flat hit@1, 5, 10."""
        return zero_shot.evaluate(*self._embed(encoder, store), self.labelled.labels)

    def contents(self) -> dict[str, Any]:
        """Number of images and classes, and what was left out."""
        return {
            "images": len(self.labelled.images),
            "classes": len(self.labelled.class_names),
            "left_out": self.labelled.left_out,
        }

    def chance(self) -> Metrics:
        """Hits of a random ranking."""
        hits = metrics.chance_hit_at_k(
            len(self.labelled.class_names), self.labelled.labels, (1, 5, 10)
        )
        return {f"hit@{k}": value for k, value in hits.items()}

    def _embed(self, encoder: Encoder, store: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
        image = store.embed_images(
            encoder, self._fingerprint, lambda: _shown(self.labelled.images, self.name)
        )
        bank = zero_shot.class_bank(
            lambda texts: store.embed_texts(encoder, texts),
            self.labelled.class_names,
            [self.template],
        )
        return image, bank


def _shown(images: np.ndarray, name: str) -> Iterator[np.ndarray]:
    """The images of a set one by one, with progress on the screen."""
    return progress(images, len(images), f"{name} images")


def open_sets(
    specs: list[str], *, image_size: int, fit: str, template: str
) -> Iterator[EvaluationSet]:
    """The sets that config.evaluate.sets names: benchmarks by name, pairs by their data SPEC.

    Raises:
      ValueError: for a name that is neither, listing what there is.
    """
    for spec in specs:
        if spec in benchmarks.BENCHMARKS:
            yield LabelledSet(benchmarks.load(spec, image_size), template)
        elif ":" in spec or spec == "open_clipart":
            yield PairSet(spec, open_source(spec, split="heldout"), image_size, fit)
        else:
            known = ", ".join(["open_clipart", *benchmarks.BENCHMARKS])
            raise ValueError(
                f"config.evaluate.sets: unknown set {spec!r}; "
                f"choose from {known} or webdataset:PATH"
            )
