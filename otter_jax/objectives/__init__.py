"""Objectives: embeddings in, one scalar and its parts out; no Flax, no config, no data.

`make_options` says which; `total_loss` computes those of one view and `declip_loss` those of
several (`Options.uses_views`).
"""

from otter_jax.objectives.contrastive import (
    MAX_SCALE,
    Directions,
    Embeddings,
    clip_log_scale,
    normalize,
    scale_from_log,
)
from otter_jax.objectives.declip import Views, check_queue, declip_loss
from otter_jax.objectives.losses import LogScales, soft_targets, total_loss
from otter_jax.objectives.nearest_neighbor import Queue, make_queue
from otter_jax.objectives.options import OBJECTIVES, Options, make_options
from otter_jax.objectives.self_supervision import token_losses

__all__ = [
    "MAX_SCALE",
    "OBJECTIVES",
    "Directions",
    "Embeddings",
    "LogScales",
    "Options",
    "Queue",
    "Views",
    "check_queue",
    "clip_log_scale",
    "declip_loss",
    "make_options",
    "make_queue",
    "normalize",
    "scale_from_log",
    "soft_targets",
    "token_losses",
    "total_loss",
]
