"""Study which method to train with on noisy pairs: PROTOCOL.md, in one command.

    python -m studies.noisy_pairs --workdir=runs/noisy_pairs

Every method is tuned on validation pairs, then trained with 10 seeds on 3 splits and tested. Each
run is a line of records.jsonl; what is there is not run again, so the command goes on where it was
interrupted. The same command gives the same lines.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from otter_jax.terminal import progress
from studies import collection as collections
from studies import judges, methods, runs
from studies.methods import METHODS, RIVALS, SETTINGS

TEST_SEEDS = 10
TRIAL_SEED = 1000  # Of all trials: no seed of a test.

Record = dict[str, Any]


class Job(NamedTuple):
    """Runs that share what is compiled: one method, setting and choice of hyperparameters."""

    kind: str  # "trial", "test" or "sweep".
    setting: str
    method: str
    trial: int
    change: str = ""  # A key of methods.CHANGES, in a sweep.

    def seeds(self) -> Iterable[tuple[int, int]]:
        """Return the (split, seed) of each run of this job."""
        seeds = {
            "trial": [TRIAL_SEED],
            "test": range(TEST_SEEDS),
            "sweep": range(methods.SWEEP_SEEDS),
        }
        return itertools.product(range(collections.NUM_SPLITS), seeds[self.kind])

    def hyperparameters(self) -> dict[str, Any]:
        """Return the hyperparameters of the job's trial, with the change made."""
        chosen = methods.hyperparameters(METHODS[self.method], self.trial)
        return chosen | methods.CHANGES.get(self.change, {})


_loaded: list[tuple[runs.Pairs, Path]] = []  # One, in each worker.


def start_worker(workdir: Path) -> None:
    """Read the features, which were computed before."""
    _loaded[:] = [(runs.Pairs(collections.load(workdir)), workdir)]


def run(job: Job) -> tuple[Job, list[Record], dict[str, np.ndarray]]:
    """Train a job's runs; return their records, and by split the ranks of queries [seeds, q]."""
    ((pairs, workdir),) = _loaded
    method, setting = (METHODS | RIVALS)[job.method], SETTINGS[job.setting]
    trainer = runs.Trainer(method, setting, job.hyperparameters())
    records: list[Record] = []
    ranks_of: dict[str, list[np.ndarray]] = {}
    for number, seed in job.seeds():
        split = pairs.splits[number]
        estimates = trainer.estimates and method.judge is None
        data = pairs.data(setting, number, seed, uses_trust=estimates)
        if method.judge is not None:
            image = pairs.collection.image[data.train]
            case = judges.Case(image, data, seed, workdir / "judged", pairs.judged)
            data = case.judged_by(method.judge)
        variables = trainer.train(data, seed)
        queries = (split.test, split.test_images)
        if job.kind == "trial":
            queries = (split.validation, split.validation_images)
        ranks = trainer.ranks(variables, data, pairs.collection, *queries)
        scores = {name: round(score, 4) for name, score in ranks.scores().items()}
        records.append({**job._asdict(), "split": number, "seed": seed, **scores})
        ranks_of.setdefault(f"split_{number}", []).append(np.concatenate(ranks))
    return job, records, {name: np.stack(rows) for name, rows in ranks_of.items()}


def best_trial(records: Iterable[Record], setting: str, method: str) -> int:
    """Return the trial whose six metrics have the best validation mean; the first of equals."""
    scores: dict[int, list[float]] = {}
    for record in records:
        if (record["kind"], record["setting"], record["method"]) == ("trial", setting, method):
            scores.setdefault(record["trial"], []).append(score(record))
    return max(sorted(scores), key=lambda trial: np.mean(scores[trial]))


def score(record: Record) -> float:
    """Return the mean of the six metrics of a run, in percent."""
    names = [f"{kind}@{k}" for kind in ("recall", "hit") for k in runs.KS]
    return float(np.mean([record[name] for name in names]))


def read_records(path: Path) -> list[Record]:
    """Return the records of a study; none if there is no file.

    Raises:
        ValueError: naming a line that is no record, such as a half written one.
    """
    records = []
    lines = path.read_text().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
            if not isinstance(records[-1], dict) or not {"kind", "method"} <= records[-1].keys():
                raise ValueError(line)
        except ValueError:
            raise ValueError(
                f"{path}:{number} is no record, perhaps half written: delete the line, and its run "
                "is made again"
            ) from None
    return records


def read_some_records(path: Path, kind: str) -> list[Record]:
    """Return the records of a study of which something of a kind is finished.

    Raises:
        FileNotFoundError: if nothing is.
        ValueError: as `read_records`.
    """
    records = read_records(path)
    if not any(record.get("kind") == kind for record in records):
        raise FileNotFoundError(f"{path}: no {kind} is finished there; first run it without --out")
    return records


def unfinished(jobs: Iterable[Job], records: Iterable[Record]) -> list[Job]:
    """Return the jobs without records."""
    jobs = list(jobs)
    fields = jobs[0]._fields if jobs else ()
    done = {tuple(record.get(name) for name in fields) for record in records}
    return [job for job in jobs if tuple(job) not in done]


def run_jobs(jobs: list[Job], workdir: Path, workers: int) -> None:
    """Run jobs in worker processes, and write the records in the jobs' order."""
    if not jobs:
        return
    if workers == 1 and not _loaded:
        start_worker(workdir)
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((workdir / "records.jsonl").open("a"))
        finished = map(run, jobs)  # A single worker is this process.
        if workers > 1:
            pool = stack.enter_context(context.Pool(workers, start_worker, (workdir,)))
            finished = pool.imap(run, jobs)
        for job, records, ranks in progress(finished, len(jobs), jobs[0].kind):
            if job.kind == "test":
                save_ranks(workdir, job, ranks)
            file.write("".join(json.dumps(record) + "\n" for record in records))
            file.flush()


def save_ranks(workdir: Path, job: Job, ranks: dict[str, np.ndarray]) -> None:
    """Keep the ranks of all queries, for the bootstrap over images."""
    path = ranks_file(workdir, job.setting, job.method)
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **ranks)


def ranks_file(workdir: Path, setting: str, method: str) -> Path:
    """Return the file with the ranks of a method's tests."""
    return workdir / "ranks" / f"{setting}, {method}.npz"


def use_one_core(workdir: Path) -> None:
    """Have this process and its workers use one core each, and share what is compiled.

    Settings that differ in their captions alone have the same programs.
    """
    one_core = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {one_core}"
    folder, least = str(workdir / "compiled"), 0
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = str(least)
    jax.config.update("jax_compilation_cache_dir", folder)  # Which has read the variables.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def main() -> None:
    """Tune every method, then test it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="features, records, ranks")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    workdir = arguments.workdir
    collections.load(workdir)
    cells = list(itertools.product(SETTINGS, METHODS))
    trials = [Job("trial", *cell, trial) for cell in cells for trial in range(methods.NUM_TRIALS)]
    path = workdir / "records.jsonl"
    use_one_core(workdir)
    run_jobs(unfinished(trials, read_records(path)), workdir, arguments.workers)
    records = read_records(path)
    tests = [Job("test", *cell, best_trial(records, *cell)) for cell in cells]
    run_jobs(unfinished(tests, records), workdir, arguments.workers)
    swept = (methods.SWEPT_SETTING, methods.SWEPT_METHOD)
    chosen = best_trial(records, *swept)
    sweep = [Job("sweep", *swept, chosen, change) for change in methods.CHANGES]
    run_jobs(unfinished(sweep, read_records(path)), workdir, arguments.workers)


if __name__ == "__main__":
    main()
