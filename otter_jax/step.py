"""The train step: embed, targets, loss, gradients, update, teacher.

One jitted function from (state, batch) to (state, metrics), over plain pytrees. Everything random
in it is drawn from the run's seed, a name and the step, so a resumed run draws the same.
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import objectives, sharding
from otter_jax.models.dual_encoder import Arrays, FunctionalModel, Variables

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a run is at one step."""

    step: jax.Array  # int32 scalar: how many updates have been made.
    variables: Variables
    opt_state: optax.OptState
    teacher: Arrays  # Moving average of variables.params; empty where no teacher is used.


def named_key(seed: int, name: str, step: jax.Array | int = 0) -> jax.Array:
    """The key for one purpose at one step; nothing in a run draws from any other."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)


def make_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine to zero."""
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
    """SGD with momentum or AdamW; weight decay spares biases, norms and scales."""
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


def initial_state(
    variables: Variables, optimizer: optax.GradientTransformation, *, uses_teacher: bool
) -> TrainState:
    """The state before the first step; the teacher starts as a copy of the student."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=optimizer.init(variables.params),
        teacher=jax.tree.map(jnp.copy, variables.params) if uses_teacher else {},
    )


def teacher_decay(step: jax.Array, decay: float, warmup: bool) -> jax.Array:
    """The moving average's decay before update `step`, counted from 0 (OTTER's released code)."""
    updates = step.astype(jnp.float32) + 1.0
    return jnp.minimum(decay, (1.0 + updates) / (10.0 + updates)) if warmup else jnp.float32(decay)


def move_average(average: Arrays, params: Arrays, decay: jax.Array) -> Arrays:
    """decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda a, p: (a + (1.0 - decay) * (p - a)).astype(a.dtype), average, params)


def make_train_step(
    model: FunctionalModel,
    options: objectives.Options,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The jitted step over `mesh`; the state it is given is consumed."""

    def embed_teacher(teacher: Arrays, state: TrainState, batch: Batch) -> objectives.Embeddings:
        variables = state.variables._replace(params=teacher)
        embeddings, _ = model.embed(
            variables,
            batch,
            train=config.teacher.train_mode,
            dropout_key=named_key(config.seed, "teacher dropout", state.step),
        )
        return objectives.Embeddings(*embeddings)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        variables, teacher, teacher_embeddings = state.variables, state.teacher, None
        if options.uses_teacher:
            decay = teacher_decay(state.step, config.teacher.decay, config.teacher.warmup)
            teacher = move_average(teacher, variables.params, decay)
            teacher_embeddings = embed_teacher(teacher, state, batch)

        def loss_of(params: Arrays) -> tuple[jax.Array, tuple[Metrics, Arrays]]:
            student, batch_stats = model.embed(
                variables._replace(params=params),
                batch,
                train=True,
                dropout_key=named_key(config.seed, "dropout", state.step),
            )
            log_scales = objectives.LogScales(
                params["log_scale"], params["distillation_log_scale"], params.get("logit_bias", 0.0)
            )
            loss, metrics = objectives.total_loss(
                options, objectives.Embeddings(*student), teacher_embeddings, log_scales, mesh
            )
            return loss, (metrics, batch_stats)

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, (metrics, batch_stats)), gradients = gradient(variables.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, variables.params)
        params = optax.apply_updates(variables.params, updates)
        metrics |= {"loss": loss, "learning_rate": schedule(state.step)}
        variables = variables._replace(params=params, batch_stats=batch_stats)
        return TrainState(state.step + 1, variables, opt_state, teacher), metrics

    # Every state array is whole on every device; said here, so that it stays so.
    return jax.jit(train_step, donate_argnums=0, out_shardings=sharding.replicated(mesh))


def make_target_step(
    model: FunctionalModel, options: objectives.Options, mesh: Mesh
) -> Callable[[TrainState, Batch], jax.Array]:
    """A jitted function that gives the soft targets of a batch, images over texts, [N, N]."""

    def targets_of(state: TrainState, batch: Batch) -> jax.Array:
        teacher = None
        if options.uses_teacher:
            variables = state.variables._replace(params=state.teacher)
            embeddings, _ = model.embed(variables, batch)
            teacher = objectives.Embeddings(*map(objectives.normalize, embeddings))
        num_pairs = next(iter(batch.values())).shape[0]
        return objectives.soft_targets(options, teacher, num_pairs).image

    return jax.jit(targets_of, out_shardings=sharding.replicated(mesh))
