"""What XLA writes about a program that it compiles: memory of a device, and collectives."""

import dataclasses
import math
import re
from pathlib import Path

BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4,
         "u32": 4, "f64": 8, "s64": 8, "u64": 8}  # fmt: skip
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
REPORT = "memory-usage-report.txt"


@dataclasses.dataclass(frozen=True)
class Collective:
    """A sum or an exchange over devices.

    Attributes:
        kind: one of KINDS.
        size: bytes that one device has of its result; those of one round within a loop.
    """

    kind: str
    size: int


def collectives(program: str) -> list[Collective]:
    """Return the collectives of a compiled program's text.

    Those of one channel are one: a compiler that runs an exchange beside other work may write it
    into each of the pieces.
    """
    found = {}
    for number, line in enumerate(program.splitlines()):
        if (match := COLLECTIVE.search(line)) is None:
            continue
        channel = re.search(r"channel_id=(\d+)", line)
        key = channel[1] if channel else f"line {number}"
        found.setdefault(key, Collective(match[2], shapes_size(match[1])))
    return list(found.values())


def shapes_size(text: str) -> int:
    """Return the bytes of all arrays that a text names, such as `(f32[8,2], pred[])`."""
    return sum(
        BYTES[dtype] * math.prod(map(int, filter(None, shape.split(","))))
        for dtype, shape in SHAPE.findall(text)
        if dtype in BYTES
    )


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
