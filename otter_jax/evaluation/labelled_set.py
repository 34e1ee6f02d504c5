"""Labelled images as a set: is a true class among the first of all classes, ranked by names?"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from otter_jax.data.templates import DEFAULT_TEMPLATE
from otter_jax.embedding.class_bank import class_bank
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.features import FeatureStore
from otter_jax.embedding.image_collections import compute_features
from otter_jax.evaluation import metrics, zero_shot
from otter_jax.evaluation.answers import Answers, answer
from otter_jax.evaluation.benchmarks.labelled import ZeroShotSet


class Counting(NamedTuple):
    """One way to count hits: which classes are ranked, and what is true of every image."""

    classes: np.ndarray  # int [c], numbers of classes.
    labels: np.ndarray  # int [n, L], places in `classes`, padded with -1.


@dataclasses.dataclass
class LabelledSet:
    """Zero-shot ranking of labelled images.

    Attributes:
        labelled: the images and classes.
        templates: prompts with a {} each.
        names: `joined` puts a class's names into one prompt, "a,or b,or c", as OTTER's release;
            `averaged` gives each name prompts of its own and averages them.
    """

    labelled: ZeroShotSet
    templates: Sequence[str] = (DEFAULT_TEMPLATE,)
    names: str = "joined"
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The set's SPEC."""
        return self.labelled.name

    @cached_property
    def countings(self) -> Mapping[str, Counting]:
        """Ways to count hits, by the prefix of their metrics; the published one has none.

        Classes that share their names have one embedding, and the lower number comes first. Where
        there are such, `merged_` counts them as one class that is true if any of them is.
        """
        every = np.arange(len(self.labelled.class_names))
        all_labels = {"": self.labelled.labels, **self.labelled.other_labels}
        ways = {prefix: Counting(every, labels) for prefix, labels in all_labels.items()}
        first: dict[tuple[str, ...], int] = {}
        twin = np.array([first.setdefault(n, len(first)) for n in self.labelled.class_names])
        if len(first) < len(every):
            labels = self.labelled.labels
            _, classes = np.unique(twin, return_index=True)
            ways["merged_"] = Counting(classes, np.where(labels < 0, -1, twin[labels]))
        return ways

    def evaluate(self, encoder: Encoder, store: FeatureStore) -> dict[str, float]:
        """Return flat hit@1, 2, 5, 10 of more classes than that, by every way to count."""
        images, numbers, bank = self._embed(encoder, store)
        return {
            prefix + metric: value
            for prefix, way in self.countings.items()
            for metric, value in zero_shot.evaluate(
                images, bank[way.classes], way.labels[numbers], mesh=encoder.mesh
            ).items()
        }

    def answers(self, encoder: Encoder, store: FeatureStore, count: int) -> Answers:
        """Return some images with the class names that fit them best."""
        images, numbers, bank = self._embed(encoder, store)
        features = np.zeros((len(self.labelled.images), images.shape[1]), np.float32)
        features[numbers] = images
        labels = np.full_like(self.labelled.labels, -1)
        labels[numbers] = self.labelled.labels[numbers]
        names = [", ".join(names) for names in self.labelled.class_names]
        return answer(self.labelled.images, encoder, features, bank, names, labels, count)

    def contents(self) -> dict[str, Any]:
        """Return the number of images and of classes, and what was left out."""
        labelled = (self.labelled.labels >= 0).any(axis=1)
        counts = {
            "images": len(labelled),
            "classes": len(self.labelled.class_names),
            "images without a label": int((~labelled).sum()),
            "classes of another's name": len(self.labelled.class_names)
            - len(set(self.labelled.class_names)),
        }
        left_out = {"left_out": dict(self.labelled.left_out), "unreadable": self.unreadable}
        return {key: count for key, count in counts.items() if count} | left_out

    def chance(self) -> dict[str, float]:
        """Return the hits of a random ranking."""
        return {
            f"{prefix}hit@{k}": value
            for prefix, way in self.countings.items()
            for k, value in metrics.chance_hit_at_k(
                len(way.classes), way.labels, metrics.telling(zero_shot.KS, len(way.classes))
            ).items()
        }

    def _embed(
        self, encoder: Encoder, store: FeatureStore
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the embeddings of the readable images, their numbers, and the class bank."""
        found = compute_features(self.labelled.images, encoder, store, self.name)
        self.unreadable = found.unreadable
        names = self.labelled.class_names
        bank = class_bank(
            lambda texts: store.embed_texts(encoder, texts, f"{self.name} class names"),
            [",or ".join(each) for each in names] if self.names == "joined" else names,
            self.templates,
        )
        return encoder.project_image(found.features), found.numbers, bank
