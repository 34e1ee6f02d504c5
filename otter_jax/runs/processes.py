"""Several processes as one run: how they find each other, and that all start from the same."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from otter_jax import config as config_lib

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "ott-jax", "orbax-checkpoint", "grain", "numpy"),
    "opencv-python-headless",  # Pixels of decoded images can differ between its versions.
)
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
COORDINATOR = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FLAGS = ("--coordinator_address", "--num_processes", "--process_id")  # In the same order.
# What a TPU slice, SLURM's srun and Open MPI's mpirun tell each process, and JAX reads.
LAUNCHERS = ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "SLURM_JOB_ID", "SLURM_PROCID",
             "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")  # fmt: skip
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
MOST_SHOWN = 5  # Differences in one message.


def make_deterministic() -> None:
    """Have XLA choose only GPU kernels that give the same bits every time.

    Other platforms always do, and ignore it. XLA reads its flags when JAX looks for devices, so
    this must come before.
    """
    add_flag(DETERMINISTIC)


def add_flag(flag: str) -> None:
    """Add a flag to those that XLA reads when JAX looks for devices.

    Raises:
        ValueError: XLA_FLAGS names a file of flags, which is somebody else's.
    """
    told = os.environ.get("XLA_FLAGS", "").strip()
    if told and not told.startswith("--"):
        raise ValueError(
            f"XLA_FLAGS={told} names a file: write its flags into the variable, with {flag} added"
        )
    if flag not in told:
        os.environ["XLA_FLAGS"] = f"{told} {flag}".strip()


def refuse_not_deterministic(config: ConfigDict) -> None:
    """Refuse a promise that XLA was not told of, or too late for a flag (ValueError)."""
    told = DETERMINISTIC in os.environ.get("XLA_FLAGS", "")
    if config.deterministic and jax.default_backend() == "gpu" and not told:
        raise ValueError(
            f"config.deterministic=True: set XLA_FLAGS={DETERMINISTIC} before Python starts, "
            "as main.py does"
        )


def join(
    address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Join the other processes of this run; must come before JAX looks for devices.

    What is not given is taken from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, and what these do not say is found by JAX on a TPU slice, under SLURM and
    under Open MPI.

    Args:
        address: host:port of process 0, which all others can reach.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ValueError: saying what was given and which variables were found, if the others cannot be;
            XLA_FLAGS names a file.
    """
    # XLA's CPU runtime otherwise starts whatever it can at once, and collectives that do not depend
    # on each other then meet in another order in each process, which ends all of them.
    add_flag(IN_ORDER)
    arguments = (address, num_processes, process_id)
    address, *numbers = (
        os.environ.get(name) if value is None else value
        for name, value in zip(COORDINATOR, arguments, strict=True)
    )
    try:
        count, number = (None if value is None else int(value) for value in numbers)
        jax.distributed.initialize(address, count, number)
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        given = zip(FLAGS, arguments, strict=True)
        found = [f"{flag}={value}" for flag, value in given if value is not None]
        found += [f"{k}={os.environ[k]}" for k in (*COORDINATOR, *LAUNCHERS) if k in os.environ]
        raise ValueError(
            f"the other processes cannot be found ({' '.join(str(error).split())}); "
            f"found: {', '.join(found) or 'nothing'}; needed: a TPU slice, srun or mpirun, "
            f"or all of {', '.join(FLAGS)} (or {', '.join(COORDINATOR)})"
        ) from error


def exchange(text: str) -> list[str]:
    """Return each process's text, in the order of their numbers; all must ask at the same time."""
    if jax.process_count() == 1:
        return [text]
    said = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(said)))
    if not lengths.any():  # Mostly there is nothing to say.
        return [""] * len(lengths)
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(said)] = said
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths, strict=True)]


def merge(found: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of all processes, the same in each; all must ask at the same time.

    Where two differ under one key, that of the process with the lower number counts.
    """
    if jax.process_count() == 1:
        return dict(found)
    merged: dict[str, str] = {}
    for said in exchange(json.dumps(dict(found)) if found else ""):
        merged = (json.loads(said) if said else {}) | merged
    return merged


@contextlib.contextmanager
def refusing_together() -> Iterator[None]:
    """Refuse in all processes what one refuses in this block: none waits for one that has left.

    Nothing in the block may wait for other processes.

    Raises:
        ValueError, OSError, ModuleNotFoundError: what the block raised; and ValueError with its
            words and the number of its process where another process raised it.
    """
    refusal = None
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError) as error:
        refusal = error
    said = exchange("" if refusal is None else str(refusal) or repr(refusal))
    if refusal is not None:
        raise refusal
    for number, words in enumerate(said):
        if words:
            raise ValueError(f"process {number} has stopped: {words}")


def refuse_differences(facts: Mapping[str, str]) -> None:
    """Refuse to start where the processes differ in a fact.

    Raises:
        ValueError: naming what differs, its values, and which processes have them.
    """
    everyone = [json.loads(said) for said in exchange(json.dumps(dict(facts)))]
    differing = []
    for name in sorted(set().union(*everyone)):
        holders = defaultdict(list)
        for number, each in enumerate(everyone):
            holders[each.get(name, "unknown")].append(str(number))
        if len(holders) > 1:
            values = (f"{value} on {', '.join(who)}" for value, who in holders.items())
            differing.append(f"{name} ({'; '.join(values)})")
    if differing:
        left = len(differing) - MOST_SHOWN
        more = f" and {left} more" if left > 0 else ""
        raise ValueError(
            f"the processes differ in {', '.join(differing[:MOST_SHOWN])}{more}: "
            "they must be started with the same command, packages and data"
        )


def facts(config: ConfigDict, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Return all that must be the same in every process of a run, by name.

    Args:
        config: every key of it is a fact.
        fingerprints: hexadecimal, by the name of what they are taken of.
    """
    keys, _ = jax.tree.flatten_with_path(
        config_lib.as_dict(config), is_leaf=lambda value: not isinstance(value, dict)
    )
    return (
        {package: importlib.metadata.version(package) for package in PACKAGES}
        | {"otter_jax": _source_digest()}
        | {
            f"config.{jax.tree_util.keystr(k, simple=True, separator='.')}": repr(v)
            for k, v in keys
        }
        | {f"fingerprint of {name}": value[:16] for name, value in fingerprints.items()}
    )


def _source_digest() -> str:
    """Return a hash of this package's code, which says more than its version."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
