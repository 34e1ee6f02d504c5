"""Class lists: which classes are ranked, by which ids labels call them, and their names."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from otter_jax.data.text_files import read_lines
from otter_jax.evaluation.ranks import MISSING

Names = tuple[str, ...]  # A class's names, all of one meaning.


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Ranked classes in their order.

    Attributes:
        ids: what labels call them; distinct.
        names: the names of each.
        origin: where they come from, for messages.
    """

    ids: tuple[str, ...]
    names: tuple[Names, ...]
    origin: str

    def __post_init__(self) -> None:
        """Refuse an empty list, blank names and repeated ids (ValueError naming the first)."""
        if not self.ids:
            raise ValueError(f"{self.origin}: the list of classes is empty")
        seen: set[str] = set()
        for number, (each, names) in enumerate(zip(self.ids, self.names, strict=True)):
            if not names or not all(name.strip() for name in names):
                raise ValueError(f"{self.origin}: class {number} ({each!r}) has a blank name")
            if each in seen:
                raise ValueError(f"{self.origin}: class {each!r} is listed twice")
            seen.add(each)

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.ids)

    def numbers(self, labels: Iterable[Sequence[str]], where: str) -> np.ndarray:
        """Return labels by id as class numbers, int32 [n, most], padded with -1.

        Raises:
            ValueError: naming the first id that is not in the list.
        """
        number = {each: place for place, each in enumerate(self.ids)}
        rows = []
        for place, ids in enumerate(labels):
            for each in ids:
                if each not in number:
                    raise ValueError(
                        f"{where}: image {place + 1} has the unknown class {each!r}, which is not "
                        f"in {self.origin} ({len(self)} classes, such as {self.ids[0]!r})"
                    )
            rows.append([number[each] for each in ids])
        return pad_labels(rows)


def pad_labels(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Return class numbers of every image, int32 [n, most], padded with -1."""
    labels = np.full((len(rows), max(map(len, rows), default=0) or 1), MISSING, np.int32)
    for row, numbers in zip(labels, rows, strict=True):
        row[: len(numbers)] = numbers
    return labels


def read_class_list(path: Path) -> ClassList:
    """Read a text file of one class a line.

    A line is `name`, or `id<TAB>name` where labels (or folders) call the class by an id; several
    names of one class are separated by "|". Without an id, labels call a class by its first name,
    or by the whole line where other classes have the same.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for an empty file, a blank line or name, an id that is listed twice, or a file
            that is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no class list at {path}")
    ids, names = [], []
    lines = read_lines(path)
    first_names = Counter(line.split("|")[0].strip() for line in lines if "\t" not in line)
    for number, line in enumerate(lines, start=1):
        each, tab, listed = line.partition("\t")
        if not line.strip():
            raise ValueError(f"{path}: line {number} is blank; every line is a class")
        names.append(tuple(name.strip() for name in (listed if tab else line).split("|")))
        first = names[-1][0]
        ids.append(each.strip() if tab or first_names[first] > 1 else first)
    return ClassList(tuple(ids), tuple(names), str(path))
