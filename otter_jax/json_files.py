"""JSON on disk: whole files that are never half written, and files of one object a line."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON; a reader finds the old file or the new one, never half of one."""
    if jax.process_index() != 0:
        return
    # Of this process alone: a run may be evaluated by several at once.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        _flush_to_disk(file)
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, no JSON ({error})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; ValueError naming it if it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it should hold an object, found {value!r:.40}")
    return value


class JsonLines:
    """A file of one JSON object a line, each with its `step`; goes on where a run resumes."""

    def __init__(self, path: Path, resume_step: int):
        """Open `path` and drop the lines of steps after `resume_step`, which will come again.

        Raises:
            ValueError: as `read_json_lines`.
        """
        kept = [line for line, values in _read_lines(path) if values["step"] <= resume_step]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line and hand it to the operating system (OSError naming the file)."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self._file.name} cannot be written: {error.strerror}") from error

    def sync(self) -> None:
        """Wait until the lines are on disk."""
        _flush_to_disk(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file that `JsonLines` writes, which may be missing.

    A last line that is half written is left out.

    Raises:
        ValueError: naming the file and the line that is no object with a `step`.
    """
    return [values for _, values in _read_lines(path)]


def _read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return lines as they stand, each with its object; errors are those of `read_json_lines`."""
    found = []
    try:
        lines = _complete_lines(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged, no text ({error})") from None
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict) or not isinstance(value.get("step"), int):
            raise ValueError(
                f"{path} is damaged: line {number} is no JSON object with a step; "
                "remove the line to go on without it"
            )
        found.append((line, value))
    return found


def _complete_lines(path: Path) -> list[str]:
    """Return the lines of a file that may be missing or end in the middle of one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]


def _flush_to_disk(file: TextIO) -> None:
    """Have a file survive a loss of power, not only the end of the process."""
    file.flush()
    os.fsync(file.fileno())
