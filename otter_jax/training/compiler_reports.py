"""What XLA writes about a program that it compiles: memory of a device, traffic, collectives."""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4,
         "u32": 4, "f64": 8, "s64": 8, "u64": 8}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
CALLED = re.compile(r"(?:body|to_apply|calls|\w+_computations?)=(\{[^}]*\}|%[\w.-]+)")
NAME = re.compile(r"%([\w.-]+)")
ON_CHIP = "S(1)"  # In a layout: the array lies in the chip's own memory (VMEM on TPUs).
# What moves nothing: names for arrays that are there, and the ends of what was begun before.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota",
        "partition-id", "replica-id"}  # fmt: skip
REPORT = "memory-usage-report.txt"


@dataclasses.dataclass(frozen=True)
class Collective:
    """A sum or an exchange over devices.

    Attributes:
        kind: one of KINDS.
        size: bytes that one device has of its result.
        times: how often it runs, in a loop.
    """

    kind: str
    size: int
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a compiled program: `%name = result operation(rest`."""

    name: str
    result: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of its operands."""
        depth = 1
        for place, letter in enumerate(self.rest):
            depth += {"(": 1, ")": -1}.get(letter, 0)
            if depth == 0:
                return NAME.findall(self.rest[:place])
        return []

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        return [name for found in CALLED.findall(self.rest) for name in NAME.findall(found)]


class Program:
    """The text of a compiled program, as XLA dumps it."""

    def __init__(self, text: str) -> None:
        """Read the computations and their instructions."""
        self._computations: dict[str, list[Instruction]] = {"": []}
        self._entry = current = ""  # Lines without a header are an entry of their own.
        for line in text.splitlines():
            if match := HEADER.match(line):
                current = match[2]
                self._computations[current] = []
                self._entry = current if match[1] else self._entry
            elif match := INSTRUCTION.match(line):
                self._computations[current].append(Instruction(*match.groups()))
        self._results = {
            each.name: each.result for lines in self._computations.values() for each in lines
        }

    def run(self) -> Iterator[tuple[Instruction, int]]:
        """Yield the instructions as they run, each with how often; fusions are one."""
        for each, times, _ in self._run(self._entry, 1, 1):
            yield each, times

    def _run(
        self, computation: str, times: int, rounds: int
    ) -> Iterator[tuple[Instruction, int, int]]:
        """Yield them with how often they run in all, and in the innermost loop around them."""
        for each in self._computations.get(computation, []):
            if each.operation == "while":
                inside = self._rounds(each)
                for called in each.called:
                    yield from self._run(called, times * inside, inside)
            elif each.operation in ("call", "conditional", "async-start"):
                for called in each.called:
                    yield from self._run(called, times, rounds)
            else:
                yield each, times, rounds

    def _rounds(self, loop: Instruction) -> int:
        """Return how often a loop runs, as its annotation or else its condition says; 1 if none."""
        if match := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
            return int(match[1])
        condition = re.search(r"condition=%([\w.-]+)", loop.rest)
        lines = self._computations.get(condition[1], []) if condition else []
        limits = [
            int(each.rest.partition(")")[0])
            for each in lines
            if each.operation == "constant" and each.result.startswith("s32[]")
        ]
        return max(limits, default=1)

    def collectives(self) -> list[Collective]:
        """Return the collectives.

        Those of one channel are one: a compiler that runs an exchange beside other work may write
        it into each of the pieces.
        """
        found = {}
        for number, (each, times) in enumerate(self._exchanges()):
            kind = each.operation.removesuffix("-start")
            channel = re.search(r"channel_id=(\d+)", each.rest)
            key = channel[1] if channel else f"number {number}"
            sizes = shape_sizes(each.result)
            if each.operation.endswith("-start") and kind in ("all-gather", "collective-permute"):
                sizes = [size for size in sizes if size > 4]  # Less the scalars that come along.
                sizes = sizes[len(sizes) // 2 :]  # Operands, then results.
            found.setdefault(key, Collective(kind, sum(sizes), times))
        return list(found.values())

    def _exchanges(self) -> Iterator[tuple[Instruction, int]]:
        inside = {each.name for each, _ in self.run()}
        for each, times in self.run():
            if each.operation.removesuffix("-start") in KINDS:
                yield each, times
        for lines in self._computations.values():  # Those that run within a fusion.
            for each in lines:
                if each.name not in inside and each.operation.removesuffix("-start") in KINDS:
                    yield each, 1

    def traffic(self) -> int:
        """Return the bytes between a device and its memory: operands and results at each border.

        An upper bound: an array of which a part is read counts whole, but that a round of a loop
        is taken to need one row of what has as many rows as the loop has rounds, such as the
        weights of equal layers side by side. What is said to lie on the chip does not count.
        """
        total = 0
        for each, times, rounds in self._run(self._entry, 1, 1):
            if each.operation in FREE or each.operation.endswith("-done"):
                continue
            arrays = [each.result, *(self._results.get(name, "") for name in each.operands)]
            moved = sum(sum(shape_sizes(text, off_chip=True, rows=rounds)) for text in arrays)
            total += times * moved
        return total

    def cycles(self) -> int:
        """Return the compiler's estimate of a device's cycles, 0 where it makes none (GPUs)."""
        found = (
            (re.search(r'"estimated_cycles":"(\d+)"', each.rest), times)
            for each, times in self.run()
        )
        return sum(int(match[1]) * times for match, times in found if match)


def shape_sizes(text: str, *, off_chip: bool = False, rows: int = 1) -> list[int]:
    """Return the bytes of all arrays that a text names, such as `(f32[8,2]{1,0}, pred[])`.

    Args:
        text: of a result or of operands.
        off_chip: leave out what lies on the chip.
        rows: of an array with so many rows, take one.
    """
    sizes = []
    for dtype, shape, layout in SHAPE.findall(text):
        if dtype not in BYTES or (off_chip and ON_CHIP in layout):
            continue
        axes = list(map(int, filter(None, shape.split(","))))
        size = BYTES[dtype] * math.prod(axes)
        sizes.append(size // rows if axes[:1] == [rows] else size)
    return sizes


def memory(report: str) -> int:
    """Return the bytes of a device that XLA's memory-usage report assigns.

    Raises:
        ValueError: it is no such report.
    """
    match = re.search(r"color=0\)\nTotal bytes: (\d+)", report)
    if match is None:
        raise ValueError("XLA's memory report does not say how many bytes it assigns")
    return int(match[1])


def dumped(folder: Path, ending: str, module: str = "jit_train_step") -> str | None:
    """Return the text that XLA has dumped of a module under a name with this ending, if it has."""
    files = sorted(folder.glob(f"*{module}*{ending}"))
    return files[0].read_text(encoding="utf-8") if files else None
