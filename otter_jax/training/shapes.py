"""A config's train step by its shapes alone: no weights, no data, and nothing on any device.

It can be lowered for a platform that is not there, and compiled for it where its compiler is. What
pretrained weights say about the shape of a tower is not known here: a tower has its own defaults
and the config's overrides.
"""

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import objectives, sharding
from otter_jax.data.masking import num_masked_slots
from otter_jax.data.pair_loader import IMAGE_KEYS
from otter_jax.embedding.encoder import build_module
from otter_jax.models import dual_encoder
from otter_jax.training.optimizers import make_optimizer, make_schedule
from otter_jax.training.state import TrainState, initial_state, make_memory, state_places
from otter_jax.training.step import Learner, StepSettings, make_train_step

Shapes = dict[str, jax.ShapeDtypeStruct]


def describe_step(config: ConfigDict, mesh: Mesh) -> tuple[jax.stages.Wrapped, TrainState, Shapes]:
    """Return a config's jitted step, and the state and the batch that it takes.

    Args:
        config: a complete one; `pretrained` is not looked at.
        mesh: of the devices to compile for, which need not be there.

    Returns:
        What `step.trace(state, batch)` takes: arrays are shapes with their places on the mesh.

    Raises:
        ValueError: the batch does not divide over the mesh, or the config contradicts itself.
    """
    sharding.check_batch_size(mesh, config.batch_size)
    method = objectives.make_method(**config.objective)
    objectives.check_queue(method, config.batch_size, mesh.devices.size)
    model, variables = describe_model(config)
    total_steps = config.total_steps or config.optimizer.warmup_steps + 1
    schedule = make_schedule(config, total_steps)
    optimizer = make_optimizer(config, schedule, total_steps)
    memory = jax.eval_shape(lambda: make_memory(method, config.model.embed_dim))

    def make(variables: dual_encoder.Variables) -> TrainState:
        return initial_state(variables, optimizer, uses_teacher=method.uses_teacher)

    state = jax.eval_shape(make, variables)._replace(memory=memory)
    places = state_places(mesh, state, fsdp=config.fsdp)
    learner = Learner(model, method, optimizer, schedule, StepSettings.of(config), mesh)
    batch = describe_batch(config, method)
    rows = sharding.split_rows(mesh)
    return (
        make_train_step(learner, places),
        jax.tree.map(_put, state, places),
        {name: _put(array, rows) for name, array in batch.items()},
    )


def _put(array: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)


def describe_model(
    config: ConfigDict,
) -> tuple[dual_encoder.FunctionalModel, dual_encoder.Variables]:
    """Return a config's model with shapes for arrays, as if nothing of it were pretrained.

    Raises:
        ValueError: a tower is one that only its checkpoint names.
    """
    refuse_unnamed_towers(config)
    config = config.copy_and_resolve_references()
    for tower in (config.model.image, config.model.text):
        tower.pretrained = None
        if tower.projection == "pretrained":
            tower.projection = "linear_no_bias"  # As every CLIP has.
    return dual_encoder.split_shapes(lambda: build_module(config))


def refuse_unnamed_towers(config: ConfigDict) -> None:
    """Refuse a tower that only its checkpoint names (ValueError)."""
    for kind, example in (("image", "clip_vit_b32"), ("text", "clip_text")):
        if config.model[kind].name == "auto":
            raise ValueError(
                f"config.model.{kind}.name=auto is the checkpoint's, which is not looked at here; "
                f"name the tower, as in --config.model.{kind}.name={example}"
            )


def describe_batch(config: ConfigDict, method: objectives.Method) -> Shapes:
    """Return the arrays of a batch, images and tokens, in the views that the method asks for."""
    size, length = config.batch_size, config.data.max_tokens
    views = 3 if method.uses_simclr else 2 if method.uses_two_image_views else 1
    image = jax.ShapeDtypeStruct((size, *(config.data.image_size,) * 2, 3), np.uint8)
    tokens = jax.ShapeDtypeStruct((size, length), np.int32)
    mask = jax.ShapeDtypeStruct((size, length), np.bool_)
    batch = {key: image for key in IMAGE_KEYS[:views]}
    batch |= {"tokens": tokens, "token_mask": mask}
    if method.uses_two_text_views:
        batch |= {"tokens2": tokens, "token_mask2": mask}
    if method.uses_masked_language:
        slots = jax.ShapeDtypeStruct((size, num_masked_slots(length)), np.int32)
        batch |= {"masked_tokens": tokens, "masked_positions": slots, "masked_labels": slots}
    if method.known_positives is not None:
        batch["group"] = jax.ShapeDtypeStruct((size, 2), np.int32)
    if method.uses_trust:
        batch["trust"] = jax.ShapeDtypeStruct((size,), np.float32)
    return batch
