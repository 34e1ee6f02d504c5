"""Many short strings in two arrays: ten million names without ten million Python objects."""

from array import array
from collections.abc import Iterable


class PackedStrings:
    """A list that only grows, of strings (also of those that were no UTF-8)."""

    def __init__(self, strings: Iterable[str] = ()) -> None:
        """Start with some strings."""
        self._blob = bytearray()
        self._ends = array("Q", [0])
        for string in strings:
            self.append(string)

    def append(self, string: str) -> None:
        """Add a string at the end."""
        self._blob += string.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._blob))

    def __len__(self) -> int:
        """Return the number of strings."""
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        """Return string `i`, counted from 0."""
        return self._blob[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")
