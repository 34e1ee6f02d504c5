"""The train step: one jitted function from (state, batch) to (state, metrics).

The methods take three ways through it: `contrastive_step` (InfoNCE and its kin), and on top of what
that does `distillation_step` (a teacher makes soft targets) and `views_step` (a pair in several
views). Around them stand the guard, which leaves out what has diverged, and the places of the
arrays. All of it works on plain pytrees. Everything random is drawn from the run's seed, a name and
the step, so a resumed run draws the same.
"""

import dataclasses
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
from otter_jax.training.state import TrainState

DeviceBatch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, DeviceBatch], tuple[TrainState, Metrics]]

MEAN_LOSS_DECAY = 0.99  # Of the running mean that a loss is compared with.
TOWERS = ("image", "text")  # Their names in the parameters.
# Metrics that only say whether the step was taken, see `guarded`.
VERDICT = ("finite", "exploded", "mean_loss")


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What the step takes from a config.

    Attributes:
        seed: of what is random in the step.
        parts: how many the rows of a batch go through the towers in.
        fsdp: whether the state is split over the devices, and so gathered where it is used.
        halved: whether towers' weights and their gradients go from device to device in bfloat16.
        max_loss_ratio: see `is_exploded`.
        teacher_moves: whether the teacher is a moving average of the student, or the student as it
            was before training.
        teacher_decay: the moving average's decay in the long run.
        teacher_warmup: whether it begins with less, see `teacher_decay`.
        teacher_train_mode: whether the teacher has dropout and batch statistics as the student.
    """

    seed: int = 0
    parts: int = 1
    fsdp: bool = False
    halved: bool = False
    max_loss_ratio: float = 10.0
    teacher_moves: bool = True
    teacher_decay: float = 0.999
    teacher_warmup: bool = True
    teacher_train_mode: bool = False

    @classmethod
    def of(cls, config: ConfigDict) -> "StepSettings":
        """Return those of a config."""
        rows = config.micro_batch
        return cls(
            seed=config.seed,
            parts=1 if rows is None else config.batch_size // rows,
            fsdp=config.fsdp,
            halved=config.mesh.dtype == "bfloat16",
            max_loss_ratio=config.max_loss_ratio,
            teacher_moves=config.teacher.kind == "average",
            teacher_decay=config.teacher.decay,
            teacher_warmup=config.teacher.warmup,
            teacher_train_mode=config.teacher.train_mode,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Learner:
    """What does not change from step to step."""

    model: FunctionalModel
    method: objectives.Method
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    settings: StepSettings
    mesh: Mesh

    def without_parts(self) -> "Learner":
        """Return the same, but that all rows of a batch go through the towers at once."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, parts=1))

    def in_use(self, variables: Variables) -> Variables:
        """Return a model's arrays as its towers take them, wherever they live."""
        if self.settings.halved:
            variables = variables._replace(
                params=halved(variables.params), frozen=halved(variables.frozen)
            )
        if not self.settings.fsdp:
            return variables
        return sharding.whole_in_use(self.mesh, variables)


def halved(params: Arrays) -> Arrays:
    """Return parameters with those of the towers in bfloat16 that they would round by themselves.

    These are matrices, kernels and tables, nearly all of a tower. A gradient has the type of what
    it is the gradient of, so that it is summed over the devices in bfloat16 too. Norms and biases
    are vectors, and what stands beside the towers computes in float32.
    """

    def halve(array: jax.Array) -> jax.Array:
        return array.astype(jnp.bfloat16) if array.ndim > 1 else array

    towers = {name: jax.tree.map(halve, params[name]) for name in TOWERS if name in params}
    return params | towers


class Proposal(NamedTuple):
    """What a step would do, if the guard lets it."""

    state: TrainState
    loss: jax.Array
    metrics: Metrics
    gradients: Arrays
    updates: Arrays  # What is added to the parameters.


def make_train_step(learner: Learner, places: TrainState) -> Step:
    """Return the jitted step; the state it is given is consumed.

    Args:
        learner: model, method, optimizer and mesh.
        places: where each array of the state lives (`state.state_places`), before and after.
    """
    method = learner.method
    if method.uses_views:
        propose = views_step
    else:
        propose = distillation_step if method.uses_teacher else contrastive_step

    def train_step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        proposal = propose(learner, state, batch)
        after, verdict = guarded(state, proposal, learner.settings.max_loss_ratio)
        facts = {"loss": proposal.loss, "learning_rate": learner.schedule(state.step)}
        return after, proposal.metrics | facts | verdict

    # Where the arrays are is said here, so that it stays so.
    whole = sharding.replicated(learner.mesh)
    return jax.jit(train_step, donate_argnums=0, out_shardings=(places, whole))


def contrastive_step(learner: Learner, state: TrainState, batch: DeviceBatch) -> Proposal:
    """Embed images and texts, contrast them, descend: InfoNCE, label smoothing, sigmoid."""

    def loss(embeddings: tuple[jax.Array, jax.Array], params: Arrays) -> tuple[jax.Array, Metrics]:
        student, scales = objectives.Embeddings(*embeddings), scales_of(params)
        known = batch.get("trust"), batch.get("group")
        return objectives.total_loss(learner.method, student, None, scales, learner.mesh, *known)

    return descend(learner, state, batch, learner.model.embed, loss)


def distillation_step(learner: Learner, state: TrainState, batch: DeviceBatch) -> Proposal:
    """Move the teacher, let it say what matches what, contrast with that, descend: KD, OTTER."""
    teacher, seen, batch = teach(learner, state, batch)

    def loss(embeddings: tuple[jax.Array, jax.Array], params: Arrays) -> tuple[jax.Array, Metrics]:
        student, scales = objectives.Embeddings(*embeddings), scales_of(params)
        known = batch.get("trust"), batch.get("group")
        return objectives.total_loss(learner.method, student, seen, scales, learner.mesh, *known)

    proposal = descend(learner, state, batch, learner.model.embed, loss)
    return proposal._replace(state=proposal.state._replace(teacher=teacher))


def views_step(learner: Learner, state: TrainState, batch: DeviceBatch) -> Proposal:
    """See each pair in several views, compare all of them, descend: DeCLIP, SLIP."""
    method = learner.method
    teacher, seen = state.teacher, None
    if method.uses_teacher:
        teacher, seen, batch = teach(learner, state, batch)

    def loss(outputs: Arrays, params: Arrays) -> tuple[jax.Array, tuple[Metrics, Arrays]]:
        views = objectives.ViewOutputs(**outputs, mlm_labels=batch.get("masked_labels"))
        trust, scales = batch.get("trust"), scales_of(params)
        value, metrics, memory = objectives.declip_loss(
            method, views, state.memory, scales, learner.mesh, seen, trust
        )
        return value, (metrics, memory)

    def embed(variables: Variables, rows: DeviceBatch, **how: object) -> tuple[Arrays, Arrays]:
        outputs, batch_stats = learner.model.views(variables, rows, **how)
        # A number a token, at once: scores of a whole vocabulary for each token of the batch would
        # be the largest array of the step.
        if (logits := outputs.pop("mlm_logits", None)) is not None:
            outputs["mlm_losses"] = objectives.token_losses(logits, rows["masked_labels"])
        return outputs, batch_stats

    proposal = descend(learner, state, batch, embed, loss)
    metrics, memory = proposal.metrics
    variables = proposal.state.variables
    # Beyond its bounds a scale has no gradient that would bring it back.
    names = ("log_scale", "distillation_log_scale")
    bounded = {
        n: objectives.clip_log_scale(variables.params[n], *method.scale_bounds) for n in names
    }
    variables = variables._replace(params=variables.params | bounded)
    after = proposal.state._replace(variables=variables, teacher=teacher, memory=memory)
    return proposal._replace(state=after, metrics=metrics)


def scales_of(params: Arrays) -> objectives.LogScales:
    """Return the learnable scalars of a model's parameters."""
    return objectives.LogScales(
        params["log_scale"], params["distillation_log_scale"], params.get("logit_bias", 0.0)
    )


def descend(
    learner: Learner,
    state: TrainState,
    batch: DeviceBatch,
    embed: Callable[..., tuple[Arrays, Arrays]],
    loss: micro_batches.LossOfOutputs,
) -> Proposal:
    """Take one step of the optimizer down the loss of a batch.

    Args:
        learner: optimizer and settings.
        state: to start from.
        batch: N rows of everything.
        embed: as `FunctionalModel.embed`, what the loss needs to know of some rows.
        loss: (what `embed` gives of all rows, parameters) to the loss and its metrics.
    """
    settings, variables = learner.settings, state.variables
    # Each row has a key of its own, lest what is drawn for it depend on the rows beside it.
    keys = row_keys(named_key(settings.seed, "dropout", state.step), batch)
    rows = batch | {"dropout_keys": keys}

    def forward(params: Arrays, batch_stats: Arrays, rows: DeviceBatch) -> tuple[Arrays, Arrays]:
        student = variables._replace(params=params, batch_stats=batch_stats)
        keys = rows["dropout_keys"]
        return embed(learner.in_use(student), rows, train=True, dropout_key=keys)

    if settings.parts == 1:

        def whole(params: Arrays) -> tuple[jax.Array, tuple[Metrics, Arrays]]:
            outputs, batch_stats = forward(params, variables.batch_stats, rows)
            value, metrics = loss(outputs, params)
            return value, (metrics, batch_stats)

        differentiate = jax.value_and_grad(whole, has_aux=True)
        (value, (metrics, batch_stats)), gradients = differentiate(variables.params)
    else:
        value, metrics, batch_stats, gradients = micro_batches.gradients_in_parts(
            forward,
            loss,
            variables.params,
            variables.batch_stats,
            rows,
            num_parts=settings.parts,
            mesh=learner.mesh,
        )
    opt_state = at_step(state.opt_state, state.step)
    updates, opt_state = learner.optimizer.update(gradients, opt_state, variables.params)
    params = optax.apply_updates(variables.params, updates)
    variables = variables._replace(params=params, batch_stats=batch_stats)
    after = state._replace(step=state.step + 1, variables=variables, opt_state=opt_state)
    return Proposal(after, value, metrics, gradients, updates)


def row_keys(key: jax.Array, batch: DeviceBatch) -> jax.Array:
    """Return a key for each row of a batch."""
    return jax.random.split(key, len(next(iter(batch.values()))))


def at_step(opt_state: optax.OptState, step: jax.Array) -> optax.OptState:
    """Return the optimizer's state with its schedule at this step of the run.

    It counts its updates itself, but those that were left out, or that a rollback took back, were
    not made, and the learning rate should end where the run does.
    """

    def of_schedule(path: tuple, value: object) -> bool:
        return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"

    return optax.tree.set(opt_state, of_schedule, count=step)


def teach(
    learner: Learner, state: TrainState, batch: DeviceBatch
) -> tuple[Arrays, objectives.Embeddings, DeviceBatch]:
    """Return the teacher of this step, the whole batch as it sees it, [N, d] each, and the batch.

    The student's parameters of this step are in the average before the student goes forward
    (OTTER's released code). Batch statistics are the student's.

    What uses the batch returned comes after the teacher, so that what the teacher's towers and what
    the student's remember is not in memory at once.
    """
    settings = learner.settings

    def moved(teacher: Arrays) -> Arrays:
        if not settings.teacher_moves:
            return teacher
        decay = teacher_decay(state.step, settings.teacher_decay, settings.teacher_warmup)
        return move_average(teacher, state.variables.params, decay)

    variables = state.variables._replace(params=moved(state.teacher))

    def embed(rows: DeviceBatch) -> tuple[jax.Array, jax.Array]:
        train, keys = settings.teacher_train_mode, rows["dropout_keys"]
        seen, _ = learner.model.embed(
            learner.in_use(variables), rows, train=train, dropout_key=keys
        )
        return seen

    keys = row_keys(named_key(settings.seed, "teacher dropout", state.step), batch)
    rows = batch | {"dropout_keys": keys}
    if settings.parts == 1:
        seen = embed(rows)
    else:
        parts = micro_batches.split_parts(rows, settings.parts, learner.mesh)
        seen = micro_batches.join_parts(jax.lax.map(embed, parts))
    seen, batch = in_turn((objectives.Embeddings(*seen), batch))
    # The average is made again for the step's end. It would be there all the while otherwise,
    # beside the one before, to which the guard may have to go back.
    return moved(in_turn(state.teacher)), seen, batch


def in_turn(arrays: Arrays) -> Arrays:
    """Return arrays that are all there before one of them is used, on GPUs and TPUs.

    A CPU takes one operation after the other anyway, and rounds as it did before.
    """
    return jax.lax.platform_dependent(
        arrays, cpu=lambda arrays: arrays, default=jax.lax.optimization_barrier
    )


def teacher_decay(step: jax.Array, decay: float, warmup: bool) -> jax.Array:
    """Return the moving average's decay before update `step`, from 0 (OTTER's released code)."""
    updates = step.astype(jnp.float32) + 1.0
    return jnp.minimum(decay, (1.0 + updates) / (10.0 + updates)) if warmup else jnp.float32(decay)


def move_average(average: Arrays, params: Arrays, decay: jax.Array | float) -> Arrays:
    """Return decay * average + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda a, p: (a + (1.0 - decay) * (p - a)).astype(a.dtype), average, params)


def guarded(
    state: TrainState, proposal: Proposal, max_loss_ratio: float
) -> tuple[TrainState, Metrics]:
    """Return the state after a step, and whether the step was taken.

    Where something is not finite or the loss has exploded, the state stays as it was, but for its
    step: nothing of the batch ever enters it.

    Returns:
        The state, and `finite`: whether loss, gradients and updates are; `exploded`: whether the
        loss is too far above its running mean before the step, `mean_loss` (see `is_exploded`).
    """
    loss, gradients, updates = proposal.loss, proposal.gradients, proposal.updates
    # One number that is finite where all of them are.
    finite = jnp.isfinite(loss + optax.tree.norm(gradients) + optax.tree.norm(updates))
    exploded = is_exploded(loss, state.mean_loss, max_loss_ratio)
    taken = finite & ~exploded
    updated = proposal.state._replace(mean_loss=next_mean_loss(state.mean_loss, loss))
    unchanged = state._replace(step=state.step + 1)
    after = jax.tree.map(lambda new, old: jnp.where(taken, new, old), updated, unchanged)
    return after, {"finite": finite, "exploded": exploded, "mean_loss": state.mean_loss}


def next_mean_loss(mean: jax.Array, loss: jax.Array) -> jax.Array:
    """Return the running mean of the loss, which starts at the first one (float32 scalars)."""
    moved = move_average(mean, loss, MEAN_LOSS_DECAY)
    return jnp.where(jnp.isinf(mean), loss, moved).astype(jnp.float32)


def is_exploded(loss: jax.Array, mean: jax.Array, max_ratio: float) -> jax.Array:
    """Return whether a loss is more than `max_ratio` (0: never) times its running mean, or times 1.

    The 1 is for losses near zero, or below, which may well grow many times over.
    """
    return loss > max_ratio * jnp.maximum(mean, 1.0) if max_ratio else jnp.array(False)


def make_target_step(
    model: FunctionalModel, method: objectives.Method, mesh: Mesh
) -> Callable[[TrainState, DeviceBatch], jax.Array]:
    """Return a jitted function to the soft targets of a batch, images over texts, [N, N]."""

    def targets_of(state: TrainState, batch: DeviceBatch) -> jax.Array:
        teacher = None
        if method.uses_teacher:
            variables = state.variables._replace(params=state.teacher)
            embeddings, _ = model.embed(variables, batch)
            teacher = objectives.Embeddings(*map(objectives.normalize, embeddings))
        num_pairs = next(iter(batch.values())).shape[0]
        known = None
        if method.known_positives is not None:
            known = objectives.known_groups(batch["group"], jnp.float32, mesh)
        return objectives.soft_targets(method, teacher, num_pairs, known).image

    return jax.jit(targets_of, out_shardings=sharding.replicated(mesh))
