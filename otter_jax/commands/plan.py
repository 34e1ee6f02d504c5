"""Says what a config needs on a TPU slice: otter-jax plan --config=CONFIG --topology=v5e:4x4.

Neither the slice, nor weights, nor data are needed: XLA's compiler for TPUs runs on any machine
(pip install 'otter_jax[plan]'). It runs in a process of its own, because it may abort; that process
is stopped when memory is assigned and the exchange between chips is known, after a minute or two.
What follows is generating code, which takes ten times as long (--complete).
"""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import sharding
from otter_jax.commands.command_line import Parser, ending_in_one_line
from otter_jax.json_files import read_json, write_json
from otter_jax.preset_files import read_preset
from otter_jax.terminal import say
from otter_jax.training import compiler_reports
from otter_jax.training.topologies import Topology, parse_topology

GIB, MIB = 2**30, 2**20
FACTS = "facts.json"
# Complete when the report of memory appears, which comes next.
PROGRAM = "after_optimizations_before_buffer_assignment.txt"
# libtpu asks a cloud's server what machine this is, and allows one process, unless told otherwise.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step takes on one slice.

    Attributes:
        topology: the slice.
        chips: devices.
        batch_size: pairs.
        chip_memory: bytes that a chip has.
        memory: bytes of a chip that the step takes.
        state: of these, parameters, statistics, moments, teacher and queue, by kind.
        flops: floating-point operations of the step on all chips; of a loop one round.
        collectives: bytes that a chip gets from the others, by kind.
        compute_seconds: at the chips' peak.
        exchange_seconds: at the full rate of the links.
    """

    topology: str
    chips: int
    batch_size: int
    chip_memory: int
    memory: int
    state: dict[str, int]
    flops: float
    collectives: dict[str, int]
    compute_seconds: float
    exchange_seconds: float

    @property
    def fits(self) -> bool:
        """Whether a chip has as much memory."""
        return self.memory <= self.chip_memory

    def __str__(self) -> str:
        """Return the lines for the screen."""
        rest = self.memory - sum(self.state.values())
        needed = in_mebibytes(self.state | {"activations and loss": rest})
        sizes = f"{self.memory / GIB:.2f} of {self.chip_memory / GIB:.2f} GiB of a chip"
        compute, exchange = 1e3 * self.compute_seconds, 1e3 * self.exchange_seconds
        exchanged = sum(self.collectives.values()) / MIB
        return "\n".join(
            [
                f"{self.topology}: {self.chips} chips, {self.batch_size // self.chips} pairs each",
                f"  {'fits' if self.fits else 'does not fit'}: {sizes} (MiB: {needed})",
                f"  {self.flops / 1e12:,.2f} TFLOP a step, {compute:,.1f} ms at the chips' peak",
                f"  {exchanged:,.0f} MiB exchanged a step ({in_mebibytes(self.collectives)}), "
                f"{exchange:,.1f} ms at the links' full rate",
            ]
        )


def in_mebibytes(sizes: dict[str, int]) -> str:
    """Return bytes by name in words, those of nothing left out."""
    return ", ".join(f"{name} {size / MIB:,.0f}" for name, size in sizes.items() if size)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what a config needs on each slice, and write it down where asked."""
    parser = Parser(prog="otter-jax plan", description=__doc__)
    parser.add_argument("--config", required=True, help="a preset's name")
    parser.add_argument("--topology", required=True, help="v5e:4x4 or v4-32; several with commas")
    parser.add_argument("--complete", action="store_true", help="compile to the end: it can be run")
    parser.add_argument("--out", type=Path, help="a JSON file to write the numbers to")
    options, rest = parser.parse_known_args(arguments)
    with ending_in_one_line():
        config = read_preset(options.config)
        set_keys(config, rest)
        config_lib.check(config)
        plans = []
        for topology in map(parse_topology, options.topology.split(",")):
            plans.append(plan(config, topology, complete=options.complete))
            say(str(plans[-1]))
        if options.out is not None:
            write_json(options.out, [dataclasses.asdict(each) for each in plans])


def set_keys(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Set what arguments such as `--config.fsdp=True` say.

    Raises:
        ValueError: an argument of another form, an unknown key, or a value of the wrong type.
    """
    for argument in arguments:
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not (argument.startswith("--config.") and equals):
            raise ValueError(f"unknown argument {argument!r}: config keys are --config.KEY=VALUE")
        if problem := config_lib.describe_unknown_key(key):
            raise ValueError(problem)
        try:
            value = literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # A word needs no quotation marks.
        try:
            with config.unlocked():  # Overrides of a tower are keys of their own.
                config.update_from_flattened_dict({key: value})
        except TypeError as error:
            raise ValueError(f"--config.{key}={text}: {error}") from None


def plan(config: ConfigDict, topology: Topology, *, complete: bool = False) -> Plan:
    """Compile a config's step for a slice, in a process of its own, and return what it takes.

    Args:
        config: a complete one.
        topology: the slice.
        complete: compile to the end, instead of until memory is assigned.

    Raises:
        ModuleNotFoundError: there is no compiler for it.
        ValueError: the batch does not divide, or the compiler gave up or aborted.
    """
    topology.refuse_missing_compiler()
    sharding.refuse_batch_size(config.batch_size, topology.chips)
    with tempfile.TemporaryDirectory(prefix="otter_jax_plan_") as name:
        folder = Path(name)
        write_json(folder / "config.json", config_lib.as_dict(config))
        compile_in_child(folder, topology, complete=complete)
        facts = read_json(folder / FACTS)
        report = compiler_reports.dumped(folder, compiler_reports.REPORT)
        program = compiler_reports.dumped(folder, PROGRAM)
    exchanged: dict[str, int] = {}
    for each in compiler_reports.collectives(program):
        exchanged[each.kind] = exchanged.get(each.kind, 0) + each.size
    generation = topology.generation
    bfloat16, float32 = generation.peak
    peak = 1e12 * (bfloat16 if config.model.dtype == "bfloat16" else float32)
    return Plan(
        topology=str(topology),
        chips=topology.chips,
        batch_size=config.batch_size,
        chip_memory=int(generation.memory * GIB),
        memory=compiler_reports.memory(report),
        state=facts["state"],
        flops=facts["flops"],
        collectives=exchanged,
        compute_seconds=facts["flops"] / topology.chips / peak,
        exchange_seconds=sum(exchanged.values()) / (1e9 * generation.link),
    )


def compile_in_child(folder: Path, topology: Topology, *, complete: bool) -> None:
    """Run `compile_step` in another process until its reports are in the folder.

    Raises:
        ValueError: it ended without them, saying how.
    """
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
    log = folder / "log.txt"
    with (
        log.open("w", encoding="utf-8") as output,
        subprocess.Popen(
            child_command(folder, topology),
            env=os.environ | ENVIRONMENT | {"XLA_FLAGS": flags},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as child,
    ):
        try:
            while child.poll() is None and (complete or not is_reported(folder)):
                time.sleep(0.5)
        finally:
            child.kill()
    if is_reported(folder) and child.returncode in (0, -signal.SIGKILL):
        return
    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
    how = f"signal {-child.returncode}" if child.returncode < 0 else f"status {child.returncode}"
    raise ValueError(f"{topology}: the compiler ended with {how}; its last words: {words[-1]}")


def child_command(folder: Path, topology: Topology) -> list[str]:
    """Return the command that runs this file's `compile_step`."""
    return [sys.executable, "-m", "otter_jax.commands.plan", str(folder), str(topology)]


def is_reported(folder: Path) -> bool:
    """Return whether all that a plan reads has been written."""
    report = compiler_reports.dumped(folder, compiler_reports.REPORT)
    return (folder / FACTS).is_file() and report is not None and "Total bytes" in report


def compile_step(folder: Path, topology: Topology) -> None:
    """Write down what is known before compilation, then compile; XLA dumps the rest."""
    from otter_jax.training.shapes import describe_step

    config = config_lib.load_config(folder / "config.json")
    mesh = sharding.make_mesh(config.mesh.fsdp, topology.devices())
    step, state, batch = describe_step(config, mesh)
    kinds = {
        "parameters": state.variables,
        "optimizer": state.opt_state,
        "teacher": state.teacher,
        "queue": state.memory,
    }
    facts = {
        "state": {name: sharding.bytes_on_a_device(tree) for name, tree in kinds.items()},
        "flops": count_flops(config),
    }
    write_json(folder / FACTS, facts)
    step.trace(state, batch).lower().compile()


def count_flops(config: ConfigDict) -> float:
    """Return the floating-point operations of a step, which is lowered for one CPU for that."""
    from otter_jax.training.shapes import describe_step

    whole = config.copy_and_resolve_references()
    whole.micro_batch, whole.fsdp, whole.mesh.fsdp = None, False, None
    step, state, batch = describe_step(whole, sharding.make_mesh())
    return (step.lower(state, batch).cost_analysis() or {}).get("flops", 0.0)


if __name__ == "__main__":
    compile_step(Path(sys.argv[1]), parse_topology(sys.argv[2]))
