"""The train step: embed, targets, loss, gradients, update, teacher.

One jitted function from (state, batch) to (state, metrics), over plain pytrees. Everything random
in it is drawn from the run's seed, a name and the step, so a resumed run draws the same.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import objectives, sharding
from otter_jax.models.dual_encoder import Arrays, FunctionalModel, Variables
from otter_jax.random_keys import named_key
from otter_jax.training import micro_batches

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

MEAN_LOSS_DECAY = 0.99  # Of the running mean that a loss is compared with.
# Metrics that only say whether the step was taken, see `make_train_step`.
VERDICT = ("finite", "exploded", "mean_loss")


class TrainState(NamedTuple):
    """All that a run is at one step."""

    step: jax.Array  # int32 scalar: how many updates have been made.
    variables: Variables
    opt_state: optax.OptState
    teacher: Arrays  # Moving average of variables.params; empty where no teacher is used.
    mean_loss: jax.Array  # float32 scalar: running mean; infinite until there is a first loss.
    memory: objectives.Queue | None = None  # Texts of earlier batches, where an objective asks.


def row_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """Return a key for each row, so that what is drawn for it does not depend on the rows beside it."""
    return jax.random.split(key, len(next(iter(batch.values()))))


def make_schedule(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """Return learning rate by step: linear warm-up, then cosine to zero."""
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


def initial_state(
    variables: Variables,
    optimizer: optax.GradientTransformation,
    *,
    uses_teacher: bool,
    memory: objectives.Queue | None = None,
) -> TrainState:
    """Return the state before the first step; the teacher starts as a copy of the student."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=optimizer.init(variables.params),
        teacher=jax.tree.map(jnp.copy, variables.params) if uses_teacher else {},
        mean_loss=jnp.float32(jnp.inf),
        memory=memory,
    )


def state_places(mesh: Mesh, state: TrainState, *, fsdp: bool) -> TrainState:
    """Return where each array of a state lives: whole on every device, or split over all of them.

    The memory is always split by rows. With `fsdp`, so is every large array of parameters, moments
    and teacher, see `sharding.parameter_place`.
    """
    places = sharding.state_places(mesh, state, fsdp=fsdp)
    if state.memory is None:
        return places
    whole = sharding.replicated(mesh)
    return places._replace(memory=objectives.Queue(sharding.split_rows(mesh), whole, whole))


def place_state(mesh: Mesh, state: TrainState, *, fsdp: bool) -> TrainState:
    """Return a state with its arrays where they belong."""
    return jax.device_put(state, state_places(mesh, state, fsdp=fsdp))


def at_step(opt_state: optax.OptState, step: jax.Array) -> optax.OptState:
    """Return the optimizer's state with its schedule at this step of the run.

    It counts its updates itself, but those that were left out, or that a rollback took back, were
    not made, and the learning rate should end where the run does.
    """

    def of_schedule(path: tuple, value: object) -> bool:
        return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"

    return optax.tree.set(opt_state, of_schedule, count=step)


def teacher_decay(step: jax.Array, decay: float, warmup: bool) -> jax.Array:
    """Return the moving average's decay before update `step`, counted from 0 (OTTER's released code)."""
    updates = step.astype(jnp.float32) + 1.0
    return jnp.minimum(decay, (1.0 + updates) / (10.0 + updates)) if warmup else jnp.float32(decay)


def move_average(average: Arrays, params: Arrays, decay: jax.Array | float) -> Arrays:
    """Return decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda a, p: (a + (1.0 - decay) * (p - a)).astype(a.dtype), average, params)


def next_mean_loss(mean: jax.Array, loss: jax.Array) -> jax.Array:
    """Return the running mean of the loss, which starts at the first one (float32 scalars)."""
    moved = move_average(mean, loss, MEAN_LOSS_DECAY)
    return jnp.where(jnp.isinf(mean), loss, moved).astype(jnp.float32)


def is_exploded(loss: jax.Array, mean: jax.Array, max_ratio: float) -> jax.Array:
    """Return whether a loss is more than `max_ratio` (0: never) times its running mean, or times 1.

    The 1 is for losses near zero, or below, which may well grow many times over.
    """
    return loss > max_ratio * jnp.maximum(mean, 1.0) if max_ratio else jnp.array(False)


def make_train_step(
    model: FunctionalModel,
    options: objectives.Method,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: ConfigDict,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Return the jitted step over `mesh`; the state it is given is consumed.

    Three metrics say whether the step was taken: `finite`, whether loss, gradients and updates are;
    `exploded`, whether the loss is too far above its running mean before the step, `mean_loss` (see
    `is_exploded`). Where a step is not finite or has exploded, the state stays as it was, but for
    its step: nothing of the batch ever enters it.
    """
    parts = _TrainStep(model, options, optimizer, schedule, config, mesh)
    return jax.jit(parts.train_step, donate_argnums=0)


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainStep:
    """What does not change from step to step."""

    model: FunctionalModel
    options: objectives.Method
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    config: ConfigDict
    mesh: Mesh

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Return teacher, loss and gradients, update; see `make_train_step`."""
        teacher, teacher_embeddings = state.teacher, None
        if self.options.uses_teacher:
            teacher = self.move_teacher(state)
            teacher_embeddings = self.embed_teacher(teacher, state, batch)
        key = named_key(self.config.seed, "dropout", state.step)
        loss, (metrics, memory), batch_stats, gradients = micro_batches.value_and_gradients(
            functools.partial(self.embed_student, state.variables),
            functools.partial(self.loss, state, batch, teacher_embeddings),
            state.variables.params,
            state.variables.batch_stats,
            batch | {"dropout_keys": row_keys(key, batch)},
            num_parts=self.num_parts,
            mesh=self.mesh,
        )
        params, opt_state, updates = self.update(state, gradients)
        metrics |= {"loss": loss, "learning_rate": self.schedule(state.step)}
        # One number that is finite where all of them are.
        finite = jnp.isfinite(loss + optax.tree.norm(gradients) + optax.tree.norm(updates))
        exploded = is_exploded(loss, state.mean_loss, self.config.max_loss_ratio)
        metrics |= {"finite": finite, "exploded": exploded, "mean_loss": state.mean_loss}
        variables = state.variables._replace(params=params, batch_stats=batch_stats)
        mean_loss = next_mean_loss(state.mean_loss, loss)
        updated = TrainState(state.step + 1, variables, opt_state, teacher, mean_loss, memory)
        unchanged = state._replace(step=state.step + 1)
        taken = finite & ~exploded
        state = jax.tree.map(lambda new, old: jnp.where(taken, new, old), updated, unchanged)
        # Where the arrays are is said here, so that it stays so.
        places = state_places(self.mesh, state, fsdp=self.config.fsdp)
        return jax.lax.with_sharding_constraint(
            (state, metrics), (places, sharding.replicated(self.mesh))
        )

    @property
    def num_parts(self) -> int:
        """In how many parts the rows of a batch go through the towers."""
        rows = self.config.micro_batch
        return 1 if rows is None else self.config.batch_size // rows

    def move_teacher(self, state: TrainState) -> Arrays:
        """Return the moving average of the student's parameters, with those of this step."""
        decay = teacher_decay(state.step, self.config.teacher.decay, self.config.teacher.warmup)
        return move_average(state.teacher, state.variables.params, decay)

    def embed_teacher(
        self, teacher: Arrays, state: TrainState, batch: Batch
    ) -> objectives.Embeddings:
        """Return the whole batch as the teacher sees it, [N, d] each."""
        key = named_key(self.config.seed, "teacher dropout", state.step)
        variables = state.variables._replace(params=teacher)

        def embed(rows: Batch) -> tuple[jax.Array, jax.Array]:
            train, keys = self.config.teacher.train_mode, rows["dropout_keys"]
            return self.model.embed(variables, rows, train=train, dropout_key=keys)[0]

        rows = batch | {"dropout_keys": row_keys(key, batch)}
        if self.num_parts == 1:
            return objectives.Embeddings(*embed(rows))
        parts = micro_batches.split_parts(rows, self.num_parts, self.mesh)
        return objectives.Embeddings(*micro_batches.join_parts(jax.lax.map(embed, parts)))

    def embed_student(
        self, variables: Variables, params: Arrays, batch_stats: Arrays, rows: Batch
    ) -> tuple[Metrics, Arrays]:
        """Return what the loss needs to know of some rows, and the batch statistics after them."""
        student = variables._replace(params=params, batch_stats=batch_stats)
        outputs, batch_stats = self.model.views(
            student, rows, train=True, dropout_key=rows["dropout_keys"]
        )
        if (logits := outputs.pop("mlm_logits", None)) is not None:
            # Of all that is kept for the whole batch, scores of a vocabulary would be the most.
            outputs["mlm_losses"] = objectives.token_losses(logits, rows["masked_labels"])
        return outputs, batch_stats

    def loss(
        self,
        state: TrainState,
        batch: Batch,
        teacher: objectives.Embeddings | None,
        outputs: dict[str, jax.Array],
        params: Arrays,
    ) -> tuple[jax.Array, tuple[Metrics, objectives.Queue | None]]:
        """Return the loss of the whole batch, metrics, and the memory afterwards."""
        scales = objectives.LogScales(
            params["log_scale"], params["distillation_log_scale"], params.get("logit_bias", 0.0)
        )
        if not self.options.uses_views:
            student = objectives.Embeddings(**outputs)
            loss, metrics = objectives.total_loss(
                self.options, student, teacher, scales, self.mesh, batch.get("trust")
            )
            return loss, (metrics, state.memory)
        views = objectives.ViewOutputs(**outputs, mlm_labels=batch.get("masked_labels"))
        loss, metrics, memory = objectives.declip_loss(
            self.options, views, state.memory, scales, self.mesh, teacher, batch.get("trust")
        )
        return loss, (metrics, memory)

    def update(self, state: TrainState, gradients: Arrays) -> tuple[Arrays, optax.OptState, Arrays]:
        """Return new parameters and optimizer's state, and what was added to the old parameters."""
        opt_state = at_step(state.opt_state, state.step)
        updates, opt_state = self.optimizer.update(gradients, opt_state, state.variables.params)
        params = optax.apply_updates(state.variables.params, updates)
        if self.options.uses_views:
            for name in ("log_scale", "distillation_log_scale"):
                params[name] = objectives.clip_log_scale(params[name], *self.options.scale_bounds)
        return params, opt_state, updates


def make_target_step(
    model: FunctionalModel, options: objectives.Method, mesh: Mesh
) -> Callable[[TrainState, Batch], jax.Array]:
    """Return a jitted function that gives the soft targets of a batch, images over texts, [N, N]."""

    def targets_of(state: TrainState, batch: Batch) -> jax.Array:
        teacher = None
        if options.uses_teacher:
            variables = state.variables._replace(params=state.teacher)
            embeddings, _ = model.embed(variables, batch)
            teacher = objectives.Embeddings(*map(objectives.normalize, embeddings))
        num_pairs = next(iter(batch.values())).shape[0]
        return objectives.soft_targets(options, teacher, num_pairs).image

    return jax.jit(targets_of, out_shardings=sharding.replicated(mesh))
