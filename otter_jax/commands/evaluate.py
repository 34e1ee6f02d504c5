"""Measures a run's model: otter-jax evaluate WORKDIR [--config.evaluate.sets='("SPEC",)'].

The config is the run's own, unless --config names another, which must agree with it in all but
`evaluate.*`. What was asked for in training goes to results.json, anything else to evaluation.json,
with the model's step.

Or several models, trained here or not, on the same sets into one table:

    otter-jax evaluate runs/quickstart openai/clip-vit-base-patch32 --sets=openmoji

WORKDIR may also be written --workdir=DIR, and a model --model=PATH. A model is whatever
`otter_jax.load` takes: a workdir, an exported folder, a checkpoint with two towers by its path or
its name in the Hugging Face Hub. --sets are those of config.evaluate.sets, --template and --names
as config.evaluate has them: where they are not given, a run's own, and for other models the
defaults. The table also goes to --output (default: evaluation.json), which is replaced.
"""

import argparse
import ast
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from otter_jax.commands import train
from otter_jax.commands.command_line import (
    Parser,
    make_folder,
    path_of,
    stopping_at_once,
    unknown_flags,
)
from otter_jax.data.templates import read_templates


def main(arguments: Sequence[str]) -> None:
    """Evaluate what the command line says."""
    if train.asks_for_help(arguments):
        print(f"{__doc__}\nKeys and flags are those of train:\n\n{train.describe_options()}")
        return
    arguments = with_flags(arguments)
    if any(re.match("--model($|=)", each) for each in arguments):
        measure_models(parse(arguments))
        return
    if sets := [each for each in arguments if re.match("--sets($|=)", each)]:
        raise ValueError(
            f"{sets[0]} goes with models; with --workdir write --config.evaluate.sets='(\"SPEC\",)'"
        )
    given = dict(each.removeprefix("--").partition("=")[::2] for each in arguments)
    if wrong := unknown_flags(arguments, (*flags.FLAGS, "model", "sets")):
        raise ValueError(wrong)
    if "config" not in given:
        own = path_of_run(given.get("workdir", "")) / "config.json"
        arguments = [f"--config={own}", *arguments]
    train.main([*arguments, "--mode=evaluate"])


def with_flags(arguments: Sequence[str]) -> list[str]:
    """Return a command line with flags before the paths that it begins with.

    They are models where --sets follows, as `load` takes them, and else the one workdir.

    Raises:
        ValueError: several workdirs, or one beside models.

    >>> with_flags(["runs/a", "--config.seed=1"]), with_flags(["a", "b", "--sets=openmoji"])
    (['--workdir=runs/a', '--config.seed=1'], ['--model=a', '--model=b', '--sets=openmoji'])
    """
    paths = list(itertools.takewhile(lambda each: not each.startswith("-"), arguments))
    flags_given = list(arguments[len(paths) :])
    of_models = any(re.match("--sets($|=)", each) for each in flags_given)
    if len(paths) > 1 and not of_models:
        raise ValueError(
            f"{len(paths)} models are compared on --sets=SPEC,SPEC: {', '.join(paths)}"
        )
    named = [each for each in flags_given if re.match("--workdir($|=)", each)]
    if paths and named:
        raise ValueError(f"one run is evaluated at a time, found {', '.join([*paths, *named])}")
    return [f"--{'model' if of_models else 'workdir'}={path}" for path in paths] + flags_given


def path_of_run(workdir: str) -> Path:
    """Return the folder of a run.

    Raises:
        FileNotFoundError: if there is none, or none is named.
    """
    if not workdir:
        raise FileNotFoundError("which run? otter-jax evaluate WORKDIR")
    folder = Path(workdir).expanduser()
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{workdir}: there is no run to evaluate (no config.json)")
    return folder


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line with models."""
    parser = Parser(prog="otter-jax evaluate")
    for option in ("--model", "--sets"):
        parser.add_argument(option, action="append", required=True)
    parser.add_argument("--template", help="of a run its own, unless given")
    parser.add_argument("--names", choices=("joined", "averaged"))
    parser.add_argument("--output", type=path_of, default=Path("evaluation.json"))
    return parser.parse_args(arguments)


def measure_models(options: argparse.Namespace) -> None:
    """Measure models, show the table, and write it down after each of them.

    Raises:
        ValueError, FileNotFoundError: for a model, a set or a template that is none.
    """
    with stopping_at_once():
        from otter_jax.evaluation import several_models
        from otter_jax.json_files import write_json

    if options.output.is_dir():
        raise ValueError(f"--output={options.output} is a folder; name a file")
    try:
        if options.template is not None:
            read_templates(options.template)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"--template: {error}") from None
    make_folder("--output", options.output.parent)

    def keep(found: Mapping[str, several_models.Scores]) -> None:
        write_json(options.output, found)

    specs = [spec for text in options.sets for spec in split_specs(text)]
    try:
        found = several_models.evaluate_models(
            options.model, specs, template=options.template, names=options.names, keep=keep
        )
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace("config.evaluate.sets", "--sets")) from error
    print(f"\n{several_models.table(found)}\n\nwritten to {options.output}")


def split_specs(text: str) -> list[str]:
    """Return the SPECs of `a,b`, or of a tuple as --config.evaluate.sets takes it.

    >>> split_specs("openmoji,webdataset:{0,1}.tar"), split_specs('("openmoji",)')
    (['openmoji', 'webdataset:{0,1}.tar'], ['openmoji'])
    """
    if text.startswith("("):
        try:
            return list(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            raise ValueError(f"--sets={text}: write --sets=SPEC,SPEC") from None
    return re.split(r",(?![^{]*})", text)
