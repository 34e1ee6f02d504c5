"""Towers in Flax NNX, and their pretrained weights."""

from otter_jax.models.pretrained import (
    create_image_tower,
    create_text_tower,
    find_pretrained,
    from_pretrained,
)
from otter_jax.models.weights import load_weights

__all__ = [
    "create_image_tower",
    "create_text_tower",
    "find_pretrained",
    "from_pretrained",
    "load_weights",
]
