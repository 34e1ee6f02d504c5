"""Checkpoints with Orbax: everything a run is at one step, saved whole and restored on any mesh.

The variables are an item of their own, so that a model can be loaded without its optimizer. What of
them is never trained is the same in all checkpoints, and is kept once, in a folder beside them.
Every checkpoint carries the SHA-256 of its files and of those, since Orbax would read flipped bits
as numbers.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from otter_jax import sharding
from otter_jax.models.dual_encoder import Variables
from otter_jax.terminal import say

ITEMS = ("variables", "training")
CHECKSUMS = "sha256.json"
FROZEN = "frozen"  # The folder of what is never trained, and what its arrays' names begin with.
BESIDE = f"../{FROZEN}/"  # How a checkpoint's checksums name the files in it.
# A NamedTuple of pytrees with `step` and `variables`: nothing else is asked of what is saved.
State = Any
NEWER = ("mean_loss",)  # What checkpoints of earlier versions lack: it begins anew.


class Checkpoints(AbstractContextManager):
    """The checkpoints/ folder of a workdir. Use as a context manager: leaving waits for saves."""

    def __init__(
        self,
        folder: Path,
        keep: int = 2,
        *,
        create: bool = False,
        best_step: Callable[[], int | None] = lambda: None,
    ):
        """Open the folder, or make it if `create`.

        Args:
            folder: where checkpoints are, each in one of its own.
            keep: how many of the latest are kept.
            create: whether to make the folder where there is none.
            best_step: the step whose checkpoint is kept as well, at the time it is asked.

        Raises:
            FileNotFoundError: if there is no folder and it should not be made.
        """
        if not create and not folder.is_dir():
            raise FileNotFoundError(f"there is no finished checkpoint in {folder}")
        self.folder = folder.absolute()
        self._saving: int | None = None  # The step that is, or was last, being written.
        self._last_save = time.monotonic()
        self._frozen_is_kept = False
        self._frozen_checksums: dict[str, str] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(keep), _Best(best_step)]
            ),
            enable_async_checkpointing=True,
            create=create,
            # Before the folder gets its final name: no finished checkpoint is without checksums.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __exit__(self, *exception: object) -> None:
        """Wait until everything is on disk.

        Raises:
            OSError: if a checkpoint could not be written.
        """
        with self._writing():
            self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The step of the latest finished checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: State) -> None:
        """Save in the background; a step that is already saved is left as it is.

        Raises:
            OSError: if it cannot be written, or the one before could not.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        frozen, variables = _split_frozen(_flatten(state.variables))
        items = {"variables": variables, "training": _flatten(_without_variables(state))}
        if jax.default_backend() == "cpu":
            # The step donates its state, and here a host array may be a view of a device buffer.
            items = jax.tree.map(jnp.copy, items)
        arguments = {name: ocp.args.StandardSave(arrays) for name, arrays in items.items()}
        self.finished_step()
        with self._writing():
            self._saving = step
            if frozen and not self._frozen_is_kept:
                self._keep_frozen(frozen)
            if not self._manager.save(step, args=ocp.args.Composite(**arguments)):
                raise RuntimeError("Orbax has refused it")
        self._last_save = time.monotonic()

    def _keep_frozen(self, arrays: dict[str, jax.Array]) -> None:
        """Write what is never trained, unless a checkpoint says that it is there."""
        latest = self.latest_step
        known = latest is not None and has_frozen_beside(self.folder / str(latest))
        if not sharding.first_process_says(known):
            with ocp.StandardCheckpointer() as writer:
                writer.save(self.folder / FROZEN, arrays, force=True)
        self._frozen_is_kept = True

    def finished_step(self) -> int | None:
        """Wait until what is being saved is on disk, and return `latest_step`; raises as `save`."""
        with self._writing():
            self._manager.wait_until_finished()
        return self.latest_step

    def check(self) -> None:
        """Raise OSError if a checkpoint that is being written has met with an obstacle."""
        with self._writing():
            self._manager.check_for_errors()

    def overdue(self, minutes: float) -> bool:
        """Return whether the last save, or else the start, is that long ago; never for 0.

        All processes must ask at the same time, and get the answer of the first one's clock.
        """
        if minutes == 0:
            return False
        return sharding.first_process_says(time.monotonic() - self._last_save >= 60 * minutes)

    def restore(self, template: State) -> State:
        """Return the latest whole state, placed like `template`, whose arrays are left alone.

        Later checkpoints that are damaged are named and set aside as `<step>.damaged`. What one of
        an earlier version lacks is as in the template.

        Raises:
            FileNotFoundError: if there is no finished checkpoint.
            ValueError: if it has other arrays than the template, or none is whole.
        """
        templates = {"variables": template.variables, "training": _without_variables(template)}
        step, damaged = self._find_whole(*templates)
        restored = self._restore(step, **templates)
        self._set_aside(damaged)
        return template._replace(**restored["training"], variables=restored["variables"])

    def restore_variables(
        self, template: Variables, step: int | None = None
    ) -> tuple[int, Variables]:
        """Return variables, placed like `template`, and their step.

        Args:
            template: arrays of the same shapes, or what describes them.
            step: which checkpoint's; the latest that is whole where none is named. Later ones that
                are damaged are named then; nothing is changed.

        Raises:
            FileNotFoundError: if there is no finished checkpoint, or none of this step.
            ValueError: if it has other arrays than the template, or none is whole.
        """
        step, damaged = self._find_whole("variables", only=step)
        for reason in damaged.values():
            say(f"{reason}: that of step {step} is used")
        return step, self._restore(step, variables=template)["variables"]

    def _find_whole(self, *items: str, only: int | None = None) -> tuple[int, dict[int, str]]:
        """Return the latest step whose items are whole, and what is wrong with later ones.

        Where `only` one step is looked at, no other is returned.
        """
        damaged: dict[int, str] = {}
        self.finished_step()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if only is not None and only not in steps:
            known = ", ".join(map(str, reversed(steps))) or "none"
            raise FileNotFoundError(
                f"there is no checkpoint of step {only} in {self.folder}; steps: {known}"
            )
        for step in steps if only is None else [only]:
            folder = self.folder / str(step)
            damage = find_damage(folder, items)
            if damage is None:
                return step, damaged
            damaged[step] = f"the checkpoint {folder} is damaged ({damage})"
        if damaged:
            raise ValueError(f"no checkpoint is whole: {'; '.join(damaged.values())}")
        raise FileNotFoundError(f"there is no finished checkpoint in {self.folder}")

    def _restore(self, step: int, **templates: Any) -> dict[str, Any]:
        folder = self.folder / str(step)
        flat = {name: _flatten(template) for name, template in templates.items()}
        wanted, frozen = dict(flat), {}
        if has_frozen_beside(folder):  # Those of an earlier version hold everything.
            frozen, wanted["variables"] = _split_frozen(flat["variables"])
        wanted = {name: _without_lacking(folder / name, arrays) for name, arrays in wanted.items()}
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
            restored = {name: found[name] for name in items}
            if frozen:
                restored["variables"] |= self._restore_frozen(frozen)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"the checkpoint {folder} does not fit this config: {_one_line(error)}"
            ) from error
        return {
            name: _unflatten(flat[name] | restored[name], templates[name]) for name in templates
        }

    def _restore_frozen(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, arrays)
        with ocp.StandardCheckpointer() as reader:
            return reader.restore(self.folder / FROZEN, abstract)

    def _set_aside(self, damaged: dict[int, str]) -> None:
        """Rename damaged checkpoints, so that their steps can be saved again."""
        for step, reason in damaged.items():
            aside = self.folder / f"{step}.damaged"
            say(f"{reason}: it is kept as {aside.name}, and the one before is used")
            if jax.process_index() == 0:
                (self.folder / str(step)).rename(_unused(aside))
        if damaged:
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints are set aside")
            self._manager.reload()

    def _seal(self) -> None:
        """Put the checksums into a checkpoint that is about to be finished; files are on disk."""
        folder = self.folder / f"{self._saving}{ocp.utils.TMP_DIR_SUFFIX}"
        checksums = {
            path.relative_to(folder).as_posix(): _checksum(path, flush=True)
            for item in ITEMS
            for path in sorted((folder / item).rglob("*"))
            if path.is_file()
        }
        frozen = self.folder / FROZEN
        if frozen.is_dir() and not self._frozen_checksums:
            self._frozen_checksums = {
                BESIDE + path.relative_to(frozen).as_posix(): _checksum(path, flush=True)
                for path in sorted(frozen.rglob("*"))
                if path.is_file()
            }
        checksums |= self._frozen_checksums
        with (folder / CHECKSUMS).open("w", encoding="utf-8") as file:
            json.dump(checksums, file, indent=2)
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise OSError with one line for whatever keeps a checkpoint from being written."""
        try:
            yield
        except Exception as error:  # Of any type: the obstacle is the disk's, far below Orbax.
            kept = self.latest_step
            raise OSError(
                f"the checkpoint of step {self._saving} could not be written to {self.folder}: "
                f"{_obstacle(error)}; "
                + ("there is none before it" if kept is None else f"that of step {kept} is whole")
            ) from error


class _Best(checkpoint_managers.PreservationPolicy):
    """Keeps the best checkpoint, which is known only after it was written.

    Orbax's own `BestN` asks for the metrics when a checkpoint is saved. Here that comes before the
    evaluation, which may take longer than a machine is left to the run.
    """

    def __init__(self, best_step: Callable[[], int | None]):
        """Ask `best_step` every time."""
        self._best_step = best_step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return which of the checkpoints is the best."""
        best = self._best_step()
        return [each.step == best for each in checkpoints]


def find_damage(folder: Path, items: tuple[str, ...] = ITEMS) -> str | None:
    """Return what is wrong with the files of a finished checkpoint, or None.

    Args:
        folder: the checkpoint. One without checksums, of an earlier version, is taken as it is.
        items: which parts of it to look at.
    """
    if missing := [item for item in items if not (folder / item).is_dir()]:
        return f"{missing[0]}/ is missing"
    try:
        checksums = _read_checksums(folder)
    except ValueError:
        return f"{CHECKSUMS} cannot be read"
    for name, wanted in checksums.items():
        item = "variables" if name.startswith(BESIDE) else name.split("/")[0]
        if item not in items:
            continue
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _checksum(folder / name) != wanted:
            return f"{name} has changed since it was written"
    return None


def has_frozen_beside(folder: Path) -> bool:
    """Return whether a finished checkpoint leaves what is never trained to the folder beside it."""
    return any(name.startswith(BESIDE) for name in _read_checksums(folder))


def _read_checksums(folder: Path) -> dict[str, str]:
    """Return the checksums of a checkpoint's files; none of one of an earlier version.

    Raises:
        ValueError: the file of the checksums is damaged.
    """
    path = folder / CHECKSUMS
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it should hold a checksum by file")
    return found


def _checksum(path: Path, *, flush: bool = False) -> str:
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unused(path: Path) -> Path:
    """Return this path, or where there is something already, one with a number."""
    paths = [path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 1000))]
    return next(each for each in paths if not each.exists())


def _obstacle(error: Exception) -> str:
    """Return what the operating system said, without the long names of the files it said it of."""
    said = re.search(r"([^:]+) \[os_error_code", str(error))
    return said[1].strip() if said else _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _split_frozen(
    variables: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Return the arrays that are never trained, and the others."""
    frozen = {name: x for name, x in variables.items() if name.startswith(f"{FROZEN}.")}
    return frozen, {name: x for name, x in variables.items() if name not in frozen}


def _without_variables(state: State) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "variables"}


def _without_lacking(item: Path, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Leave out the `NEWER` arrays that this item of a checkpoint does not have."""
    newer = [name for name in NEWER if name in arrays]
    saved = ocp.StandardCheckpointHandler().metadata(item).tree if newer else {}
    return {name: array for name, array in arrays.items() if name not in newer or name in saved}


def _flatten(tree: Any) -> dict[str, jax.Array]:
    """Return the arrays of a pytree on one level, by names such as params.image.blocks.0.kernel."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def _unflatten(arrays: dict[str, jax.Array], template: Any) -> Any:
    """Invert `_flatten`, given a pytree of the same structure."""
    leaves = [arrays[name] for name in _flatten(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
