"""What an entry of config.evaluate.sets says: KIND, KIND:PATH, KIND:PATH?option=value."""

from pathlib import Path

from otter_jax.data import specs
from otter_jax.data.sources import OPTIONS
from otter_jax.evaluation.class_lists import ClassList, read_class_list


class EvaluationSpec(specs.Spec):
    """One entry of config.evaluate.sets; its name is what results call the set."""

    @classmethod
    def parse(cls, text: str, known: tuple[str, ...] = ()) -> "EvaluationSpec":
        """Take an entry apart.

        Args:
            text: the entry.
            known: its options, if they are others than `classes` and those of the data.

        Raises:
            ValueError: for an option that is not known.
        """
        spec = super().parse(text)
        spec.refuse_options_but(*(known or ("classes", *OPTIONS.get(spec.kind, ()))))
        return spec

    @property
    def source(self) -> str:
        """The entry as config.data.train would have it: with the options of the data alone."""
        plain = f"{self.kind}:{self.path}" if self.path else self.kind
        options = "&".join(f"{key}={value}" for key, value in self.data_options.items())
        return f"{plain}?{options}" if options else plain

    @property
    def data_options(self) -> dict[str, str]:
        """The options that say how the data are read."""
        return {key: value for key, value in self.options.items() if key != "classes"}

    def class_list(self) -> ClassList | None:
        """Return the class list of the option `classes`, or None."""
        path = self.options.get("classes")
        return read_class_list(Path(path).expanduser()) if path else None
