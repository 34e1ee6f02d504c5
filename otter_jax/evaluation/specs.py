"""What an entry of config.evaluate.sets says: KIND, KIND:PATH, KIND:PATH?option=value."""

import dataclasses
import os
import re
from pathlib import Path

from otter_jax.evaluation.class_lists import ClassList, read_class_list

OPTIONS = re.compile(r"\?(\w+=[^?&]+(?:&\w+=[^?&]+)*)$")


@dataclasses.dataclass(frozen=True)
class Spec:
    """One entry of config.evaluate.sets.

    Attributes:
      name: the entry as it was written; what results call the set.
      kind: what stands before the first colon, such as `folder`.
      path: what stands behind it, `~` expanded; empty where there is no colon.
      options: what stands behind the question mark.
    """

    name: str
    kind: str
    path: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str, known: tuple[str, ...] = ("classes",)) -> "Spec":
        """Takes an entry apart.

        Raises:
          ValueError: for an option that is not known.
        """
        found = OPTIONS.search(text)
        plain = text[: found.start()] if found else text
        options = dict(part.split("=", 1) for part in found[1].split("&")) if found else {}
        for option in options:
            if option not in known:
                raise ValueError(
                    f"{text}: unknown option {option!r}; there are: {', '.join(known)}"
                )
        kind, _, path = plain.partition(":")
        return cls(text, kind, os.path.expanduser(path), options)

    @property
    def source(self) -> str:
        """The entry without its options."""
        return f"{self.kind}:{self.path}" if self.path else self.kind

    def class_list(self) -> ClassList | None:
        """The class list of the option `classes`, or None."""
        path = self.options.get("classes")
        return read_class_list(Path(path).expanduser()) if path else None
