"""Checkpoints with Orbax: everything a run is at one step, saved whole and restored on any mesh.

The variables are an item of their own, so that a model can be loaded without its optimizer.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from otter_jax.models.dual_encoder import Variables
from otter_jax.step import TrainState


class Checkpoints(AbstractContextManager):
    """The checkpoints/ folder of a workdir. Use as a context manager: leaving waits for saves."""

    def __init__(self, folder: Path, keep: int = 2, *, create: bool = False):
        """Opens the folder, or makes it if `create`; the latest `keep` checkpoints are kept.

        Raises:
          FileNotFoundError: if there is no folder and it should not be made.
        """
        if not create and not folder.is_dir():
            raise FileNotFoundError(f"there is no finished checkpoint in {folder}")
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep),
            enable_async_checkpointing=True,
            create=create,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __exit__(self, *exception: object) -> None:
        """Waits until everything is on disk."""
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the latest finished checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves in the background; a step that is already saved is left as it is."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if jax.default_backend() == "cpu":
            # The step donates its state, and here a host array may be a view of a device buffer.
            state = jax.tree.map(jnp.copy, state)
        arguments = ocp.args.Composite(
            variables=ocp.args.StandardSave(_flatten(state.variables)),
            training=ocp.args.StandardSave(_flatten(_without_variables(state))),
        )
        if not self._manager.save(step, args=arguments):
            raise RuntimeError(f"the checkpoint of step {step} was not saved in {self.folder}")

    def restore(self, template: TrainState) -> TrainState:
        """The latest state, placed like `template`, whose arrays are left alone.

        Raises:
          FileNotFoundError: if there is no finished checkpoint.
          ValueError: if it has other arrays than the template.
        """
        restored = self._restore(
            variables=template.variables, training=_without_variables(template)
        )
        return TrainState(**restored["training"], variables=restored["variables"])

    def restore_variables(self, template: Variables) -> Variables:
        """The variables of the latest checkpoint, placed like `template`; raises as `restore`."""
        return self._restore(variables=template)["variables"]

    def _restore(self, **templates: Any) -> dict[str, Any]:
        step = self.latest_step
        if step is None:
            raise FileNotFoundError(f"there is no finished checkpoint in {self.folder}")
        flat = {name: _flatten(template) for name, template in templates.items()}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, flat)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"the checkpoint {self.folder / str(step)} does not fit this config: {reason}"
            ) from error
        return {name: _unflatten(restored[name], templates[name]) for name in templates}


def _without_variables(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "variables"}


def _flatten(tree: Any) -> dict[str, jax.Array]:
    """The arrays of a pytree on one level, by names such as params.image.blocks.0.kernel."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _unflatten(arrays: dict[str, jax.Array], template: Any) -> Any:
    """The inverse of `_flatten`, given a pytree of the same structure."""
    leaves = [arrays[name] for name in _flatten(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
