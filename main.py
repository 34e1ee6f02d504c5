"""Trains or evaluates: python main.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE].

This file is short on purpose: everything is in otter_jax/, where it can be imported and tested.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's chatter; its errors still show.

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if missing, else resumed.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "What to do.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes, see launch/.")
_ADDRESS = flags.DEFINE_string("coordinator_address", None, "Or JAX_COORDINATOR_ADDRESS.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Or JAX_NUM_PROCESSES.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Or JAX_PROCESS_ID; counted from 0.")
flags.mark_flags_as_required(["config", "workdir"])

EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def main(argv: Sequence[str]) -> None:
    """Hand over to otter_jax.train; what is wrong with the input ends in one line."""
    if len(argv) > 1:
        fail(f"unknown argument {argv[1]!r}: flags are --config, --workdir, --mode, --config.KEY")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # The libraries' own diaries, on request only.
    if not _WORKDIR.value:
        fail("--workdir is empty: name the folder of the run")
    from otter_jax import evaluate, train
    from otter_jax.runs import interruption, processes

    interruption.Interruption.may_end_process = True

    run = {"train": train.train, "evaluate": evaluate.evaluate}[_MODE.value]
    try:
        if _CONFIG.value.deterministic:
            processes.make_deterministic()
        coordinator = (_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        if _DISTRIBUTED.value or any(each is not None for each in coordinator):
            processes.join(*coordinator)
        run(_CONFIG.value, Path(_WORKDIR.value).expanduser())
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        if logging.level_debug():
            raise  # With --verbosity=1, for those who want to know where.
        fail(error)
    except KeyboardInterrupt as stop:
        print(f"\notter_jax: {str(stop) or 'stopped; the same command resumes'}", flush=True)
        interruption.leave(getattr(stop, "status", 130))


def fail(reason: str | Exception) -> NoReturn:
    """End the program with one line."""
    sys.exit(f"otter_jax: {' '.join(str(reason).split())}")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Return absl's parser, with one line instead of a traceback for a wrong config key or value."""
    configs = [argument.removeprefix("--config=") for argument in argv
               if argument.startswith("--config=")]  # fmt: skip
    if not configs and not any(word in " ".join(argv) for word in ("--help", "--config ")):
        fail("usage: python main.py --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE]")
    for path in configs:
        if not Path(path.partition(":")[0]).is_file():
            fail(f"--config={path}: there is no such file")
    try:
        return flags.FLAGS(list(argv))
    except flags.IllegalFlagValueError as error:
        fail(describe_wrong_value(str(error)))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # One of the library's messages ends in all that the config has.
        fail(describe_unknown_key(argv, error) or str(error).partition(" Other fields present")[0])


def describe_wrong_value(message: str) -> str:
    """Return absl's message on a flag of the wrong type, with what would be right where it is known."""
    if not (found := re.match(r"flag --(.+?)=(.*?): ", message)):
        return message
    name, value = found.groups()
    expected = EXPECTED.get(flags.FLAGS[name].flag_type())
    return f"--{name}={value}: it must be {expected}" if expected else message


def describe_unknown_key(argv: Sequence[str], error: Exception) -> str | None:
    """Return what is wrong with the first key that does not exist; None if all of them do.

    Looked for among the flags --config.KEY and, as it may be the config file's, in the error.
    """
    from otter_jax import config

    keys = re.findall(r"^--?config\.([^=\n]+)", "\n".join(argv), re.MULTILINE)
    keys += re.findall(r"^\W*(?:Key )?[\"'](\w+)[\"']", str(error))
    return next(filter(None, map(config.describe_unknown_key, keys)), None)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
