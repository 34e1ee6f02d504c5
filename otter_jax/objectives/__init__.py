"""Objectives: embeddings in, one scalar and its metrics out; no Flax, no config, no data.

`make_method` says which; `total_loss` computes those of one view and `declip_loss` those of several
(`Method.uses_views`).
"""

from otter_jax.objectives.contrastive import (
    MAX_SCALE,
    Directions,
    Embeddings,
    clip_log_scale,
    normalize,
    scale_from_log,
)
from otter_jax.objectives.declip import ViewOutputs, check_queue, declip_loss
from otter_jax.objectives.losses import LogScales, known_groups, soft_targets, total_loss
from otter_jax.objectives.methods import (
    METHODS,
    PAIR_WEIGHTS,
    Method,
    SoftTargets,
    make_method,
    register,
)
from otter_jax.objectives.nearest_neighbor import Queue, make_queue
from otter_jax.objectives.self_supervision import token_losses

__all__ = [
    "MAX_SCALE",
    "METHODS",
    "PAIR_WEIGHTS",
    "Directions",
    "Embeddings",
    "LogScales",
    "Method",
    "Queue",
    "SoftTargets",
    "ViewOutputs",
    "check_queue",
    "clip_log_scale",
    "declip_loss",
    "known_groups",
    "make_method",
    "make_queue",
    "normalize",
    "register",
    "scale_from_log",
    "soft_targets",
    "token_losses",
    "total_loss",
]
