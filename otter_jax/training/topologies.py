"""TPU slices and machines with GPUs by name, and what they can do, without one of them at hand.

A slice is named by its generation and the shape of its grid of chips, "v5e:4x4", or as Cloud TPU
sells it, "v5litepod-16"; GPUs by their kind, and how many machines there are with how many each,
"h100:2x8". XLA's compilers know them all: for TPUs that is the package libtpu, for GPUs JAX's
plugin for CUDA, which needs no driver and no CUDA for that.
"""

import abc
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
class Chip:
    """What one device can do.

    Attributes:
        kind: its name in `PEAK_TERAFLOPS`.
        memory: GiB, less what the system keeps.
        bandwidth: GB/s between it and its memory.
        link: GB/s that it can send and receive over all of its links together.
    """

    kind: str
    memory: float
    bandwidth: float
    link: float

    @property
    def peak(self) -> tuple[float, float]:
        """TFLOP/s, of bfloat16 and of float32 at JAX's default precision."""
        return PEAK_TERAFLOPS[self.kind]


@dataclasses.dataclass(frozen=True)
class Generation:
    """A kind of TPU.

    Attributes:
        chip: what one can do.
        clock: GHz, by which XLA's estimated cycles become a time: the peak divided by the FLOPs
            that all matrix units of a chip do in a cycle.
        grids: by number of chips.
        cloud_name: what comes before the number in Cloud's names.
        cores: that this number counts for a chip.
        options: what the compiler must be told beside the grid.
    """

    chip: Chip
    clock: float
    grids: dict[int, str]
    cloud_name: str
    cores: int = 1
    options: tuple[tuple[str, str], ...] = ()

    @property
    def grid_form(self) -> str:
        """A regular expression of its grids: two axes or three."""
        return "x".join([r"[1-9]\d*"] * len(next(iter(self.grids.values())).split("x")))


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A kind of GPU, in words that XLA's compiler needs about one that is not there.

    Attributes:
        chip: what one can do; its link is that to the GPUs of the same machine (NVLink).
        device: how JAX calls it.
        capability: CUDA's compute capability.
        cores: multiprocessors.
        lanes: float32 lanes of a multiprocessor.
        shared_memory: bytes of a multiprocessor.
        cache: MiB, of level 2.
        clock: GHz.
    """

    chip: Chip
    device: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    shared_memory: int
    cache: int
    clock: float

    def describe(self) -> str:
        """Return the text that XLA calls a GpuTargetConfigProto."""
        major, minor = self.capability
        numbers = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "threads_per_core_limit": 2048,
            "thread_dim_limit_x": 1024,
            "thread_dim_limit_y": 1024,
            "thread_dim_limit_z": 64,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "registers_per_core_limit": 2**16,
            "registers_per_block_limit": 2**16,
            "shared_memory_per_block": 48 * 2**10,
            "shared_memory_per_block_optin": self.shared_memory - 2**10,
            "shared_memory_per_core": self.shared_memory,
            "core_count": self.cores,
            "fpus_per_core": self.lanes,
            "l2_cache_size": self.cache * 2**20,
            "clock_rate_ghz": self.clock,
            "memory_bandwidth": int(1e9 * self.chip.bandwidth),
            "device_memory_size": int(2**30 * self.chip.memory),
        }
        info = " ".join(f"{name}: {number}" for name, number in numbers.items())
        return (
            f"gpu_device_info {{ cuda_compute_capability {{ major: {major} minor: {minor} }} "
            f'{info} }} platform_name: "CUDA" device_description_str: "{self.device}" '
            "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 8 }"
        )


# https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.
GENERATIONS = {
    "v4": Generation(
        *(Chip("TPU v4", 31.75, 1228.0, 300.0), 1.05, CUBIC_GRIDS, "v4", 2),
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Generation(Chip("TPU v5 lite", 15.75, 819.0, 200.0), 1.5, FLAT_GRIDS, "v5litepod"),
    "v5p": Generation(Chip("TPU v5", 95.0, 2765.0, 600.0), 1.75, CUBIC_GRIDS, "v5p", 2),
    "v6e": Generation(Chip("TPU v6", 31.25, 1640.0, 448.0), 1.75, FLAT_GRIDS, "v6e"),
}
# NVIDIA's data sheets and white papers of the A100 and the H100; of NVLink one direction.
GPUS = {
    "a100-40": Gpu(
        *(Chip("A100", 39.4, 1555.0, 300.0), "NVIDIA A100-SXM4-40GB"),
        *((8, 0), 108, 64, 164 * 2**10, 40, 1.41),
    ),
    "a100": Gpu(
        *(Chip("A100", 79.3, 2039.0, 300.0), "NVIDIA A100-SXM4-80GB"),
        *((8, 0), 108, 64, 164 * 2**10, 40, 1.41),
    ),
    "h100": Gpu(
        *(Chip("H100 80GB HBM3", 79.1, 3352.0, 450.0), "NVIDIA H100 80GB HBM3"),
        *((9, 0), 132, 128, 228 * 2**10, 50, 1.98),
    ),
    "h200": Gpu(
        *(Chip("H200", 140.0, 4800.0, 450.0), "NVIDIA H200"),
        *((9, 0), 132, 128, 228 * 2**10, 50, 1.98),
    ),
}
NETWORK = 50.0  # GB/s of a GPU to other machines: one port of 400 Gbit/s each, as in a DGX H100.


class Topology(abc.ABC):
    """Devices to compile for.

    Attributes:
        name: that `parse_topology` reads.
        chips: how many there are; each is one device.
        chip: what one can do.
        program: how the file ends that XLA writes the optimized program to.
        flags: of XLA, without which it does not compile for what is not there.
        clock: GHz of XLA's estimated cycles, where it estimates.
    """

    name: str
    chips: int
    chip: Chip
    program: str
    flags = ""
    clock: float | None = None
    needs: str  # The compiler's package,
    extra: str  # and the extra that installs it.

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    def refuse_missing_compiler(self) -> None:
        """Refuse to go on without the compiler (ModuleNotFoundError, saying what to install)."""
        if importlib.util.find_spec(self.needs) is None:
            raise ModuleNotFoundError(
                f"compiling for {self} needs {self.needs}: pip install 'otter_jax[{self.extra}]'"
            )

    def devices(self) -> list[jax.Device]:
        """Return devices that can be compiled for, and no more; this process holds the compiler.

        Raises:
            ModuleNotFoundError: see `refuse_missing_compiler`.
            ValueError: the compiler knows no such devices.
        """
        self.refuse_missing_compiler()
        try:
            return list(topologies.get_topology_desc(**self.description()).devices)
        except Exception as error:  # Whatever the plugin raises.
            raise ValueError(f"{self}: {self.needs} knows no such devices ({error})") from error

    @abc.abstractmethod
    def description(self) -> dict[str, str]:
        """Return what JAX's `get_topology_desc` asks for."""


class TpuSlice(Topology):
    """A slice: a generation and a grid of chips, "4x4" or "2x2x4"."""

    program = "after_optimizations_before_buffer_assignment.txt"
    needs, extra = "libtpu", "plan"

    def __init__(self, name: str, grid: str) -> None:
        """Take a name of `GENERATIONS` and a grid."""
        self.name, self.chips = f"{name}:{grid}", math.prod(map(int, grid.split("x")))
        self._generation = GENERATIONS[name]
        self.chip, self.clock = self._generation.chip, self._generation.clock

    def description(self) -> dict[str, str]:
        """Return the slice in JAX's words."""
        return {"platform": "tpu", "topology_name": self.name, **dict(self._generation.options)}


class GpuMachines(Topology):
    """Machines with as many GPUs each."""

    program = "gpu_after_optimizations.txt"
    # Products of matrices are left to cuBLAS. Triton's tiles are found by trying them; without a
    # GPU jax-cuda12-plugin 0.10.2 finds none for some products, such as those of BERT's attention.
    flags = "--xla_gpu_enable_triton_gemm=false"
    needs, extra = "jax_cuda12_plugin", "plan-gpu"

    def __init__(self, name: str, machines: int, each: int) -> None:
        """Take a name of `GPUS`, how many machines there are, and how many GPUs each has."""
        self.name, self.chips = f"{name}:{machines}x{each}", machines * each
        self._gpu, self._shape = GPUS[name], f"1x{machines}x{each}"
        chip = self._gpu.chip
        self.chip = chip if machines == 1 else dataclasses.replace(chip, link=NETWORK)

    def description(self) -> dict[str, str]:
        """Return the machines in JAX's words."""
        target = self._gpu.describe()
        return {"platform": "cuda", "topology": self._shape, "target_config": target}


def parse_topology(text: str) -> Topology:
    """Read "v5e:4x4", one of Cloud TPU's names, "v4-32", or "h100:2x8".

    Raises:
        ValueError: saying what names there are.
    """
    name, _, shape = text.partition(":")
    if name in GENERATIONS and re.fullmatch(GENERATIONS[name].grid_form, shape):
        return TpuSlice(name, shape)
    if name in GPUS and (match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape)):
        return GpuMachines(name, int(match[1]), int(match[2]))
    for name, generation in GENERATIONS.items():
        match = re.fullmatch(rf"{generation.cloud_name}-(\d+)", text)
        chips, rest = divmod(int(match[1]), generation.cores) if match else (0, 0)
        if chips in generation.grids and not rest:
            return TpuSlice(name, generation.grids[chips])
    known = [f"{name}:{', '.join(each.grids.values())}" for name, each in GENERATIONS.items()]
    cloud = [f"{each.cloud_name}-{max(each.grids) * each.cores}" for each in GENERATIONS.values()]
    raise ValueError(
        f"topology {text!r}: choose a grid of chips ({'; '.join(known)}), one of Cloud TPU's names "
        f"(up to {', '.join(cloud)}), or MACHINESxGPUS ({', '.join(f'{n}:2x8' for n in GPUS)})"
    )
