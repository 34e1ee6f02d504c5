"""Measures a run's model: otter-jax evaluate --workdir=DIR [--config.evaluate.sets='("SPEC",)'].

The config is the run's own, unless --config names another, which must agree with it in all but
`evaluate.*`. What was asked for in training goes to results.json, anything else to evaluation.json,
with the model's step.
"""

from collections.abc import Sequence
from pathlib import Path

from otter_jax.commands import train


def main(arguments: Sequence[str]) -> None:
    """Evaluate what the command line says."""
    if train.asks_for_help(arguments):
        print(f"{__doc__}\nKeys and flags are those of train:\n\n{train.describe_options()}")
        return
    given = dict(each.removeprefix("--").partition("=")[::2] for each in arguments)
    if "config" not in given:
        own = path_of_run(given.get("workdir", "")) / "config.json"
        arguments = [f"--config={own}", *arguments]
    train.main([*arguments, "--mode=evaluate"])


def path_of_run(workdir: str) -> Path:
    """Return the folder of a run.

    Raises:
        FileNotFoundError: if there is none, or none is named.
    """
    if not workdir:
        raise FileNotFoundError("which run? otter-jax evaluate --workdir=DIR")
    folder = Path(workdir).expanduser()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"--workdir={workdir}: there is no run to evaluate (no config.json)"
        )
    return folder
