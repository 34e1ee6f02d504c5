"""A linear probe and nearest neighbours as a set: what is a tower worth for classifying images?"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.features import FeatureStore, fingerprint
from otter_jax.embedding.image_collections import compute_features
from otter_jax.evaluation import linear_probe, logistic_regression, nearest_neighbors
from otter_jax.evaluation.answers import NAMES_SHOWN, Answers, choose
from otter_jax.evaluation.benchmarks.labelled import ZeroShotSet
from otter_jax.evaluation.benchmarks.own import load_folder
from otter_jax.evaluation.specs import EvaluationSpec
from otter_jax.terminal import say

OPTIONS = {"metric": ("accuracy", "mean_per_class"), "features": ("tower", "embedding")}
SPLITS = ("train", "val", "test")
NEIGHBORS = 20


@dataclasses.dataclass
class ProbeSet:
    """Training and test images of the same classes.

    Attributes:
        name: the set's SPEC.
        splits: `train`, `test` and perhaps `val`; labels are numbers of `train`'s classes.
        per_class: whether the metric is the mean over classes instead of over images.
        features: `tower` takes the image tower's, before the projection, as CLIP and DeCLIP do;
            `embedding` the ones behind it.
    """

    name: str
    splits: dict[str, ZeroShotSet]
    per_class: bool = False
    features: str = "tower"
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)
    _fitted: tuple[str, logistic_regression.Weights] | None = None

    @classmethod
    def open(cls, text: str) -> "ProbeSet":
        """Open `probe:folder:PATH`, with train/, test/ and perhaps val/ of a folder a class.

        Options are `?metric=mean_per_class` and `?features=embedding`.

        Raises:
            ValueError: for another kind, an unknown option, or a test class without training
                images.
            FileNotFoundError: for a missing folder.
        """
        spec = EvaluationSpec.parse(text.removeprefix("probe:"), tuple(OPTIONS))
        if spec.kind != "folder" or not spec.path:
            raise ValueError(f"{text}: a probe is written probe:folder:PATH, with train/ and test/")
        for option, value in spec.options.items():
            if value not in OPTIONS[option]:
                raise ValueError(f"{text}: {option} should be {' or '.join(OPTIONS[option])}")
        splits = open_splits(text, Path(spec.path))
        per_class = spec.options.get("metric") == "mean_per_class"
        return cls(text, splits, per_class, spec.options.get("features", "tower"))

    @property
    def metrics(self) -> tuple[str, str]:
        """The names of the probe's and the neighbours' metric."""
        kind = "mean_per_class" if self.per_class else "accuracy"
        return f"probe_{kind}", f"knn_{kind}"

    def evaluate(self, encoder: Encoder, store: FeatureStore) -> dict[str, float]:
        """Return the accuracy of the linear probe and of nearest neighbours on the test images."""
        test, labels, _ = self._features("test", encoder, store)
        probe = self._predict(encoder, store, test).argmax(axis=1)
        train, train_labels = self._known(encoder, store)
        classes = len(self.splits["train"].class_names)
        neighbors = nearest_neighbors.classify(
            train, train_labels, test, classes, NEIGHBORS, mesh=encoder.mesh
        )
        return {
            name: linear_probe.accuracy(predicted, labels, per_class=self.per_class)
            for name, predicted in zip(self.metrics, (probe, neighbors), strict=True)
        }

    def answers(self, encoder: Encoder, store: FeatureStore, count: int) -> Answers:
        """Return some test images with the classes that the probe finds most probable."""
        test, labels, numbers = self._features("test", encoder, store)
        probabilities = self._predict(encoder, store, test)
        ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :NAMES_SHOWN]
        chosen = choose((ranked[:, 0] != labels).astype(int), count)
        names = [", ".join(each) for each in self.splits["train"].class_names]
        images = self.splits["test"].images
        return Answers(
            images=np.stack([images.load(int(numbers[n]), encoder) for n in chosen]),
            names=names,
            truth=[names[labels[n]] for n in chosen],
            ranked=ranked[chosen],
            scores=np.take_along_axis(probabilities, ranked, axis=1)[chosen],
        )

    def contents(self) -> dict[str, Any]:
        """Return the number of images of every split, of classes, and what was left out."""
        return {
            **{f"{split} images": len(each.images) for split, each in self.splits.items()},
            "classes": len(self.splits["train"].class_names),
            "unreadable": self.unreadable,
        }

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess."""
        classes = len(self.splits["train"].class_names)
        return dict.fromkeys(self.metrics, linear_probe.chance_accuracy(classes))

    def _features(
        self, split: str, encoder: Encoder, store: FeatureStore
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the features [n, d], labels [n] and numbers [n] of a split's readable images."""
        labelled = self.splits[split]
        found = compute_features(labelled.images, encoder, store, f"{self.name} {split}")
        self.unreadable |= found.unreadable
        features = found.features
        if self.features == "embedding":
            features = encoder.project_image(features)
        return features, labelled.labels[found.numbers, 0], found.numbers

    def _known(self, encoder: Encoder, store: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
        """Return the features and labels of all images that are not tested on."""
        parts = [self._features(s, encoder, store) for s in self.splits if s != "test"]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _predict(self, encoder: Encoder, store: FeatureStore, test: np.ndarray) -> np.ndarray:
        """Return the probe's class probabilities; it is fitted once for each state of the tower."""
        known, labels = self._known(encoder, store)
        state = fingerprint(known)
        if self._fitted is None or self._fitted[0] != state:
            self._fitted = (state, self._fit(known, labels, encoder, store))
        return logistic_regression.predict(self._fitted[1], test)

    def _fit(
        self, known: np.ndarray, labels: np.ndarray, encoder: Encoder, store: FeatureStore
    ) -> logistic_regression.Weights:
        if "val" in self.splits:
            train = len(self._features("train", encoder, store)[0])
            validates = np.arange(len(known)) >= train
        else:
            validates = linear_probe.validation_split(labels)
        weights, step = linear_probe.search_and_fit(
            known,
            labels,
            validates,
            len(self.splits["train"].class_names),
            per_class=self.per_class,
            mesh=encoder.mesh,
        )
        say(f"{self.name}: L2 {linear_probe.l2_strength(step):.1e} is best in validation")
        return weights


def open_splits(text: str, folder: Path) -> dict[str, ZeroShotSet]:
    """Open the splits in a folder, all with the classes of `train`."""
    found = {split: folder / split for split in SPLITS if (folder / split).is_dir()}
    for split in ("train", "test"):
        if split not in found:
            raise FileNotFoundError(f"{text}: there is no folder {folder / split}")
    train = load_folder(text, found["train"])
    names = {label: number for number, label in enumerate(folder_names(train))}
    splits = {}
    for split, path in found.items():
        labelled = load_folder(text, path)
        own_names = folder_names(labelled)
        if unknown := [name for name in own_names if name not in names]:
            raise ValueError(f"{path}: class {unknown[0]!r} has no training images")
        number = np.array([names[name] for name in own_names])
        splits[split] = dataclasses.replace(
            labelled, labels=number[labelled.labels], class_names=train.class_names
        )
    return splits


def folder_names(labelled: ZeroShotSet) -> list[str]:
    """Return the folder of every class, in the order of the classes."""
    return sorted({key.split("/")[0] for key in labelled.images.keys})
