"""train(config, workdir): reads from top to bottom in the order in which a run happens."""

import contextlib
import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import objectives, sharding
from otter_jax.data import batches, text_augmentations
from otter_jax.data.pair_loader import PairLoader, Views
from otter_jax.data.records import count_reasons, refuse_too_many_bad
from otter_jax.data.sources import (
    Source,
    count_by_source,
    open_source,
    remarks,
    skipped_files,
)
from otter_jax.embedding import trust
from otter_jax.embedding.encoder import Encoder, build_module, keep_description, make_encoder
from otter_jax.embedding.features import FeatureStore, fingerprint
from otter_jax.embedding.image_collections import compute_features, from_source, named_records
from otter_jax.embedding.pair_features import PairFeatures, embed_pairs
from otter_jax.embedding.trust import Trust
from otter_jax.evaluation import tables
from otter_jax.evaluation.sets import EvaluationSet, open_sets, refuse_unknown_sets
from otter_jax.models import dual_encoder
from otter_jax.models.dual_encoder import FunctionalModel
from otter_jax.pictures import gallery
from otter_jax.runs import processes, reporting
from otter_jax.runs.checkpoints import Checkpoints
from otter_jax.runs.interruption import Interrupted, Interruption
from otter_jax.runs.reporting import Reporter, say
from otter_jax.runs.workdir import (
    Lock,
    claimed,
    read_finished,
    refuse_in_use,
    refuse_other_config,
    refuse_other_data,
    refuse_unwritable,
)
from otter_jax.training import costs
from otter_jax.training.divergence import DivergedError, DivergenceWatch
from otter_jax.training.step import (
    VERDICT,
    Batch,
    Metrics,
    TrainState,
    initial_state,
    make_optimizer,
    make_schedule,
    make_target_step,
    make_train_step,
    state_places,
)

Results = dict[str, Any]
PICTURED_PAIRS = 1024  # Of a batch, at most: among these the picture's pairs are looked for.


@dataclasses.dataclass
class Parts:
    """What training and evaluation are made of, built once from a config."""

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    options: objectives.Options
    model: FunctionalModel
    encoder: Encoder  # With the untrained variables, which lie in the host's memory.
    store: FeatureStore
    sets: list[EvaluationSet]
    interruption: Interruption = dataclasses.field(default_factory=Interruption)

    def place_encoder(self) -> Encoder:
        """Return the untrained encoder at work: its variables are on the devices while it is held."""
        variables = self.encoder.variables
        return self.encoder.replace(sharding.put_state(self.mesh, variables, fsdp=self.config.fsdp))

    def evaluate(self, variables: dual_encoder.Variables) -> dict[str, dict[str, float]]:
        """Return `{set: {metric: value}}` of a model with these variables; may raise Interrupted."""
        encoder, results = self.encoder.replace(variables), {}
        for each in self.sets:
            self.interruption.look()
            results[each.name] = each.evaluate(encoder, self.store)
        return results


@dataclasses.dataclass
class TrainingData:
    """The pairs to train on: how to load some of them, and how many there are."""

    source: Source
    load: batches.Loader
    records: np.ndarray  # Numbers in `source` of the records that can be used, ascending.
    found: dict[str, str]  # Name of a record -> why this process could not use it; may grow.
    unreadable: dict[str, str] = dataclasses.field(default_factory=dict)  # As all processes know.
    said: int = 0  # How many of these the user has been told of.
    # What `load` gives of all `records`, where that is the same at every step and held in memory.
    fixed: batches.Batch = dataclasses.field(default_factory=dict)

    def share_unreadable(self) -> bool:
        """Make what one process could not use known to all, which must ask at the same time.

        Returns whether there was anything new.
        """
        found = dict(self.found)  # A copy, since the loader's threads may find more meanwhile.
        news = {name: why for name, why in found.items() if name not in self.unreadable}
        merged = processes.merge(news)
        self.unreadable |= merged
        return bool(merged)


@dataclasses.dataclass
class Run:
    """One training, as it goes on in a workdir that is its own."""

    parts: Parts
    data: TrainingData
    step: jax.stages.Wrapped  # (TrainState, Batch) -> (TrainState, Metrics)
    unsplit_step: jax.stages.Wrapped  # The same without micro-batches; it is only looked at.
    total_steps: int
    saved: Checkpoints
    profiler: costs.Profiler
    lock: Lock
    interruption: Interruption


def train(config: ConfigDict, workdir: Path) -> Results:
    """Train, or goes on training, in `workdir`; returns what results.json holds.

    Raises:
        ValueError, FileNotFoundError, ModuleNotFoundError: one line on what is wrong with the
            config, the data or the workdir, before anything is written.
        OSError: if the workdir cannot be written any more, or was removed.
        DivergedError: if the loss or an update is not finite, or the loss has exploded, and
            config.on_nan does not allow for it; nothing of it is saved.
        Interrupted: on SIGTERM or SIGINT, when all finished steps have been saved.
    """
    with Interruption() as interruption:
        with processes.refusing_together():
            config_lib.check(config)
            refuse_unwritable(workdir)
            refuse_in_use(workdir)
            refuse_other_config(config, workdir)
            options = objectives.make_options(**config.objective)
            processes.refuse_not_deterministic(config)
            mesh = sharding.make_mesh()
            sharding.check_batch_size(mesh, config.batch_size)
            if config.micro_batch is not None:
                sharding.check_batch_size(mesh, config.micro_batch, "micro_batch")
            objectives.check_queue(options, config.batch_size, mesh.devices.size)
            views_of(config, options)  # Refuses what the data cannot give.
            refuse_unknown_sets(config.evaluate.sets)  # Before data that take long to index.
            source = open_source(
                config.data.train,
                cache_dir=workdir,
                every_caption=config.data.captions == "all",
                progress=reporting.progress,
            )
            for remark in remarks(source):
                say(remark)
            refuse_bad_data(config, source, {})
            refuse_other_data(source, workdir)
            record_order(config, source, np.arange(len(source)))  # Refuses too few pairs.
            if options.uses_trust:
                trust.refuse_too_few(len(source), config.trust.neighbors)
            total_steps = config_lib.total_steps(config, len(source))
            schedule = make_schedule(config, total_steps)
        fingerprints = {"config.data.train": source.fingerprint}
        processes.refuse_differences(processes.facts(config, fingerprints))
        if finished := read_finished(workdir, total_steps):
            say(f"{workdir} is finished ({total_steps} steps)")
            if config.evaluate.sets:
                say(f"its results:\n\n{reporting.results_table(finished)}")
            return finished
        parts = build_parts_together(config, workdir, mesh, options)
        parts.interruption = interruption
        with claimed(config, workdir) as lock:
            return train_claimed(parts, source, schedule, total_steps, lock, interruption)


def train_claimed(
    parts: Parts,
    source: Source,
    schedule: optax.Schedule,
    total_steps: int,
    lock: Lock,
    interruption: Interruption,
) -> Results:
    """Train in a workdir that is this run's own, from the start or from its last checkpoint."""
    config, workdir = parts.config, parts.workdir
    keep_description(parts.encoder, workdir)
    describe(parts, source, total_steps)
    data = open_training_data(parts, source)
    data.found |= read_unreadable(workdir)
    check_data(parts, data)
    if parts.options.uses_trust:
        add_trust(parts, data)
    optimizer = make_optimizer(config, schedule)
    step, unsplit_step = (
        make_train_step(parts.model, parts.options, optimizer, schedule, each, parts.mesh)
        for each in (config, config_lib.without_micro_batches(config))
    )
    with (
        Checkpoints(workdir / "checkpoints", config.checkpoint.keep, create=True) as saved,
        costs.Profiler(config.profile, workdir / "profile") as profiler,
    ):
        run = Run(parts, data, step, unsplit_step, total_steps, saved, profiler, lock, interruption)
        while True:  # Once, but that a rollback goes on as a resumed run does.
            try:
                return train_from_checkpoint(run, make_fresh_state(parts, optimizer))
            except DivergedError as error:
                if not error.rolls_back:
                    raise
                say(str(error))


def make_fresh_state(parts: Parts, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step, made where it belongs: a device never has more of it."""
    config, options = parts.config, parts.options

    def make(variables: dual_encoder.Variables) -> TrainState:
        memory = make_memory(options, config.model.embed_dim)
        return initial_state(variables, optimizer, uses_teacher=options.uses_teacher, memory=memory)

    variables = parts.place_encoder().variables
    places = state_places(parts.mesh, jax.eval_shape(make, variables), fsdp=config.fsdp)
    return jax.jit(make, out_shardings=places, donate_argnums=0)(variables)


def train_from_checkpoint(run: Run, state: TrainState) -> Results:
    """Go on from the last checkpoint, or begins with `state` where there is none."""
    parts, saved = run.parts, run.saved
    if saved.latest_step is not None:
        state = saved.restore(state)
        say(f"resuming after step {int(state.step)}")
    elif parts.config.on_nan == "rollback":
        saved.save(state)  # A state to go back to, from the first step on.
    checkpoint = int(state.step)
    watch = DivergenceWatch(
        parts.config,
        parts.workdir,
        checkpoint=checkpoint,
        last_checkpoint=saved.finished_step,
        records_of=lambda number: batch_records(run, number),
    )
    state = state._replace(step=sharding.put_state(parts.mesh, jnp.int32(watch.start)))
    with Reporter(
        parts.workdir,
        total_steps=run.total_steps,
        resume_step=checkpoint,
        batch_size=parts.config.batch_size,
        wandb_project=parts.config.wandb_project,
    ) as report:
        state = run_steps(run, state, report, watch)
        return finish(parts, run.data, state, report, run.total_steps)


def run_steps(run: Run, state: TrainState, report: Reporter, watch: DivergenceWatch) -> TrainState:
    """Return the training loop: from the state's own step to the last one, which is saved."""
    parts, config, start = run.parts, run.parts.config, int(state.step)
    try:
        evaluate_what_is_missing(parts, state, report)
        steps = range(start + 1, run.total_steps + 1)
        for number, batch in zip(steps, report.waiting(open_stream(run, start)), strict=False):
            batch.pop("index")
            placed = sharding.put_batch(parts.mesh, batch)
            if number == start + 1:
                report.costs(number, step_costs(run, state, placed))
            with run.interruption.held(number):
                state, metrics = take_step(run, number, state, placed)
                watch.look(number, metrics)
                if number == start + 1:
                    jax.block_until_ready(metrics)
                    report.start_clock(number)
                if number == run.total_steps or every(config.log_every_steps, number):
                    report_step(run, number, metrics, report, watch)
                saves = number == run.total_steps or must_save(run, number)
                if saves:
                    save(run, state, report, watch)
            evaluates = every(config.evaluate.every_steps, number) and number < run.total_steps
            if evaluates:
                report.evaluation(number, parts.evaluate(state.variables))
            if evaluates or saves:
                report.start_clock(number)
    except Interrupted as interrupted:
        interrupted.step = int(state.step)
        if interrupted.step > start:
            # What has diverged is not saved, is on record, and does not keep the run from ending.
            with contextlib.suppress(DivergedError):
                save(run, state, report, watch)
        raise
    return state


def step_costs(run: Run, state: TrainState, batch: Batch) -> costs.StepCosts:
    """Return what a step takes; it is compiled here, and not again when it is called."""
    config = run.parts.config
    step = run.step.lower(state, batch)
    unsplit = step if config.micro_batch is None else run.unsplit_step.lower(state, batch)
    return costs.measure(step, unsplit, state, config.model.dtype)


def take_step(run: Run, number: int, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Return one step; whatever would be copied between host and devices behind our back is an error."""
    run.profiler.before(number)
    with jax.transfer_guard("disallow"):
        state, metrics = run.step(state, batch)
    run.profiler.after(number, metrics)
    return state, metrics


def open_stream(run: Run, start: int) -> Iterator[batches.Batch]:
    """Yield this process's rows of the batches after step `start`."""
    config, data = run.parts.config, run.data
    return batches.batches(
        data.load,
        count_by_source(data.source, data.records),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start,
        process=(jax.process_index(), jax.process_count()),
        threads=config.data.threads,
        weights=config.data.weights,
    )


def record_order(config: ConfigDict, source: Source, records: np.ndarray) -> grain.MapDataset:
    """Return rows of `records` by step, see batches.record_order."""
    lengths = count_by_source(source, records)
    return batches.record_order(lengths, config.batch_size, config.seed, config.data.weights)


def report_step(
    run: Run, number: int, metrics: Metrics, report: Reporter, watch: DivergenceWatch
) -> None:
    """Report a step, and looks for what would make it the last one."""
    watch.settle()
    with processes.refusing_together():
        run.lock.check()
        run.saved.check()
    if run.data.share_unreadable():
        write_data_note(run.parts, run.data)
    refuse_bad_data(run.parts.config, run.data.source, run.data.unreadable)
    shown = {name: value for name, value in metrics.items() if name not in VERDICT}
    if run.parts.config.on_nan == "skip":
        shown["skipped_steps"] = watch.skipped
    report.step(number, shown)


def must_save(run: Run, number: int) -> bool:
    """Return whether the steps or the minutes say so after this step."""
    config = run.parts.config
    if every(config.checkpoint.every_steps, number):
        return True
    if jax.process_count() > 1:
        # They leave an evaluation between two sets only, and may be killed before they get there.
        if every(config.evaluate.every_steps, number):
            return True
        # They must agree on the time: they do where they wait for each other anyway.
        if not every(config.log_every_steps, number):
            return False
    return run.saved.overdue(config.checkpoint.every_minutes)


def save(run: Run, state: TrainState, report: Reporter, watch: DivergenceWatch) -> None:
    """Save a state when metrics and bad records are on disk: what led to it is never missing."""
    watch.settle()
    with processes.refusing_together():
        run.lock.check()
    report.sync()
    if run.data.share_unreadable():
        write_data_note(run.parts, run.data)
    run.saved.save(state)


def make_memory(options: objectives.Options, embed_dim: int) -> objectives.Queue | None:
    """Return an empty queue, where the objective remembers texts."""
    return objectives.make_queue(options.queue_size, embed_dim) if options.uses_queue else None


def evaluate_what_is_missing(parts: Parts, state: TrainState, report: Reporter) -> None:
    """Evaluate where a run begins, or where it ended between a checkpoint and its evaluation."""
    number = int(state.step)
    due = number == 0 or every(parts.config.evaluate.every_steps, number)
    known = bool(reporting.read_evaluation(parts.workdir / "metrics.jsonl", number))
    if due and not sharding.first_process_says(known):
        report.evaluation(number, parts.evaluate(state.variables))


def batch_records(run: Run, number: int) -> list[dict[str, Any]]:
    """Return which records the batch at a step is made of: numbers and keys in the collection."""
    config, data = run.parts.config, run.data
    rows = record_order(config, data.source, data.records)[number - 1]
    used = ({"index": rows} | data.load(number - 1, rows))["index"].tolist()
    return [{"index": each, "key": data.source[each].key} for each in used]


def finish(
    parts: Parts, data: TrainingData, state: TrainState, report: Reporter, total_steps: int
) -> Results:
    """Evaluate the trained model, draws its pictures, and writes results.json last of all."""
    after = parts.evaluate(state.variables)
    check_data(parts, data)  # Again: what was read since may have been unreadable.
    if not reporting.read_evaluation(parts.workdir / "metrics.jsonl", total_steps):
        report.evaluation(total_steps, after)  # Else a run that ended right after has said it.
    draw(parts, data, state)
    return write_results(parts, before_training(parts.workdir), after, "results.json")


def evaluate(config: ConfigDict, workdir: Path) -> Results:
    """Repeat the final evaluation of `workdir` from its latest checkpoint that is whole.

    `evaluate.*` may differ from the run's own config. Writes results.json if the run has finished,
    its last checkpoint is whole, and they do not, else evaluation.json with the step of the model
    as `step`; so it may look at a run that is under way.

    Raises:
        ValueError, FileNotFoundError: one line on what is wrong with the config or the workdir.
    """
    with processes.refusing_together():
        config_lib.check(config)
        if not (workdir / "config.json").is_file():
            raise FileNotFoundError(
                f"--workdir={workdir}: there is no run to evaluate (no config.json)"
            )
        refuse_other_config(config, workdir, ignore=("evaluate.", *config_lib.BOOKKEEPING_KEYS))
        options = objectives.make_options(**config.objective)
        processes.refuse_not_deterministic(config)
    processes.refuse_differences(processes.facts(config, {}))
    parts = build_parts_together(config, workdir, sharding.make_mesh(), options)
    parts.store.keep_trained = True  # The model is finished: its features are worth a file.
    with Checkpoints(workdir / "checkpoints") as saved:
        untrained = parts.encoder.variables
        step, variables = saved.restore_variables(
            sharding.describe_state(parts.mesh, untrained, fsdp=config.fsdp)
        )
        is_latest = step == saved.latest_step
        say(f"{workdir} after step {step}")
    after = parts.evaluate(variables)
    draw_sets(parts, variables)
    # Only a run that has finished, and was asked for the same evaluation, has its results renewed.
    as_trained = not config_lib.differences(config_lib.load(workdir / "config.json"), config)
    before = before_training(workdir) if as_trained else {}
    if as_trained and is_latest and (workdir / "results.json").is_file():
        return write_results(parts, before, after, "results.json")
    return write_results(parts, before, after, "evaluation.json", step=step)


def build_parts_together(
    config: ConfigDict, workdir: Path, mesh: Mesh, options: objectives.Options
) -> Parts:
    """Return `build_parts`, which all processes refuse where one does, or where their sets differ."""
    with processes.refusing_together():
        parts = build_parts(config, workdir, mesh, options)
    processes.refuse_differences({each.name: counts_of(each) for each in parts.sets})
    return parts


def build_parts(
    config: ConfigDict, workdir: Path, mesh: Mesh, options: objectives.Options
) -> Parts:
    """Build the model and opens the evaluation sets."""
    with sharding.on_host():
        model, variables = dual_encoder.split(build_module(config))
    variables = jax.tree.map(np.array, variables)  # Copies: no device holds what restarts need.
    encoder = make_encoder(config, model, variables, mesh)
    store = FeatureStore(
        workdir / "features",
        encoder,
        freeze_image=config.model.image.frozen,
        freeze_text=config.model.text.frozen,
        dtype=config.model.dtype,
    )
    sets = open_sets(
        list(config.evaluate.sets),
        image_size=config.data.image_size,
        template=config.evaluate.template,
        names=config.evaluate.names,
    )
    return Parts(config, workdir, mesh, options, model, encoder, store, list(sets))


def describe(parts: Parts, source: Source, total_steps: int) -> None:
    """Say what is trained on what."""
    config, variables = parts.config, parts.encoder.variables
    trained, frozen = dual_encoder.count(variables.params), dual_encoder.count(variables.frozen)
    towers = [
        f"{kind} tower {tower.name} ({tower.pretrained or 'random weights'}"
        f"{', frozen' if tower.frozen else ''})"
        for kind, tower in (("image", config.model.image), ("text", config.model.text))
    ]
    say(f"objective {config.objective.name} on {len(source):,} pairs of {source.name}")
    say(", ".join(towers))
    say(f"{trained:,} trained parameters, {frozen:,} frozen")
    for each in parts.sets:
        say(f"evaluated on {each.name}: {counts_of(each)}")
    say(
        f"{total_steps} steps of {config.batch_size} pairs on {parts.mesh.devices.size} "
        f"{jax.devices()[0].platform} device(s), workdir {parts.workdir}"
    )


def counts_of(evaluated: EvaluationSet) -> str:
    """Return how much there is in a set: 48 pairs, or 10,000 images, 100 classes."""
    contents = evaluated.contents().items()
    return ", ".join(f"{count:,} {name}" for name, count in contents if isinstance(count, int))


def open_training_data(parts: Parts, source: Source) -> TrainingData:
    """Choose how batches are made: from features computed once, or from images every time."""
    config = parts.config
    views = views_of(config, parts.options)
    fixed = config.data.augmentation == "none" and not config.data.flip and views == Views()
    if config.data.cache_features and config.model.image.frozen and fixed:
        return open_cached_data(parts, source)
    loader = PairLoader(
        source,
        parts.encoder.tokenizer,
        image_size=config.data.image_size,
        fit=config.data.fit,
        augmentation=config.data.augmentation,
        flip=config.data.flip,
        seed=config.seed,
        views=views,
    )
    return TrainingData(source, loader, np.arange(len(source)), loader.unreadable)


def views_of(config: ConfigDict, options: objectives.Options) -> Views:
    """Return the views of a pair that an objective asks for.

    Raises:
        ValueError: if they would be no views, or nothing would learn from them.
    """
    number = 3 if options.uses_simclr else 2 if options.uses_two_image_views else 1
    if number > 1 and config.data.view_augmentation == "none":
        raise ValueError(
            f"config.data.view_augmentation='none': objective {options.name!r} needs {number} "
            "different views of an image; moco is the customary augmentation"
        )
    if options.uses_masked_language and config.model.text.frozen:
        raise ValueError(
            "config.model.text.frozen=True: masked language modelling would teach the text tower "
            "nothing; set config.objective.mlm_weight=0, or train part of it (model.text.trainable)"
        )
    if options.uses_two_text_views:
        text_augmentations.wordnet()  # Refuses at the start if it is not installed.
    if number == 1 and not options.uses_masked_language:
        return Views()
    return Views(
        images=number,
        augmentations=(config.data.augmentation, *(config.data.view_augmentation,) * (number - 1)),
        second_text=options.uses_two_text_views,
        masked_text=options.uses_masked_language,
    )


def open_cached_data(parts: Parts, source: Source) -> TrainingData:
    """Compute the frozen image tower's features of all pairs, or reads them if they are known."""
    store, encoder = parts.store, parts.place_encoder()
    named = [(name, record and record.caption) for name, record in named_records(source)]
    collection = from_source(source, [name for name, _ in named])
    found = compute_features(collection, encoder, store, "training")
    captions = [named[number][1] for number in found.numbers]
    arrays = {"image_features": found.features, "index": found.numbers}
    if parts.config.model.text.frozen:
        arrays["text_features"] = store.text_features(encoder, captions)
    else:
        arrays["tokens"], arrays["token_mask"] = encoder.tokenizer(captions)
    load = batches.array_loader(arrays)
    return TrainingData(source, load, found.numbers, found.unreadable, fixed=arrays)


def add_trust(parts: Parts, data: TrainingData) -> None:
    """Have batches carry each pair's trust: estimated before the first step, then kept.

    Raises:
        ValueError: if what the workdir keeps is another's, or there are too few different pairs.
    """
    path, key = parts.workdir / trust.FILE, trust_key(parts, data.source)
    if sharding.first_process_says(path.is_file()):
        found, records = trust.read(path, key)
    else:
        with tempfile.TemporaryDirectory(dir=parts.workdir, prefix="pair_features_") as folder:
            found, records = estimate_trust(parts, data, Path(folder))
        trust.write(path, key, found, records)
    say(trust.describe(found))
    # Of a record that could not be read then, no more is known than of all together.
    values = np.full(len(data.source), 1.0 - found.share_wrong, np.float32)
    values[records] = found.alpha
    data.load = batches.with_values(data.load, "trust", values)


def estimate_trust(parts: Parts, data: TrainingData, folder: Path) -> tuple[Trust, np.ndarray]:
    """Return the trust of pairs by the towers as they are before training, and their records' numbers."""
    config, fixed = parts.config, data.fixed
    for tower in ("image", "text"):
        if config.model[tower].pretrained is None:
            say(
                f"trust is estimated with the {tower} tower's random weights, which say nothing of "
                f"what is right; set config.model.{tower}.pretrained"
            )
    if not fixed:
        pairs = embed_pairs(data.source, parts.place_encoder(), folder)
    elif "text_features" in fixed:
        pairs = PairFeatures(fixed["image_features"], fixed["text_features"], data.records)
    else:
        rows = zip(fixed["tokens"], fixed["token_mask"], strict=True)
        rows = reporting.progress(rows, len(data.records), "captions of pairs")
        text = parts.place_encoder().token_features(rows)
        pairs = PairFeatures(fixed["image_features"], text, data.records)
    found = trust.estimate(
        pairs.image, pairs.text, **config.trust, seed=config.seed, mesh=parts.mesh
    )
    return found, pairs.numbers


def trust_key(parts: Parts, source: Source) -> str:
    """Return a hash of all that pair trust depends on."""
    config, variables = parts.config, parts.encoder.variables
    towers = [group.get(kind) for group in variables for kind in ("image", "text")]
    transform = [config.data[name] for name in ("image_size", "fit", "max_tokens")]
    numbers = [trust.FORMAT, *config.trust.values(), config.seed]
    return fingerprint(source.fingerprint, towers, transform, config.model.dtype, numbers)


def check_data(parts: Parts, data: TrainingData) -> None:
    """Write down and says what cannot be used, and refuses too much of it (ValueError)."""
    data.share_unreadable()
    write_data_note(parts, data)
    if len(data.unreadable) > data.said:
        data.said = len(data.unreadable)
        say(f"images that cannot be read, and are not used: {len(data.unreadable)}; see data.json")
    refuse_bad_data(parts.config, data.source, data.unreadable)


def write_data_note(parts: Parts, data: TrainingData) -> None:
    """data.json: what was really trained on, and what was left out by any process and why."""
    unreadable = data.unreadable
    reporting.write_json(
        parts.workdir / "data.json",
        {
            "train": {
                "source": parts.config.data.train,
                "pairs": len(data.source) - len(unreadable),
                "fingerprint": data.source.fingerprint,
                "skipped": data.source.skipped,
                "skipped_files": skipped_files(data.source),
                "unreadable_by_reason": count_reasons(unreadable.values()),
                "unreadable": dict(sorted(unreadable.items())),
            },
            "evaluate": {each.name: each.contents() for each in parts.sets},
        },
    )


def read_unreadable(workdir: Path) -> dict[str, str]:
    """Return what an earlier start of this run could not read, which stays noted."""
    path = workdir / "data.json"
    return reporting.read_json(path)["train"]["unreadable"] if path.is_file() else {}


def refuse_bad_data(config: ConfigDict, source: Source, unreadable: dict[str, str]) -> None:
    """Refuse data of which too much is bad, as far as is known by now (ValueError)."""
    total = len(source) + sum(source.skipped.values())
    bad = Counter(source.skipped) + Counter(count_reasons(unreadable.values()))
    refuse_too_many_bad(bad, total, config.data.max_bad_share)


def draw(parts: Parts, data: TrainingData, state: TrainState) -> None:
    """The pictures of the run, into figures/; soft targets where there is a teacher."""
    folder = parts.workdir / "figures"
    encoder = parts.encoder.replace(state.variables)
    if parts.options.uses_teacher:
        order = record_order(parts.config, data.source, data.records)
        # Whole [n, n] targets are drawn, which a large batch that trained in tiles has no room for.
        devices = parts.mesh.devices.size
        batch = data.load(0, order[0][: max(1, PICTURED_PAIRS // devices) * devices])
        numbers = batch.pop("index")
        placed = {name: sharding.put_rows(parts.mesh, rows) for name, rows in batch.items()}
        target = make_target_step(parts.model, parts.options, parts.mesh)(state, placed)
        gallery.draw_batch_targets(folder, data.source, numbers, np.asarray(target), encoder)
    draw_sets(parts, state.variables)


def draw_sets(parts: Parts, variables: dual_encoder.Variables) -> None:
    """Hits and misses of every evaluation set, and where all pictures are, if there are any."""
    folder, encoder = parts.workdir / "figures", parts.encoder.replace(variables)
    for each in parts.sets:
        gallery.draw_set(folder, each, encoder, parts.store)
    if folder.is_dir():
        say(f"pictures in {folder}")


def before_training(workdir: Path) -> dict[str, dict[str, float]]:
    """Return what was measured before the first step."""
    return reporting.read_evaluation(workdir / "metrics.jsonl", step=0)


def write_results(
    parts: Parts,
    before: dict[str, dict[str, float]],
    after: dict[str, dict[str, float]],
    name: str,
    **facts: int,
) -> Results:
    """Return the results, with facts about them, as a file of the workdir, and the table on the screen."""
    results = after | {
        "before": {name: before[name] for name in after if name in before},
        "chance": {each.name: each.chance() for each in parts.sets},
    }
    tables.write_csv((parts.workdir / name).with_suffix(".csv"), results)
    # Last of all: with it the run is finished.
    reporting.write_json(parts.workdir / name, results | facts)
    if parts.sets:
        say("")
        say(reporting.results_table(results))
    return results | facts


def every(period: int, step: int) -> bool:
    """Return whether something that happens every `period` steps (0: never) happens at this one."""
    return period > 0 and step % period == 0
