"""The training loop: from a state's own step to the last one, with what happens in between."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from otter_jax import sharding
from otter_jax.data import batches
from otter_jax.data.sources import count_by_source
from otter_jax.runs import processes, reporting
from otter_jax.runs.best_step import best_step, is_over
from otter_jax.runs.checkpoints import Checkpoints
from otter_jax.runs.interruption import Interrupted
from otter_jax.runs.machine import give_back_freed_memory
from otter_jax.runs.reporting import Reporter
from otter_jax.runs.workdir import WorkdirLock
from otter_jax.terminal import say, working
from otter_jax.training import costs
from otter_jax.training.data import TrainingData, order_of_records, refuse_bad_data, write_data_note
from otter_jax.training.divergence import DivergedError, DivergenceWatch
from otter_jax.training.parts import Parts
from otter_jax.training.state import TrainState
from otter_jax.training.step import VERDICT, DeviceBatch, Metrics, Step
from otter_jax.training.token_buckets import in_buckets

Scores = dict[str, dict[str, float]]  # {set: {metric: value}}


@dataclasses.dataclass(kw_only=True)
class Training(Parts):
    """One training, as it goes on in a workdir that is its own."""

    data: TrainingData
    step: Step
    unsplit_step: Step  # The same without micro-batches; it is only looked at.
    total_steps: int
    saved: Checkpoints
    profiler: costs.Profiler
    lock: WorkdirLock


def run_steps(
    training: Training, state: TrainState, report: Reporter, watch: DivergenceWatch
) -> TrainState:
    """Train from the state's own step to the last one, which is saved; return the state."""
    config, start = training.config, int(state.step)
    known: dict[tuple, costs.StepCosts] = {}  # By the shapes of a batch, see `token_buckets`.
    try:
        evaluate_what_is_missing(training, state, report)
        if stops_here(training):  # It did before, and was ended before its results were written.
            return state
        steps = range(start + 1, training.total_steps + 1)
        # `steps` first: at the end, zip then asks for no batch that nobody trains on.
        stream = training.interruption.waiting(open_stream(training, start))
        for number, batch in zip(steps, report.waiting(stream), strict=False):
            batch.pop("index")
            placed = sharding.put_batch(training.mesh, batch)
            shapes = tuple(sorted((name, rows.shape) for name, rows in placed.items()))
            is_new = shapes not in known
            if is_new:  # Compiled here, so that what it needs is known before it runs.
                known[shapes] = step_costs(training, state, placed)
                report.costs(number, known[shapes])
            training.interruption.unsaved = True
            state, metrics = take_step(training, number, state, placed)
            report.took(known[shapes])
            watch.look(number, metrics)
            if is_new:  # The rate leaves out what only the first step of a shape does.
                jax.block_until_ready(metrics)
                report.start_clock(number)
            if number == training.total_steps or every(config.log_every_steps, number):
                report_step(training, number, metrics, report, watch)
            saves = number == training.total_steps or must_save(training, number)
            if saves:
                save(training, state, report, watch)
            training.interruption.look(number)
            # After the save: an evaluation may take longer than a machine is left to us.
            evaluates = every(config.evaluate.every_steps, number) and number < training.total_steps
            if evaluates:
                report.evaluation(number, training.evaluate(state.variables))
            if evaluates or saves:
                report.start_clock(number)
            if evaluates and stops_here(training):
                break
    except Interrupted as interrupted:
        interrupted.step = int(state.step)
        if interrupted.step > start:
            # A state that has diverged is not saved. It is on record already (divergence.json), and
            # the run ends all the same.
            with contextlib.suppress(DivergedError):
                save(training, state, report, watch)
        raise
    return state


def stops_here(training: Training) -> bool:
    """Return whether the evaluations so far say that no better step will come; say so."""
    if not sharding.first_process_says(is_over(training.config, training.workdir)):
        return False
    settings = training.config.checkpoint
    say(f"{settings.stop_after} evaluations have brought no better {settings.best}: the run ends")
    return True


def choose_best(
    training: Training, state: TrainState, after: Scores
) -> tuple[TrainState, Scores, dict[str, int]]:
    """Return the state with the best step's variables, what they score, and which steps these are.

    The last ones where no evaluation was finite.
    """
    last = int(state.step)
    best = best_step(training.config, training.workdir) or last
    if best != last:
        _, variables = training.saved.restore_variables(state.variables, best)
        state, after = state._replace(variables=variables), training.evaluate(variables)
    say(f"best {training.config.checkpoint.best}: after step {best} of {last}")
    return state, after, {"step": best, "last_step": last}


def open_stream(training: Training, start: int) -> Iterator[batches.Batch]:
    """Yield this process's rows of the batches after step `start`."""
    config, data = training.config, training.data
    stream = batches.batches(
        data.load,
        count_by_source(data.source, data.records),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start,
        process=(jax.process_index(), jax.process_count()),
        threads=config.data.threads,
        weights=config.data.weights,
        order=config.data.order,
    )
    lengths = config.data.token_buckets
    return in_buckets(stream, lengths, training.mesh) if lengths else stream


def step_costs(training: Training, state: TrainState, batch: DeviceBatch) -> costs.StepCosts:
    """Return what a step takes; it is compiled here, and not again when it is called."""
    config = training.config
    texts = f" for texts of {batch['tokens'].shape[1]} tokens" if "tokens" in batch else ""
    with working(f"compiling the train step{texts if config.data.token_buckets else ''}"):
        step = training.step.lower(state, batch)
        unsplit = step if config.micro_batch is None else training.unsplit_step.lower(state, batch)
        found = costs.measure(step, unsplit, state, config.model.dtype)
        give_back_freed_memory()
        return found


def take_step(
    training: Training, number: int, state: TrainState, batch: DeviceBatch
) -> tuple[TrainState, Metrics]:
    """Take one step; what would be copied between host and devices unasked is an error."""
    training.profiler.before(number)
    with jax.transfer_guard("disallow"):
        state, metrics = training.step(state, batch)
    training.profiler.after(number, metrics)
    return state, metrics


def report_step(
    training: Training, number: int, metrics: Metrics, report: Reporter, watch: DivergenceWatch
) -> None:
    """Report a step, and look for what would make it the last one."""
    # Judged before it is shown: what has diverged ends or rolls back here.
    watch.settle()
    # One process may find the disk full or the folder gone; all must stop after the same step.
    with processes.refusing_together():
        training.lock.check()
        training.saved.check()
    if training.data.share_unreadable():
        write_data_note(training, training.data)
    refuse_bad_data(training.config, training.data.source, training.data.unreadable)
    shown = {name: value for name, value in metrics.items() if name not in VERDICT}
    if training.config.on_nan == "skip":
        shown["skipped_steps"] = watch.skipped
    report.step(number, shown)


def must_save(training: Training, number: int) -> bool:
    """Return whether the steps or the minutes say so after this step."""
    config = training.config
    if every(config.checkpoint.every_steps, number):
        return True
    # It may be the best.
    if config.checkpoint.best is not None and every(config.evaluate.every_steps, number):
        return True
    if jax.process_count() > 1:
        # They leave an evaluation between two sets only, and may be killed before they get there.
        if every(config.evaluate.every_steps, number):
            return True
        # They must agree on the time: they do where they wait for each other anyway.
        if not every(config.log_every_steps, number):
            return False
    return training.saved.overdue(config.checkpoint.every_minutes)


def save(training: Training, state: TrainState, report: Reporter, watch: DivergenceWatch) -> None:
    """Save a state when metrics and bad records are on disk: what led to it is never missing."""
    watch.settle()
    with processes.refusing_together():
        training.lock.check()
    report.sync()
    if training.data.share_unreadable():
        write_data_note(training, training.data)
    training.saved.save(state)


def evaluate_what_is_missing(parts: Parts, state: TrainState, report: Reporter) -> None:
    """Evaluate where a run begins, or where it ended between a checkpoint and its evaluation."""
    number = int(state.step)
    due = number == 0 or every(parts.config.evaluate.every_steps, number)
    known = bool(reporting.read_evaluation(parts.workdir / "metrics.jsonl", number))
    if due and not sharding.first_process_says(known):
        report.evaluation(number, parts.evaluate(state.variables))


def batch_records(training: Training, number: int) -> list[dict[str, Any]]:
    """Return which records the batch at a step is made of: numbers and keys in the collection."""
    config, data = training.config, training.data
    rows = order_of_records(config, data.source, data.records)[number - 1]
    used = ({"index": rows} | data.load(number - 1, rows))["index"].tolist()
    return [{"index": each, "key": data.source[each].key} for each in used]


def every(period: int, step: int) -> bool:
    """Return whether something that happens every `period` steps (0: never) happens at this one."""
    return period > 0 and step % period == 0
