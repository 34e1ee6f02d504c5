"""How data are named: KIND, KIND:PATH, KIND:PATH?option=value&option=value."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Self

KIND_OF_SUFFIX = {".tar": "webdataset"} | dict.fromkeys(
    (".csv", ".tsv", ".jsonl", ".parquet"), "csv"
)
_OPTIONS = re.compile(r"\?(\w+=[^?&]+(?:&\w+=[^?&]+)*)$")


@dataclasses.dataclass(frozen=True)
class Spec:
    """A SPEC, taken apart.

    Attributes:
        name: The SPEC as it was written.
        kind: What stands before the first colon, such as `csv`.
        path: What stands behind it, `~` expanded; empty where there is no colon.
        options: What stands behind the question mark.
    """

    name: str
    kind: str
    path: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a SPEC apart. Paths may hold question marks, as globs do, but no `?name=value`.

        Raises:
            ValueError: If an option is given twice, or if the text holds what no path can.
        """
        if "\0" in text:
            raise ValueError(f"{text!r} holds a NUL, which no path does")
        found = _OPTIONS.search(text)
        plain = text[: found.start()] if found else text
        parts = [part.split("=", 1) for part in found[1].split("&")] if found else []
        options = dict(parts)
        if len(options) < len(parts):
            raise ValueError(f"{text}: an option is given twice")
        kind, _, path = plain.partition(":")
        return cls(text, kind, os.path.expanduser(path), options)

    def refuse_options_but(self, *known: str) -> None:
        """Refuse options that the kind does not have.

        Raises:
            ValueError: Naming the first such option.
        """
        for option in self.options:
            if option not in known:
                there = ", ".join(known) or "none"
                raise ValueError(f"{self.name}: unknown option {option!r}; there are: {there}")


def spec_of_path(text: str) -> str | None:
    """Return the SPEC that a bare path should have been, None where there is nothing at it.

    >>> spec_of_path("no/such/pairs.csv") is None
    True
    """
    path = Path(text).expanduser()
    if not text:
        return None
    if path.is_dir():
        inside = (("dataset_info.json", "tfds"), ("*.tar", "webdataset"))
        kind = next((kind for pattern, kind in inside if any(path.glob(pattern))), "folder")
    else:
        kind = KIND_OF_SUFFIX.get(path.suffix) if path.is_file() else None
    return f"{kind}:{text}" if kind else None
