"""train(config, workdir): reads from top to bottom in the order in which a run happens."""

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import objectives, sharding
from otter_jax.data.groups import refuse_unknown_column
from otter_jax.data.held_out import Split
from otter_jax.data.sources import Source, remarks
from otter_jax.embedding import trust_rounds
from otter_jax.embedding.encoder import keep_description
from otter_jax.embedding.starting_point import complete
from otter_jax.embedding.training_pairs import open_whole, split_held_out
from otter_jax.evaluate import before_training, draw_sets, write_results
from otter_jax.evaluation.sets import refuse_unknown_sets
from otter_jax.models import dual_encoder
from otter_jax.pictures import gallery
from otter_jax.runs import processes, reporting
from otter_jax.runs.best_step import best_step
from otter_jax.runs.checkpoints import Checkpoints
from otter_jax.runs.compiled_programs import keep_compiled_programs
from otter_jax.runs.interruption import Interruption
from otter_jax.runs.reporting import Reporter
from otter_jax.runs.workdir import (
    WorkdirLock,
    claimed,
    last_saved_step,
    read_finished,
    refuse_in_use,
    refuse_other_data,
    refuse_other_run,
    refuse_unwritable,
)
from otter_jax.terminal import say
from otter_jax.training import costs
from otter_jax.training.data import (
    TrainingData,
    add_trust,
    check_data,
    open_training_data,
    order_of_records,
    read_unreadable,
    refuse_bad_data,
    views_of,
)
from otter_jax.training.divergence import DivergedError, DivergenceWatch
from otter_jax.training.loop import Training, batch_records, choose_best, run_steps
from otter_jax.training.optimizers import make_optimizer, make_schedule
from otter_jax.training.parts import (
    Parts,
    Results,
    build_parts_together,
    describe_run,
    refuse_unmeasured_best,
)
from otter_jax.training.state import TrainState, initial_state, make_memory, state_places
from otter_jax.training.step import Learner, StepSettings, make_target_step, make_train_step

PICTURED_PAIRS = 1024  # Of a batch, at most: among these the picture's pairs are looked for.


def train(config: ConfigDict, workdir: Path) -> Results:
    """Train, or go on training, in `workdir`; return what results.json holds.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: one line on what is wrong with the
            config, the data or the workdir, before anything is written.
        OSError: if the workdir cannot be written any more, or was removed.
        DivergedError: if the loss or an update is not finite, or the loss has exploded, and
            config.on_nan does not allow for it; nothing of it is saved.
        Interrupted: on SIGTERM or SIGINT, when all finished steps have been saved.
    """
    workdir = Path(workdir)
    keep_compiled_programs(config.compiled_programs)
    with Interruption() as interruption:
        with processes.refusing_together():
            config = complete(config)
            method = refuse_bad_start(config, workdir)
            source, split = open_pairs(config, workdir, method)
            total_steps = config_lib.total_steps(config, len(source))
            schedule = make_schedule(config, total_steps)
        fingerprints = {"config.data.train": source.fingerprint}
        processes.refuse_differences(processes.facts(config, fingerprints))
        if finished := read_finished(workdir, total_steps):
            say(f"{workdir} is finished ({total_steps} steps)")
            if config.evaluate.sets:
                say(f"its results:\n\n{reporting.results_table(finished)}")
            return finished
        mesh = sharding.make_mesh(config.mesh.fsdp)
        parts = build_parts_together(config, workdir, mesh, method, split)
        refuse_unmeasured_best(parts)
        parts.interruption = interruption
        with claimed(config, workdir, source) as lock:
            interruption.before_end(lock.release)
            interruption.step = last_saved_step(workdir)
            return train_claimed(parts, source, schedule, total_steps, lock)


def refuse_bad_start(config: ConfigDict, workdir: Path) -> objectives.Method:
    """Refuse what can be told of config and workdir alone, all at once; return the method."""
    problems = config_lib.problems_of(config)
    for refuse in (refuse_unwritable, refuse_in_use):
        with problems.noting():
            refuse(workdir)
    with problems.noting():
        refuse_unknown_sets(config.evaluate.sets)  # Before data that take long to index.
    problems.refuse()  # What follows would stumble over them.
    method, mesh = objectives.make_method(**config.objective), sharding.make_mesh(config.mesh.fsdp)
    for refuse in (
        lambda: refuse_other_run(config, workdir),
        lambda: processes.refuse_not_deterministic(config),
        lambda: sharding.check_batch_size(mesh, config.batch_size),
        lambda: sharding.check_batch_size(mesh, config.micro_batch or 0, "micro_batch"),
        lambda: objectives.check_queue(method, config.batch_size, mesh.devices.size),
        lambda: views_of(config, method),  # Refuses what the data cannot give.
    ):
        with problems.noting():
            refuse()
    problems.refuse()
    return method


def open_pairs(
    config: ConfigDict, workdir: Path, method: objectives.Method
) -> tuple[Source, Split | None]:
    """Open the pairs to train on; refuse them if they are too few, too bad, or have changed.

    Beside them stands how `data.held_out` divided all pairs, if it did.
    """
    source = open_whole(config, workdir)
    for remark in remarks(source):
        say(remark)
    refuse_bad_data(config, source, {})
    refuse_unknown_column(source, config.data.group)
    if split := split_held_out(config, source):
        source = split.train
    refuse_other_data(source, workdir)
    order_of_records(config, source, np.arange(len(source)))  # Refuses too few pairs.
    if method.uses_trust:
        asked = config.trust
        trust_rounds.refuse_too_few_in_folds(
            len(source), asked.neighbors, asked.rounds, asked.folds
        )
    return source, split


def train_claimed(
    parts: Parts, source: Source, schedule: optax.Schedule, total_steps: int, lock: WorkdirLock
) -> Results:
    """Train in a workdir that is this run's own, from the start or from its last checkpoint."""
    config, workdir = parts.config, parts.workdir
    keep_description(parts.encoder, workdir)
    describe_run(parts, source, total_steps)
    data = open_training_data(parts, source)
    data.found |= read_unreadable(workdir)
    check_data(parts, data)
    if parts.method.uses_trust:
        add_trust(parts, data)
    optimizer = make_optimizer(config, schedule, total_steps)
    learner = Learner(
        parts.model, parts.method, optimizer, schedule, StepSettings.of(config), parts.mesh
    )
    places = places_of_state(parts, optimizer)
    with (
        Checkpoints(
            workdir / "checkpoints",
            config.checkpoint.keep,
            create=True,
            best_step=functools.partial(best_step, config, workdir),
        ) as saved,
        costs.Profiler(config.profile, workdir / "profile") as profiler,
    ):
        training = Training(
            **vars(parts),
            data=data,
            step=make_train_step(learner, places),
            unsplit_step=make_train_step(learner.without_parts(), places),
            total_steps=total_steps,
            saved=saved,
            profiler=profiler,
            lock=lock,
        )
        while True:  # Once, but that a rollback goes on as a resumed run does.
            try:
                return train_from_checkpoint(training, make_fresh_state(parts, optimizer, places))
            except DivergedError as error:
                if not error.rolls_back:
                    raise
                say(str(error))


def make_fresh_state(
    parts: Parts, optimizer: optax.GradientTransformation, places: TrainState
) -> TrainState:
    """Return the state before the first step, made in its places: no device has more of it."""
    make = jax.jit(state_maker(parts, optimizer), out_shardings=places, donate_argnums=0)
    return make(parts.place_encoder().variables)


def places_of_state(parts: Parts, optimizer: optax.GradientTransformation) -> TrainState:
    """Return where each array of the run's state lives."""
    state = jax.eval_shape(state_maker(parts, optimizer), parts.encoder.variables)
    return state_places(parts.mesh, state, fsdp=parts.config.fsdp)


def state_maker(
    parts: Parts, optimizer: optax.GradientTransformation
) -> Callable[[dual_encoder.Variables], TrainState]:
    """Return the function from a model's variables to the state before the first step."""

    def make(variables: dual_encoder.Variables) -> TrainState:
        memory = make_memory(parts.method, parts.config.model.embed_dim)
        uses_teacher = parts.method.uses_teacher
        return initial_state(variables, optimizer, uses_teacher=uses_teacher, memory=memory)

    return make


def train_from_checkpoint(training: Training, state: TrainState) -> Results:
    """Go on from the last checkpoint, or begin with `state` where there is none."""
    config, saved = training.config, training.saved
    if saved.latest_step is not None:
        state = saved.restore(state)
        say(f"resuming after step {int(state.step)}")
    elif config.on_nan == "rollback" or not training.total_steps:
        saved.save(state)  # A state to go back to from the first step on, or all there will be.
    checkpoint = int(state.step)
    training.interruption.step, training.interruption.unsaved = checkpoint, False
    watch = DivergenceWatch(
        config,
        training.workdir,
        checkpoint=checkpoint,
        last_checkpoint=saved.finished_step,
        records_of=lambda number: batch_records(training, number),
    )
    state = state._replace(step=sharding.put_state(training.mesh, jnp.int32(watch.start)))
    with Reporter(
        training.workdir,
        total_steps=training.total_steps,
        resume_step=checkpoint,
        batch_size=config.batch_size,
        wandb_project=config.wandb_project,
    ) as report:
        state = run_steps(training, state, report, watch)
        return finish(training, state, report)


def finish(training: Training, state: TrainState, report: Reporter) -> Results:
    """Evaluate the trained model, draw its pictures, and write results.json last of all."""
    training.saved.finished_step()
    training.interruption.unsaved = False
    after = training.evaluate(state.variables)
    check_data(training, training.data)  # Again: what was read since may have been unreadable.
    last, metrics = int(state.step), training.workdir / "metrics.jsonl"
    if not reporting.read_evaluation(metrics, last):
        report.evaluation(last, after)  # Else a run that ended right after has said it.
    facts = {}
    if training.config.checkpoint.best is not None:
        state, after, facts = choose_best(training, state, after)
    draw(training, training.data, state)
    training.interruption.look_alone()
    before = before_training(training.workdir)
    results = write_results(training, before, after, "results.json", **facts)
    say(what_to_do_next(training.workdir))
    return results


def what_to_do_next(workdir: Path) -> str:
    """Return what a finished run is good for, in words that can be pasted."""
    return (
        f'the model in Python: otter_jax.load("{workdir}")\n'
        f"on other sets: otter-jax evaluate {workdir} "
        "--config.evaluate.sets='(\"SPEC\",)'"
    )


def draw(parts: Parts, data: TrainingData, state: TrainState) -> None:
    """Draw the pictures of the run into figures/; soft targets where there is a teacher."""
    folder = parts.workdir / "figures"
    gallery.draw_curves(folder, parts.workdir / "metrics.jsonl")
    encoder = parts.encoder.replace(state.variables)
    if parts.method.uses_teacher:
        order = order_of_records(parts.config, data.source, data.records)
        # Whole [n, n] targets are drawn, which a large batch that trained in tiles has no room for.
        devices = parts.mesh.devices.size
        batch = data.load(0, order[0][: max(1, PICTURED_PAIRS // devices) * devices])
        numbers = batch.pop("index")
        placed = {name: sharding.put_rows(parts.mesh, rows) for name, rows in batch.items()}
        target = make_target_step(parts.model, parts.method, parts.mesh)(state, placed)
        gallery.draw_batch_targets(folder, data.source, numbers, np.asarray(target), encoder)
    draw_sets(parts, state.variables)
