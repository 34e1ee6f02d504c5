"""All that a run is at one step, and where its arrays live."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from otter_jax import objectives, sharding
from otter_jax.models.dual_encoder import Arrays, Variables


class TrainState(NamedTuple):
    """All that a run is at one step."""

    step: jax.Array  # int32 scalar: how many updates have been made.
    variables: Variables
    opt_state: optax.OptState
    teacher: Arrays  # Moving average of variables.params; empty where no teacher is used.
    mean_loss: jax.Array  # float32 scalar: running mean; infinite until there is a first loss.
    memory: objectives.Queue | None = None  # Texts of earlier batches, where an objective asks.


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


def make_memory(method: objectives.Method, embed_dim: int) -> objectives.Queue | None:
    """Return an empty queue, where the method remembers texts."""
    return objectives.make_queue(method.queue_size, embed_dim) if method.uses_queue else None


def state_places(mesh: Mesh, state: TrainState, *, fsdp: bool) -> TrainState:
    """Return where each array of a state lives: whole on every device, or split over all of them.

    The memory is always split by rows. With `fsdp`, so is every large array of parameters, moments
    and teacher, see `sharding.parameter_place`.
    """
    places = sharding.array_places(mesh, state, fsdp=fsdp)
    if state.memory is None:
        return places
    whole = sharding.replicated(mesh)
    return places._replace(memory=objectives.Queue(sharding.split_rows(mesh), whole, whole))
