"""What a step costs: memory of a device, floating-point operations, and a profile on request."""

import dataclasses
import math
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
from jax.stages import Lowered

from otter_jax import sharding

GIB = 2**30

# Peak TFLOP/s of one JAX device (a chip, but on TPU v3 one of a chip's two cores), dense: bfloat16,
# and float32 at JAX's default precision, which is bfloat16 on TPUs and TF32 on recent GPUs
# (https://docs.jax.dev/en/latest/201/precision.html).
PEAK_TERAFLOPS = {
    # https://cloud.google.com/tpu/docs/v3, v4, v5e, v5p and v6e, "peak compute per chip".
    "TPU v3": (61.5, 61.5),
    "TPU v4": (275.0, 275.0),
    "TPU v5 lite": (197.0, 197.0),
    "TPU v5e": (197.0, 197.0),
    "TPU v5": (459.0, 459.0),  # v5p.
    "TPU v6": (918.0, 918.0),  # v6e.
    # NVIDIA's data sheets of the H100, the H200 (half of what they give "with sparsity"), the A100.
    "H200": (989.0, 494.0),
    "H100 PCIe": (756.0, 378.0),
    "H100 80GB HBM3": (989.0, 494.0),  # SXM.
    "A100": (312.0, 156.0),
}


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """What one step takes.

    Attributes:
        flops: floating-point operations of the model as it is written, on all devices together.
            Micro-batches do not change them; what `remat` computes again is counted, and of a loop
            (tiles of a loss) one round only. 0 where unknown.
        peak: what all devices together can do at most in a second. None where unknown.
        state: bytes on one device of parameters, statistics, moments, teacher and memory.
        temporaries: bytes on one device of what lives within the step.
        total: bytes on one device at most, with the batch and the program.
        device: bytes that a device has. None where unknown.
    """

    flops: float
    peak: float | None
    state: int
    temporaries: int
    total: int
    device: int | None

    def metrics(self) -> dict[str, float]:
        """Return the memory in GiB, by the names of timings.jsonl."""
        sizes = {
            "state": self.state,
            "temporaries": self.temporaries,
            "total": self.total,
            "device": self.device,
        }
        return {f"memory/{k}_gib": v / GIB for k, v in sizes.items() if v is not None}

    def __str__(self) -> str:
        """Return one line for the screen."""
        of = "" if self.device is None else f" of {self.device / GIB:.1f} GiB"
        return (
            f"memory of a device: {self.state / GIB:.3f} GiB parameters and state, "
            f"{self.temporaries / GIB:.3f} GiB temporaries, {self.total / GIB:.3f} GiB in all{of}; "
            f"{self.flops / 1e9:,.1f} GFLOP a step"
        )


def measure(step: Lowered, unsplit_step: Lowered, state: Any, dtype: str) -> StepCosts:
    """Compile a step and say what it costs; calling its function does not compile it again.

    Args:
        step: as it will run.
        unsplit_step: the same without micro-batches, of whose loop XLA would count one round.
        state: its first argument, in place.
        dtype: in which the towers compute.
    """
    memory = step.compile().memory_analysis()
    device = jax.local_devices()[0]
    peak = peak_flops(device.device_kind, dtype)
    temporaries = memory.temp_size_in_bytes if memory else 0
    total = temporaries
    if memory:
        arguments, results = memory.argument_size_in_bytes, memory.output_size_in_bytes
        reused, program = memory.alias_size_in_bytes, memory.generated_code_size_in_bytes
        total += arguments + results - reused + program
    return StepCosts(
        flops=(unsplit_step.cost_analysis() or {}).get("flops", 0.0),
        peak=None if peak is None else peak * jax.device_count(),
        state=sharding.bytes_on_a_device(state),
        temporaries=temporaries,
        total=total,
        device=(device.memory_stats() or {}).get("bytes_limit"),
    )


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """Return the most that a kind of device does, FLOP/s; None where that is not known."""
    for name, (bfloat16, float32) in PEAK_TERAFLOPS.items():
        if re.search(rf"\b{name}(?!\d)", device_kind):  # A100 is not A1000, but v5 is v5p.
            return 1e12 * (bfloat16 if dtype == "bfloat16" else float32)
    return None


class Profiler(AbstractContextManager):
    """Keeps a trace of some steps, to be looked at with TensorBoard or Perfetto."""

    def __init__(self, steps: tuple[int, ...], folder: Path):
        """Take the first and the last step of the trace, or () for none, and where it goes."""
        self._first, self._last = steps or (math.inf, math.inf)
        self._folder = folder
        self._tracing = False

    def before(self, step: int) -> None:
        """Begin, where it is time."""
        if self._first <= step <= self._last and not self._tracing:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, results: Any) -> None:
        """End, where it is time, when the step's results are there."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(results)
            self.__exit__()

    def __exit__(self, *exception: object) -> None:
        """End a trace that is under way."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
