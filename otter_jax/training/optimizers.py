"""Learning rate and optimizer of a run, on optax's own parts."""

import jax
import optax
from ml_collections import ConfigDict

from otter_jax.terminal import say


def make_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, then cosine to zero.

    A warm-up that is no shorter than the run, as in a short trial, is cut to a tenth of it.
    """
    if total_steps == 0:
        return optax.constant_schedule(0.0)
    optimizer = config.optimizer
    warmup_steps = optimizer.warmup_steps
    if warmup_steps >= total_steps:
        warmup_steps = total_steps // 10
        say(
            f"config.optimizer.warmup_steps={optimizer.warmup_steps} is no less than the "
            f"{total_steps} steps of the run: {warmup_steps} are taken"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else optimizer.learning_rate,
        peak_value=optimizer.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
    )


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return SGD with momentum or AdamW; weight decay spares biases, norms and scales."""
    optimizer = config.optimizer
    decay = optax.add_decayed_weights(
        optimizer.weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    )
    clip = optax.identity()
    if optimizer.gradient_clip is not None:
        clip = optax.clip_by_global_norm(optimizer.gradient_clip)
    if optimizer.name == "sgd":  # As in PyTorch, the decay enters the momentum.
        return optax.chain(clip, decay, optax.sgd(schedule, momentum=optimizer.momentum))
    adam = optax.scale_by_adam(b1=optimizer.momentum, b2=optimizer.b2)
    return optax.chain(clip, adam, decay, optax.scale_by_learning_rate(schedule))
