"""otter-jax COMMAND [OPTIONS]: one entry point for all programs of the package."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import otter_jax
from otter_jax.commands.command_line import ending_in_one_line, fail, stopping_at_once
from otter_jax.commands.cpu_settings import use_cpu_well

# The module of this name in commands/ has `main(arguments)`.
COMMANDS = {
    "train": "train a model, or go on where the run was interrupted",
    "evaluate": "measure the model of a run, or any models, on any sets",
    "inspect": "show what a set of pairs holds, and which captions are probably wrong",
    "plan": "say what a config needs of TPUs or GPUs that are not there",
    "prepare": "convert pairs into a TFDS data set",
    "export": "write the model of a run under Hugging Face's names",
    "sweep": "run one config with several values and seeds, then compare",
    "compare": "set finished runs side by side, with confidence intervals",
    "demo": "open a page to try a model on, and to look through its training pairs",
    "report": "write a page on a run, or on several beside each other",
}


def start(arguments: Sequence[str] | None = None) -> None:
    """Run the command as a program does: this comes before anything else."""
    use_cpu_well()
    main(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names; sys.argv's where none are given."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name in ("-V", "--version", "version"):
        print(f"otter_jax {otter_jax.__version__}")
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? There are" if near else "choose from"
        fail(f"unknown command {name!r}: {hint} {', '.join(COMMANDS)}")
    else:
        with ending_in_one_line():
            with stopping_at_once():
                command = importlib.import_module(f"otter_jax.commands.{name}")
            command.main(rest)


def usage() -> str:
    """Return the commands in words."""
    lines = [f"  {name:<9} {meaning}" for name, meaning in COMMANDS.items()]
    return "\n".join(
        [
            "usage: otter-jax COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "otter-jax --version says which this is.",
            "otter-jax COMMAND --help lists the options; of train, every config key.",
        ]
    )


if __name__ == "__main__":
    start()
