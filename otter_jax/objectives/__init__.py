"""Objectives: embeddings in, one scalar and its parts out; no Flax, no config, no data.

`total_loss` and `make_options` are the whole interface.
"""

from otter_jax.objectives.contrastive import Directions, Embeddings, normalize
from otter_jax.objectives.losses import LogScales, soft_targets, total_loss
from otter_jax.objectives.options import OBJECTIVES, Options, make_options

__all__ = [
    "OBJECTIVES",
    "Directions",
    "Embeddings",
    "LogScales",
    "Options",
    "make_options",
    "normalize",
    "soft_targets",
    "total_loss",
]
