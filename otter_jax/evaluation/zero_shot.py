"""Zero-shot classification: rank all class names for every image by cosine similarity."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from otter_jax.evaluation import metrics

DEFAULT_TEMPLATE = "a photo of {}."
KS = (1, 5, 10)


def class_bank(
    encode_text: Callable[[list[str]], np.ndarray],
    class_names: Sequence[str],
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
) -> np.ndarray:
    """One unit embedding a class: the mean over templates of its prompts' unit embeddings.

    Args:
      encode_text: texts to unit rows [m, d].
      class_names: what is put in place of {}.
      templates: prompts with a {} each.

    Returns:
      float32 [len(class_names), d].

    Raises:
      ValueError: for a template without {}, no classes, or a blank class name.
    """
    if not class_names:
        raise ValueError("there are no class names to rank")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"the template {template!r} has no {{}} for the class name")
    for number, name in enumerate(class_names):
        if not name.strip():
            raise ValueError(f"class {number} has a blank name")
    banks = [encode_text([t.replace("{}", name) for name in class_names]) for t in templates]
    mean = np.mean(np.asarray(banks, np.float32), axis=0)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def rank_classes(
    image_features: np.ndarray, bank: np.ndarray, k: int, *, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k best classes of every image; of equal ones the lower number comes first.

    Args:
      image_features: float [n, d], unit rows.
      bank: float [C, d], unit rows.
      k: how many; all C where there are fewer.
      block: images a matrix product, so that n x C similarities never exist at once.

    Returns:
      int32 [n, k] and their cosine similarities float32 [n, k], best first.

    Raises:
      ValueError: if rows are not unit rows, or the widths differ.
    """
    check_unit_rows("image features", image_features)
    check_unit_rows("class bank", bank)
    if image_features.shape[1] != bank.shape[1]:
        raise ValueError(f"image features of width {image_features.shape[1]}, bank {bank.shape[1]}")
    block = min(block, max(len(image_features), 1))
    classes = jnp.asarray(bank, jnp.float32)
    parts = [
        [np.asarray(x)[:count] for x in _top(rows, classes, min(k, len(bank)))]
        for rows, count in padded_blocks(np.asarray(image_features, np.float32), block)
    ]
    scores, ranked = (np.concatenate(part) for part in zip(*parts, strict=True))
    return ranked.astype(np.int32), scores


@functools.partial(jax.jit, static_argnums=2)
def _top(rows: jax.Array, bank: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(jnp.matmul(rows, bank.T, precision="highest"), k)


def evaluate(
    image_features: np.ndarray, bank: np.ndarray, labels: np.ndarray, ks: Sequence[int] = KS
) -> dict[str, float]:
    """`{"hit@1": share, ...}` of images [n, d] against classes [C, d]; see metrics.hit_at_k."""
    ranked, _ = rank_classes(image_features, bank, max(ks))
    return {f"hit@{k}": value for k, value in metrics.hit_at_k(ranked, labels, ks).items()}


def padded_blocks(rows: np.ndarray, block: int) -> list[tuple[np.ndarray, int]]:
    """Blocks of exactly `block` rows, zeros at the end, each with its number of real rows."""
    blocks = []
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        blocks.append((np.pad(part, ((0, block - len(part)), (0, 0))), len(part)))
    return blocks


def check_unit_rows(name: str, rows: np.ndarray) -> None:
    """Refuses rows that are not of length 1 within 1e-3, NaN among them (ValueError)."""
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"{name} should be [n, d] with n > 0, found shape {rows.shape}")
    lengths = np.linalg.norm(np.asarray(rows, np.float32), axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1.0) < 1e-3))
    if len(wrong):
        raise ValueError(f"{name}: row {wrong[0]} has length {lengths[wrong[0]]}, expected 1")
