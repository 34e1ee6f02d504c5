"""TPU slices by name, and what their chips can do, without one of them at hand.

A slice is named by its generation and the shape of its grid of chips, "v5e:4x4", or as Cloud TPU
sells it, "v5litepod-16". XLA's compiler for TPUs, the package libtpu, knows them all.
"""

import dataclasses
import importlib.util
import math
import re

import jax
from jax.experimental import topologies

from otter_jax.training.costs import PEAK_TERAFLOPS

# Grids as Cloud TPU lays them out, by number of chips.
FLAT_GRIDS = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBIC_GRIDS = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8",
               256: "4x8x8", 512: "8x8x8"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Generation:
    """A kind of TPU (https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e).

    Attributes:
        kind: what JAX calls such a device.
        memory: GiB of a chip, less what the system keeps.
        link: GB/s that a chip can send and receive over all of its links together.
        grids: by number of chips.
        cloud_name: what comes before the number in Cloud's names.
        cores: that this number counts for a chip.
        options: what the compiler must be told beside the grid.
    """

    kind: str
    memory: float
    link: float
    grids: dict[int, str]
    cloud_name: str
    cores: int = 1
    options: tuple[tuple[str, str], ...] = ()

    @property
    def peak(self) -> tuple[float, float]:
        """TFLOP/s of a chip, of bfloat16 and of float32 at JAX's default precision."""
        return PEAK_TERAFLOPS[self.kind]


GENERATIONS = {
    "v4": Generation(
        *("TPU v4", 31.75, 300.0, CUBIC_GRIDS, "v4", 2), options=(("chip_config_name", "megacore"),)
    ),
    "v5e": Generation("TPU v5 lite", 15.75, 200.0, FLAT_GRIDS, "v5litepod"),
    "v5p": Generation("TPU v5", 95.0, 600.0, CUBIC_GRIDS, "v5p", 2),
    "v6e": Generation("TPU v6", 31.25, 448.0, FLAT_GRIDS, "v6e"),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: a generation and a grid of chips, "4x4" or "2x2x4"."""

    name: str
    grid: str

    @property
    def generation(self) -> Generation:
        """What its chips can do."""
        return GENERATIONS[self.name]

    @property
    def chips(self) -> int:
        """How many there are; each is one device."""
        return math.prod(map(int, self.grid.split("x")))

    def __str__(self) -> str:
        """Return the name that `parse_topology` reads."""
        return f"{self.name}:{self.grid}"

    def refuse_missing_compiler(self) -> None:
        """Refuse to go on without libtpu (ModuleNotFoundError, saying what to install)."""
        if importlib.util.find_spec("libtpu") is None:
            raise ModuleNotFoundError(
                f"compiling for {self} needs libtpu: pip install 'otter_jax[plan]'"
            )

    def devices(self) -> list[jax.Device]:
        """Return devices that can be compiled for, and no more; this process then holds libtpu.

        Raises:
            ModuleNotFoundError: see `refuse_missing_compiler`.
            ValueError: the compiler knows no such slice.
        """
        self.refuse_missing_compiler()
        try:
            found = topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{self.name}:{self.grid}",
                **dict(self.generation.options),
            )
        except Exception as error:  # Whatever the plugin raises.
            raise ValueError(f"{self}: libtpu knows no such slice ({error})") from error
        return list(found.devices)


def parse_topology(text: str) -> Topology:
    """Read "v5e:4x4", or one of Cloud TPU's names, "v4-32".

    Raises:
        ValueError: saying what names there are.
    """
    if (match := re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", text)) and match[1] in GENERATIONS:
        name, grid = match.groups()
        axes = next(iter(GENERATIONS[name].grids.values())).count("x")
        if grid.count("x") == axes and "0" not in grid.split("x"):
            return Topology(name, grid)
    for name, generation in GENERATIONS.items():
        match = re.fullmatch(rf"{generation.cloud_name}-(\d+)", text)
        chips, rest = divmod(int(match[1]), generation.cores) if match else (0, 0)
        if chips in generation.grids and not rest:
            return Topology(name, generation.grids[chips])
    known = [f"{name}:{', '.join(each.grids.values())}" for name, each in GENERATIONS.items()]
    cloud = [f"{each.cloud_name}-{max(each.grids) * each.cores}" for each in GENERATIONS.values()]
    raise ValueError(
        f"topology {text!r}: choose a grid of chips ({'; '.join(known)}) or one of Cloud TPU's "
        f"names (up to {', '.join(cloud)})"
    )
