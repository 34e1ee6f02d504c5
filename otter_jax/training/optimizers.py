"""Learning rate and optimizer of a run, on optax's own parts."""

import jax
import optax
from ml_collections import ConfigDict


def make_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up, then cosine to zero.

    Raises:
        ValueError: if the warm-up is not shorter than the run.
    """
    optimizer = config.optimizer
    if optimizer.warmup_steps >= total_steps:
        raise ValueError(
            f"config.optimizer.warmup_steps={optimizer.warmup_steps}: "
            f"it must be less than the {total_steps} steps of the run; "
            "for a short trial add --config.optimizer.warmup_steps=0"
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if optimizer.warmup_steps else optimizer.learning_rate,
        peak_value=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
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
