"""What an entry of config.evaluate.sets says: KIND, KIND:PATH, KIND:PATH?option=value."""

from pathlib import Path

from otter_jax.data import specs
from otter_jax.evaluation.class_lists import ClassList, read_class_list


class Spec(specs.Spec):
    """One entry of config.evaluate.sets; its name is what results call the set."""

    @classmethod
    def parse(cls, text: str, known: tuple[str, ...] = ("classes",)) -> "Spec":
        """Take an entry apart.

        Raises:
            ValueError: for an option that is not known.
        """
        spec = super().parse(text)
        spec.refuse_options_but(*known)
        return spec

    @property
    def source(self) -> str:
        """The entry without its options."""
        return f"{self.kind}:{self.path}" if self.path else self.kind

    def class_list(self) -> ClassList | None:
        """Return the class list of the option `classes`, or None."""
        path = self.options.get("classes")
        return read_class_list(Path(path).expanduser()) if path else None
