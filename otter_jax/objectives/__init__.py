"""Objectives: embeddings in, one scalar and its parts out; no Flax, no config, no data.

`make_options` says which; `total_loss` computes those of one view and `declip_loss` those of
several (`Options.uses_views`).
"""

from otter_jax.objectives.contrastive import Directions, Embeddings, normalize
from otter_jax.objectives.declip import Views, check_queue, clip_log_scale, declip_loss
from otter_jax.objectives.losses import LogScales, soft_targets, total_loss
from otter_jax.objectives.nearest_neighbor import Queue, make_queue
from otter_jax.objectives.options import OBJECTIVES, Options, make_options

__all__ = [
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
    "soft_targets",
    "total_loss",
]
