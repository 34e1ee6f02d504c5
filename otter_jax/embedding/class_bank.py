"""Class names as embeddings: the mean of the prompts that are made of them."""

from collections.abc import Callable, Sequence

import numpy as np

from otter_jax.data.templates import DEFAULT_TEMPLATE, check_templates


def class_bank(
    encode_text: Callable[[list[str]], np.ndarray],
    class_names: Sequence[str | Sequence[str]],
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
) -> np.ndarray:
    """Return one unit embedding a class: the mean of its prompts' unit embeddings, made unit again.

    A class has as many prompts as templates; with several names, as many for each of them.

    Args:
        encode_text: texts to unit rows [m, d].
        class_names: what is put in place of {}: one name a class, or several that are averaged.
        templates: prompts with a {} each.

    Returns:
        float32 [len(class_names), d].

    Raises:
        ValueError: for a template without {}, no classes, a blank name, or a class whose prompts
            cancel out.
    """
    check_templates(templates)
    check_class_names(class_names)
    lists = [[names] if isinstance(names, str) else list(names) for names in class_names]
    flat = [name for names in lists for name in names]
    starts = np.cumsum([0, *map(len, lists)])[:-1]
    total = np.float32(0.0)
    for template in templates:  # One at a time: 80 templates of 20,000 classes are 5 GB.
        rows = encode_text([template.replace("{}", name) for name in flat])
        total = total + (rows if len(flat) == len(lists) else np.add.reduceat(rows, starts, axis=0))
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    if not (lengths > 1e-6).all():
        zero = int(np.flatnonzero(~(lengths[:, 0] > 1e-6))[0])
        raise ValueError(f"the prompts of class {zero} ({lists[zero][0]!r}) have no mean direction")
    return (total / lengths).astype(np.float32)


def check_class_names(class_names: Sequence[str | Sequence[str]]) -> None:
    """Refuse no classes, and a class without a name (ValueError naming the first)."""
    if not len(class_names):
        raise ValueError("there are no class names to rank")
    for number, names in enumerate(class_names):
        several = [names] if isinstance(names, str) else names
        if not several or not all(name.strip() for name in several):
            raise ValueError(f"class {number} has a blank name")
