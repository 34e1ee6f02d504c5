"""Says what a config needs on devices that are not there: otter-jax plan --topology=v5e:4x4.

Neither the devices, nor weights, nor data are needed: XLA's compilers for TPUs and for GPUs run on
any machine (pip install 'otter_jax[plan]', 'otter_jax[plan-gpu]'). They run in a process of their
own, because they may abort; that process is stopped when memory is assigned and the exchange
between devices is known, after a minute or two. What follows is generating code, which for a TPU
takes ten times as long (--complete).
"""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from ast import literal_eval
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import objectives, sharding
from otter_jax.commands.command_line import Parser, ending_in_one_line, hearing_termination, path_of
from otter_jax.json_files import read_json, write_json
from otter_jax.pictures.plans import draw_plans
from otter_jax.preset_files import read_preset
from otter_jax.runs.workdir import refuse_unwritable
from otter_jax.terminal import say
from otter_jax.training import compiler_reports, shapes
from otter_jax.training.topologies import Topology, parse_topology

GIB, MIB = 2**30, 2**20
STATE, COMPLETE = "state.json", "complete.txt"
# libtpu asks a cloud's server what machine this is, and allows one process, unless told otherwise.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# What saves memory, each by itself; micro-batches a quarter of the batch.
REMEDIES = ("fsdp=True", "micro_batch", "model.image.remat=True", "model.dtype=bfloat16")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step takes on some devices.

    Attributes:
        topology: the devices.
        chips: how many.
        batch_size: pairs.
        steps: of the run, where the config says so; otherwise of a million pairs.
        chip_memory: bytes that a chip has.
        memory: bytes of a chip that the step takes.
        state: of these, parameters, statistics, moments, teacher and queue, by kind.
        flops: floating-point operations of the step on all chips; of a tiled loss one tile.
        traffic: bytes between a chip and its memory, at most.
        collectives: bytes that a chip gets from the others, by kind.
        seconds: the time for compute, memory and exchange, each at its full rate.
        estimated_seconds: by the compiler's own estimate, which only TPUs' makes, and only when it
            compiles to the end; without waiting for other chips.
    """

    topology: str
    chips: int
    batch_size: int
    steps: int
    chip_memory: int
    memory: int
    state: dict[str, int]
    flops: float
    traffic: int
    collectives: dict[str, int]
    seconds: dict[str, float]
    estimated_seconds: float | None = None

    @property
    def fits(self) -> bool:
        """Whether a chip has as much memory."""
        return self.memory <= self.chip_memory

    @property
    def memory_by_kind(self) -> dict[str, int]:
        """Bytes of a chip by what they hold."""
        rest = self.memory - sum(self.state.values())
        return {k: v for k, v in self.state.items() if v} | {"activations and loss": rest}

    @property
    def largest_batch(self) -> int:
        """About how many pairs would fill the chips: all but the state grows with the batch."""
        free = self.chip_memory - sum(self.state.values())
        a_pair = self.memory_by_kind["activations and loss"] * self.chips / self.batch_size
        return max(0, int(free / a_pair)) * self.chips if a_pair else self.batch_size

    @property
    def limit(self) -> str:
        """What takes the longest of compute, memory and exchange."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def step_seconds(self) -> float:
        """Time of a step if compute, memory and exchange go on side by side."""
        return max(*self.seconds.values(), self.estimated_seconds or 0.0)

    def as_dict(self) -> dict:
        """Return everything for a JSON file, what follows from the rest as well."""
        names = ("fits", "largest_batch", "limit", "step_seconds")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        """Return the lines for the screen."""
        times = ", ".join(f"{name} {1e3 * each:,.1f}" for name, each in self.seconds.items())
        rate, hours = self.batch_size / self.step_seconds, self.steps * self.step_seconds / 3600
        estimate = ""
        if self.estimated_seconds is not None:
            estimate = f"; by the compiler's estimate {1e3 * self.estimated_seconds:,.1f} ms"
        return "\n".join(
            [
                f"{self.topology}: {self.chips} chips, {self.batch_size // self.chips} pairs each",
                f"  {'fits' if self.fits else 'does not fit'}: {self.memory / GIB:.2f} of "
                f"{self.chip_memory / GIB:.2f} GiB of a chip (MiB: "
                f"{in_mebibytes(self.memory_by_kind)}); about {self.largest_batch:,} pairs would",
                f"  {self.flops / 1e12:,.2f} TFLOP a step; a chip moves {self.traffic / GIB:,.1f} "
                f"GiB from and to its memory and gets {sum(self.collectives.values()) / MIB:,.0f} "
                f"MiB from others ({in_mebibytes(self.collectives) or 'none'})",
                f"  at full rates, ms: {times}: limited by {self.limit}{estimate}",
                f"  so about {rate:,.0f} pairs a second, and {hours:,.1f} hours for "
                f"{self.steps:,} steps",
            ]
        )


def in_mebibytes(sizes: dict[str, int]) -> str:
    """Return bytes by name in words, those of nothing left out."""
    return ", ".join(f"{name} {size / MIB:,.0f}" for name, size in sizes.items() if size)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what a config needs on each kind of devices, write it down and draw it where asked."""
    parser = Parser(
        prog="otter-jax plan", description=__doc__, epilog="keys of the config: --config.KEY=VALUE"
    )
    parser.add_argument("--config", required=True, help="a preset's name, or a file")
    parser.add_argument(
        "--topology", required=True, help="v5e:4x4, v4-32 or h100:2x8; several with commas"
    )
    parser.add_argument("--complete", action="store_true", help="compile to the end: it can be run")
    parser.add_argument("--pairs", type=int, help="of the training set, for the hours of the run")
    parser.add_argument(
        "--out", type=path_of, help="a folder for plan.json and plan.png (default: plans/CONFIG)"
    )
    options, rest = parser.parse_known_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # This machine's own devices are not asked.
    with ending_in_one_line(), hearing_termination():
        config = read_preset(options.config)
        set_keys(config, rest)
        if options.pairs is not None:
            config.total_steps = steps_for(config, options.pairs)
        config_lib.check(config)
        out = options.out or Path("plans") / Path(options.config.partition(":")[0]).stem
        refuse_unwritable(out, "--out")
        chosen = [parse_topology(name.strip()) for name in options.topology.split(",")]
        for topology in chosen:  # Before a minute is spent on the first.
            refuse(config, topology)
        flops = count_flops(config)
        plans = []
        for topology in chosen:
            plans.append(plan(config, topology, flops, complete=options.complete))
            say(str(plans[-1]))
            if not plans[-1].fits:
                for line in remedies(config, topology):
                    say(line)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "plan.json", [each.as_dict() for each in plans])
        draw_plans(out / "plan.png", options.config, plans)
        say(f"written: {out / 'plan.json'}, and plan.png beside it")


def steps_for(config: ConfigDict, pairs: int) -> int:
    """Return the steps of a run over so many pairs.

    Raises:
        ValueError: there are fewer pairs than in a batch.
    """
    if pairs < config.batch_size:
        raise ValueError(f"--pairs={pairs}: a batch alone has {config.batch_size}")
    return config.total_steps or int(config.total_epochs * pairs / config.batch_size)


def remedied(config: ConfigDict, topology: Topology) -> Iterator[tuple[str, ConfigDict]]:
    """Yield a config with each key that saves memory, by itself, behind that key: `fsdp=True`."""
    for remedy in REMEDIES:
        if remedy == "micro_batch":
            remedy = f"micro_batch={max(topology.chips, config.batch_size // 4)}"
        changed = config.copy_and_resolve_references()
        set_keys(changed, [f"--config.{remedy}"])
        yield remedy, changed


def remedies(config: ConfigDict, topology: Topology) -> Iterator[str]:
    """Yield a line for each key that saves memory: whether it would make the step fit."""
    for remedy, changed in remedied(config, topology):
        try:
            found = plan(changed, topology, flops=0.0)  # Its time is not asked for.
        except ValueError as error:
            yield f"  with --config.{remedy}: {error}"
            continue
        words = "fits" if found.fits else "does not fit either"
        yield f"  with --config.{remedy}: {found.memory / GIB:.2f} GiB, {words}"


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


def refuse(config: ConfigDict, topology: Topology) -> None:
    """Refuse what can be told before compiling.

    Raises:
        ModuleNotFoundError: there is no compiler for the slice.
        ValueError: the batch, its parts, the queue or the groups of `mesh.fsdp` do not divide over
            it, or a tower is one that only its checkpoint names.
    """
    shapes.refuse_unnamed_towers(config)
    for key in ("batch_size", "micro_batch"):
        sharding.refuse_batch_size(config[key] or topology.chips, topology.chips, key)
    sharding.refuse_group(config.mesh.fsdp, topology.chips)
    objectives.check_queue(
        objectives.make_method(**config.objective), config.batch_size, topology.chips
    )
    topology.refuse_missing_compiler()


def plan(config: ConfigDict, topology: Topology, flops: float, *, complete: bool = False) -> Plan:
    """Compile a config's step for a slice, in a process of its own, and return what it takes.

    Args:
        config: a complete one.
        topology: the slice.
        flops: of the step, which `count_flops` returns: the same on any devices.
        complete: compile to the end, instead of until memory is assigned.

    Raises:
        ModuleNotFoundError, ValueError: as `refuse`, or the compiler gave up or aborted.
    """
    refuse(config, topology)
    with tempfile.TemporaryDirectory(prefix="otter_jax_plan_") as name:
        folder = Path(name)
        write_json(folder / "config.json", config_lib.as_dict(config))
        compile_in_child(folder, topology, complete=complete)
        state = read_json(folder / STATE)
        report = compiler_reports.dumped(folder, compiler_reports.REPORT)
        program = compiler_reports.Program(compiler_reports.dumped(folder, topology.program))
        estimated = None
        if complete and topology.clock:
            whole = (folder / COMPLETE).read_text(encoding="utf-8")
            estimated = compiler_reports.Program(whole).cycles() / (1e9 * topology.clock)
    exchanged: dict[str, int] = {}
    for each in program.collectives():
        exchanged[each.kind] = exchanged.get(each.kind, 0) + each.size * each.times
    chip, traffic = topology.chip, program.traffic()
    bfloat16, float32 = chip.peak
    peak = 1e12 * (bfloat16 if config.model.dtype == "bfloat16" else float32)
    return Plan(
        topology=str(topology),
        chips=topology.chips,
        batch_size=config.batch_size,
        steps=config.total_steps or 10**6 // config.batch_size,
        chip_memory=int(chip.memory * GIB),
        memory=compiler_reports.memory(report),
        state=state,
        flops=flops,
        traffic=traffic,
        collectives=exchanged,
        seconds={
            "compute": flops / topology.chips / peak,
            "memory": traffic / (1e9 * chip.bandwidth),
            "exchange": sum(exchanged.values()) / (1e9 * chip.link),
        },
        estimated_seconds=estimated,
    )


def compile_in_child(folder: Path, topology: Topology, *, complete: bool) -> None:
    """Run `compile_step` in another process until its reports are in the folder.

    Raises:
        ValueError: it ended without them, saying how.
    """
    flags = f"--xla_dump_to={folder} --xla_dump_hlo_as_text {topology.flags}"
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
            while child.poll() is None and (complete or not is_reported(folder, topology)):
                time.sleep(0.5)
        finally:
            child.kill()
    if is_reported(folder, topology) and child.returncode in (0, -signal.SIGKILL):
        return
    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
    how = f"signal {-child.returncode}" if child.returncode < 0 else f"status {child.returncode}"
    # An exception's traceback may go on behind what it says.
    telling = [line for line in words if re.match(r"[\w.]*(Error|Exception):", line)] or words
    raise ValueError(f"{topology}: the compiler ended with {how}; its last words: {telling[-1]}")


def child_command(folder: Path, topology: Topology) -> list[str]:
    """Return the command that runs this file's `compile_step`."""
    return [sys.executable, "-m", "otter_jax.commands.plan", str(folder), str(topology)]


def is_reported(folder: Path, topology: Topology) -> bool:
    """Return whether all that a plan reads has been written."""
    report = compiler_reports.dumped(folder, compiler_reports.REPORT)
    program = compiler_reports.dumped(folder, topology.program)
    written = report is not None and "Total bytes" in report and program is not None
    return written and (folder / STATE).is_file()


def compile_step(folder: Path, topology: Topology) -> None:
    """Write down what is known before compilation, then compile; XLA dumps the rest."""
    config = config_lib.load_config(folder / "config.json")
    mesh = sharding.make_mesh(config.mesh.fsdp, topology.devices())
    step, state, batch = shapes.describe_step(config, mesh)
    kinds = {
        "parameters": state.variables,
        "optimizer": state.opt_state,
        "teacher": state.teacher,
        "queue": state.memory,
    }
    sizes = {name: sharding.bytes_on_a_device(tree) for name, tree in kinds.items()}
    write_json(folder / STATE, sizes)
    compiled = step.trace(state, batch).lower().compile()
    (folder / COMPLETE).write_text(compiled.as_text(), encoding="utf-8")


def count_flops(config: ConfigDict) -> float:
    """Return the floating-point operations of a step, which is lowered for one CPU for that."""
    whole = config.copy_and_resolve_references()
    whole.micro_batch, whole.fsdp, whole.mesh.fsdp = None, False, None
    for tower in (whole.model.image, whole.model.text):
        tower.scan_layers = False  # Of a loop one round would count.
    mesh = sharding.make_mesh(devices=jax.devices("cpu")[:1])
    step, state, batch = shapes.describe_step(whole, mesh)
    return (step.lower(state, batch).cost_analysis() or {}).get("flops", 0.0)


if __name__ == "__main__":
    compile_step(Path(sys.argv[1]), parse_topology(sys.argv[2]))
