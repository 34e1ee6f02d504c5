"""Tries checkpoints of every kind that users hold, and prints what becomes of each.

    python -m tests.oracle.sweep [LIBRARY[:PATTERN] ...] [--out=FILE.json]

It takes an hour or two (extra [oracle-sweep]); test_sample.py has a sample of the same cases. The
totals belong into docs/checkpoints.md.
"""

import argparse
import fnmatch
import importlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

from tests.oracle.comparing import Case, judge, totals

LIBRARIES = {
    "timm": "timm",
    "open_clip": "open_clip_torch",
    "transformers": "transformers",
    "sentence_transformers": "sentence-transformers",
}


def all_cases(wanted: list[str]) -> Iterator[Case]:
    """Yield the cases of the libraries, or of patterns of their names, that are asked for."""
    for each in wanted or LIBRARIES:
        library, _, pattern = each.partition(":")
        for case in importlib.import_module(f"tests.oracle.{library}_cases").cases():
            if fnmatch.fnmatch(case.name, pattern or "*"):
                yield case


def main() -> None:
    """Judge all cases and print the totals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wanted", nargs="*", help="a library, or one with a pattern of names")
    parser.add_argument("--out", type=Path, help="where the verdicts go, as JSON")
    arguments = parser.parse_args()
    verdicts = []
    for case in all_cases(arguments.wanted):
        verdict = judge(case)
        verdicts.append(verdict)
        print(
            f"{verdict.outcome:9}  {case.library:12} {case.name:60} "
            f"{verdict.error:8.1e} {verdict.seconds:5.1f} s  {verdict.message}",
            flush=True,
        )
    for library, counts in totals(verdicts).items():
        version = importlib.metadata.version(LIBRARIES[library])
        print(f"{library} {version}: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    if arguments.out:
        rows = [
            {"library": v.case.library, "name": v.case.name, "outcome": v.outcome}
            | {"error": v.error, "seconds": v.seconds, "message": v.message}
            for v in verdicts
        ]
        arguments.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
