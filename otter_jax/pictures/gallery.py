"""The pictures of a run: what the soft targets match with what, and what the model answers."""

from pathlib import Path
from typing import Any

import numpy as np

from otter_jax.data import images
from otter_jax.data.sources import Source
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.features import FeatureStore
from otter_jax.json_files import read_json_lines
from otter_jax.pictures import curves, figures

PAIRS_SHOWN = 20
IMAGES_SHOWN = 24
THUMBNAIL = 96


def linked_groups(target: np.ndarray, count: int, group_size: int = 4) -> np.ndarray:
    """Group the pairs that a soft target links, one group after the other.

    A group is a pair and those to which its image's target gives most. Groups are ordered by their
    weakest link, and what is shown is spread evenly over the stronger half: from near copies to
    mere likeness.

    Args:
        target: row-stochastic [N, N].
        count: how many pairs are wanted.
        group_size: pairs a group.

    Returns:
        int [min(count, N)], distinct.
    """
    links = np.where(np.eye(len(target), dtype=bool), 0.0, target)
    partners = np.argsort(-links, axis=1, kind="stable")[:, : group_size - 1]
    weakest = np.take_along_axis(links, partners, axis=1)[:, -1]
    groups: list[list[int]] = []
    taken: set[int] = set()
    for anchor in np.argsort(-weakest, kind="stable"):
        group = [int(anchor), *partners[anchor].tolist()]
        if not taken & set(group):
            groups.append(group)
            taken |= set(group)
    wanted = min(count // group_size, len(groups))
    strong = groups[: max(wanted, len(groups) // 2)]
    spread = np.linspace(0, len(strong) - 1, wanted).astype(int)
    chosen = dict.fromkeys(number for place in spread for number in strong[place])
    return np.array(list(chosen | dict.fromkeys(range(len(target))))[:count])


def draw_curves(folder: Path, metrics: Path) -> None:
    """Draw loss.png and evaluation.png of what a run's metrics.jsonl has of them."""
    lines = read_json_lines(metrics)
    if losses := curves.loss_curves(lines):
        curves.draw_loss(folder / "loss.png", losses)
    if evaluations := curves.evaluation_curves(lines):
        curves.draw_evaluation(folder / "evaluation.png", evaluations)


def draw_batch_targets(
    folder: Path, source: Source, records: np.ndarray, target: np.ndarray, encoder: Encoder
) -> None:
    """Draw soft_targets.png: the most linked pairs of one batch, and how their target is spread.

    Args:
        folder: where to draw.
        source: the training pairs.
        records: [N] which of them are in the batch.
        target: [N, N] soft target of images over texts, computed on the whole batch.
        encoder: for its image size.
    """
    shown = linked_groups(target, PAIRS_SHOWN)
    pairs = [source[int(number)] for number in records[shown]]
    thumbnails = [
        images.evaluation_transform(images.decode(pair.image), THUMBNAIL, fit=encoder.fit)
        for pair in pairs
    ]
    figures.draw_targets(
        folder / "soft_targets.png",
        np.stack(thumbnails),
        [pair.caption for pair in pairs],
        target[np.ix_(shown, shown)],
        title=f"What the teacher matches with what: {len(shown)} pairs of a batch of {len(target)} "
        "(a row sums to 100 over the batch)",
    )


def draw_set(folder: Path, each: Any, encoder: Encoder, store: FeatureStore) -> None:
    """Draw predictions_SET.png: hits and misses of an evaluation set, with the best names."""
    shown, names, truth, ranked, scores = each.answers(encoder, store, IMAGES_SHOWN)
    figures.draw_predictions(
        folder / f"predictions_{file_name(each.name)}.png",
        shown,
        truth,
        [
            [(names[number], float(score)) for number, score in zip(row, values, strict=True)]
            for row, values in zip(ranked, scores, strict=True)
        ],
        title=f"{each.name}: hits, then misses, and the {ranked.shape[1]} best of {len(names):,} "
        "names",
    )


def file_name(name: str) -> str:
    """Return a set's name as part of a file name."""
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")
