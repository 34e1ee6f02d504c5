"""Time and memory of the evaluation at the papers' scale, on the devices that JAX finds.

    python benchmarks/evaluation.py [hits] [retrieval] [probe] [--fraction=1.0] [--sklearn]

  hits       125,000 images x 19,958 classes, 768 wide, 1 to 8 labels an image: hit@1, 5 and 10
  retrieval  50,000 images x 250,000 captions, 768 wide, in both directions
  probe      one L-BFGS fit at growing sizes

Features are random unit rows. `bad` model: labels are random too. `good` model: 70 % of the images
have one of their labels among the first ten, about as OTTER's on Open Images. --sklearn measures
scikit-learn as well: brute-force kneighbors, once for each k, as OTTER's released evaluation calls
it; its logistic regression. --fraction takes that part of the images only. Every line is measured
in a process of its own, whose peak memory is shown, all of it: features, program and results.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

WIDTH, CLASSES, IMAGES = 768, 19_958, 125_000
TEXTS, PICTURES = 250_000, 50_000
KS = (1, 5, 10)
PROBES = ((5_000, 512, 100), (10_000, 512, 100), (20_000, 512, 100), (20_000, 1024, 200))


class Clock:
    """Measures from when it is made, by the wall and by the processors' time of all threads."""

    def __init__(self) -> None:
        """Start the clock of the wall and that of the CPU."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self) -> str:
        """Return the seconds of both clocks, for a table."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return f"{wall:8.2f} s, {cpu:8.2f} s of CPU"


def unit_rows(count: int, seed: int) -> np.ndarray:
    """Return random unit rows [count, WIDTH], made in place."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, WIDTH), dtype=np.float32)
    rows /= np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return rows


def blend(rows: np.ndarray, others: np.ndarray, numbers: np.ndarray, weight: float) -> None:
    """Move rows towards others[numbers], block by block; they stay unit rows."""
    for start in range(0, len(rows), 4096):
        block = slice(start, start + 4096)
        moved = rows[block] + weight * others[numbers[block]]
        rows[block] = moved / np.sqrt(np.einsum("nd,nd->n", moved, moved))[:, None]


def make_hits(fraction: float, good: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the image features, the class bank and the labels."""
    images, bank = unit_rows(int(fraction * IMAGES), 0), unit_rows(CLASSES, 1)
    rng = np.random.default_rng(2)
    labels = rng.integers(0, CLASSES, size=(len(images), 8))
    labels[np.arange(8) >= rng.integers(1, 9, size=(len(images), 1))] = -1
    if good:
        better = rng.random(len(images)) < 0.7
        part = images[better]
        blend(part, bank, labels[better, 0], 0.18)
        images[better] = part
    return images, bank, labels


def measure_hits(library: str, model: str, fraction: float) -> str:
    """Return the seconds for hit@1, 5 and 10, and the hits."""
    images, bank, labels = make_hits(fraction, model == "good")
    clock = Clock()
    if library == "otter_jax":
        from otter_jax.evaluation import zero_shot

        found = zero_shot.evaluate(images, bank, labels, KS)
    else:
        from sklearn.neighbors import NearestNeighbors

        nearest = NearestNeighbors(algorithm="brute").fit(bank)
        found = {}
        for k in KS:
            ranked = nearest.kneighbors(images, n_neighbors=k, return_distance=False)
            hit = (ranked[:, :, None] == labels[:, None, :]).any(axis=(1, 2))
            found[f"hit@{k}"] = hit.mean()
    return f"{clock()}  " + "  ".join(f"{k} {100 * v:.3f} %" for k, v in found.items())


def measure_retrieval(model: str, fraction: float) -> str:
    """Return the seconds for recall@1, 5 and 10 in both directions."""
    images, texts = unit_rows(int(fraction * PICTURES), 0), unit_rows(int(fraction * TEXTS), 1)
    owners = np.arange(len(texts)) * len(images) // len(texts)
    if model == "good":
        blend(texts, images, owners, 0.16)
    from otter_jax.evaluation import retrieval

    clock = Clock()
    found = retrieval.recalls(images, texts, owners)
    return f"{clock()}  " + "  ".join(f"{k} {100 * v:.1f} %" for k, v in found.items())


def measure_probe(library: str, count: int, width: int, classes: int) -> str:
    """Return the seconds for one fit with L2 = 1, after one that compiles, and its accuracy."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, width)).astype(np.float32)
    labels = rng.integers(0, classes, size=count)
    noise = rng.standard_normal((count, width), dtype=np.float32)
    features = np.maximum(0.25 * centres[labels] + noise, 0)
    train, test = slice(0, count * 4 // 5), slice(count * 4 // 5, count)

    def fit() -> np.ndarray:
        if library == "sklearn":
            from sklearn.linear_model import LogisticRegression

            model = LogisticRegression(C=1.0, max_iter=1000).fit(features[train], labels[train])
            return model.predict(features[test])
        from otter_jax.evaluation import logistic_regression

        weights = logistic_regression.fit(features[train], labels[train], classes, 1.0)
        return logistic_regression.predict(weights, features[test]).argmax(axis=1)

    if library == "otter_jax":
        fit()
    clock = Clock()
    predicted = fit()
    return f"{clock()}  accuracy {100 * (predicted == labels[test]).mean():.1f} %"


MEASURES: dict[str, Callable[..., str]] = {
    "hits": lambda library, model, fraction: measure_hits(library, model, float(fraction)),
    "retrieval": lambda model, fraction: measure_retrieval(model, float(fraction)),
    "probe": lambda library, *sizes: measure_probe(library, *map(int, sizes)),
}


def in_child(*arguments: str) -> None:
    """Print what a child process measures, and its peak memory."""
    command = [sys.executable, __file__, "--measure", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(f"{' '.join(arguments):34}{output.rstrip()}", flush=True)


def main() -> None:
    """Run what is asked for, one line at a time."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=list(MEASURES))
    parser.add_argument("--fraction", default="1.0")
    parser.add_argument("--sklearn", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, *arguments = options.what
        text = MEASURES[name](*arguments)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{text}  peak {peak:.2f} GiB")
        return
    libraries = ["otter_jax", "sklearn"] if options.sklearn else ["otter_jax"]
    if "hits" in options.what:
        for library in libraries:
            for model in ("bad", "good"):
                in_child("hits", library, model, options.fraction)
    if "retrieval" in options.what:
        for model in ("bad", "good"):
            in_child("retrieval", model, options.fraction)
    if "probe" in options.what:
        for sizes in PROBES:
            for library in libraries:
                in_child("probe", library, *map(str, sizes))


if __name__ == "__main__":
    main()
