"""train(config, workdir): reads from top to bottom in the order in which a run happens."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import gallery, objectives, reporting, sharding
from otter_jax.checkpoints import Checkpoints
from otter_jax.data import batches, images
from otter_jax.data.pair_loader import PairLoader
from otter_jax.data.sources import Source, open_source
from otter_jax.encoder import Encoder, build_module, keep_description, make_encoder
from otter_jax.evaluation import tables
from otter_jax.evaluation.sets import EvaluationSet, open_sets
from otter_jax.features import FeatureStore
from otter_jax.models import dual_encoder
from otter_jax.models.dual_encoder import FunctionalModel
from otter_jax.reporting import Reporter, say
from otter_jax.step import (
    TrainState,
    initial_state,
    make_optimizer,
    make_schedule,
    make_target_step,
    make_train_step,
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
    encoder: Encoder  # With the untrained variables.
    store: FeatureStore
    sets: list[EvaluationSet]

    def evaluate(self, variables: dual_encoder.Variables) -> dict[str, dict[str, float]]:
        """`{set: {metric: value}}` of a model with these variables."""
        encoder = self.encoder.replace(variables)
        return {each.name: each.evaluate(encoder, self.store) for each in self.sets}


@dataclasses.dataclass
class TrainingData:
    """The pairs to train on: how to load some of them, and how many there are."""

    source: Source
    load: batches.Loader
    records: np.ndarray  # Numbers in `source` of the records that can be used.
    unreadable: dict[str, str]  # Key of a record -> why its image cannot be read.


def train(config: ConfigDict, workdir: Path) -> Results:
    """Trains, or goes on training, in `workdir`; returns what results.json holds.

    Raises:
      ValueError, FileNotFoundError, ModuleNotFoundError: one line on what is wrong with the config,
        the data or the workdir, before anything is written.
      FloatingPointError: if the loss or a parameter is no longer finite; nothing of it is saved.
    """
    config_lib.check(config)
    refuse_unwritable(workdir)
    refuse_other_config(config, workdir)
    options = objectives.make_options(**config.objective)
    mesh = sharding.make_mesh()
    sharding.check_batch_size(mesh, config.batch_size)
    source = open_source(config.data.train)
    refuse_other_data(source, workdir)
    batches.record_order(len(source), config.batch_size, config.seed)  # Refuses too few pairs.
    total_steps = config_lib.total_steps(config, len(source))
    schedule = make_schedule(config, total_steps)
    if finished := read_finished(workdir, total_steps):
        say(f"{workdir} is finished ({total_steps} steps); its results:\n")
        say(reporting.results_table(finished))
        return finished
    parts = build_parts(config, workdir, mesh, options)
    claim_workdir(config, workdir)
    keep_description(parts.encoder, workdir)
    describe(parts, source, total_steps)
    data = open_training_data(parts, source)
    write_data_note(parts, data)
    optimizer = make_optimizer(config, schedule)
    # A copy, since the step consumes the state it is given and `parts` keeps its variables.
    untrained = jax.tree.map(jnp.copy, parts.encoder.variables)
    fresh = initial_state(untrained, optimizer, uses_teacher=options.uses_teacher)
    step = make_train_step(parts.model, options, optimizer, schedule, config, mesh)

    with Checkpoints(workdir / "checkpoints", config.checkpoint.keep, create=True) as saved:
        start = saved.latest_step
        with Reporter(
            workdir,
            total_steps=total_steps,
            resume_step=-1 if start is None else start,
            batch_size=config.batch_size,
        ) as report:
            if start is None:
                report.evaluation(0, parts.evaluate(fresh.variables))
                state = sharding.put_state(mesh, fresh)
            else:
                say(f"resuming after step {start}")
                state = saved.restore(sharding.put_state(mesh, fresh))
            state = run_steps(parts, data, step, state, total_steps, saved, report)
            return finish(parts, data, state, report, total_steps)


def run_steps(
    parts: Parts,
    data: TrainingData,
    step: Any,
    state: TrainState,
    total_steps: int,
    saved: Checkpoints,
    report: Reporter,
) -> TrainState:
    """The training loop: from the state's own step to the last one."""
    config, start = parts.config, int(state.step)
    stream = batches.batches(
        data.load,
        len(data.records),
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start,
        process=(jax.process_index(), jax.process_count()),
        threads=config.data.threads,
    )
    steps = range(start + 1, total_steps + 1)
    for number, batch in zip(steps, report.waiting(stream), strict=False):
        batch.pop("index")
        state, metrics = step(state, sharding.put_batch(parts.mesh, batch))
        if number == start + 1:
            jax.block_until_ready(metrics)
            report.start_clock(number)
        last = number == total_steps
        if last or number % config.log_every_steps == 0:
            refuse_divergence(number, float(metrics["loss"]))
            report.step(number, metrics)
        evaluates = every(config.evaluate.every_steps, number) and not last
        saves = last or every(config.checkpoint.every_steps, number)
        if evaluates:
            report.evaluation(number, parts.evaluate(state.variables))
        if saves:  # After its metrics are written: what is saved is never missing.
            refuse_divergence(number, float(optax.tree.norm(state.variables.params)))
            saved.save(state)
        if evaluates or saves:
            report.start_clock(number)
    return state


def finish(
    parts: Parts, data: TrainingData, state: TrainState, report: Reporter, total_steps: int
) -> Results:
    """Evaluates the trained model, draws its pictures, and writes results.json last of all."""
    after = parts.evaluate(state.variables)
    write_data_note(parts, data)  # Again: what was read since may have been unreadable.
    if not reporting.read_evaluation(parts.workdir / "metrics.jsonl", total_steps):
        report.evaluation(total_steps, after)  # Else a run that ended right after has said it.
    draw(parts, data, state)
    return write_results(parts, before_training(parts.workdir), after, "results.json")


def evaluate(config: ConfigDict, workdir: Path) -> Results:
    """Repeats the final evaluation of `workdir` from its latest checkpoint.

    `evaluate.*` may differ from the run's own config. Writes results.json if the run has finished
    and they do not, else evaluation.json.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong with the config or the workdir.
    """
    config_lib.check(config)
    if not (workdir / "config.json").is_file():
        raise FileNotFoundError(
            f"--workdir={workdir}: there is no run to evaluate (no config.json)"
        )
    refuse_other_config(config, workdir, ignore=("evaluate.", *config_lib.BOOKKEEPING_KEYS))
    options = objectives.make_options(**config.objective)
    parts = build_parts(config, workdir, sharding.make_mesh(), options)
    parts.store.keep_trained = True  # The model is finished: its features are worth a file.
    with Checkpoints(workdir / "checkpoints") as saved:
        template = sharding.put_state(parts.mesh, parts.encoder.variables)
        variables = saved.restore_variables(template)
        say(f"{workdir} after step {saved.latest_step}")
    after = parts.evaluate(variables)
    draw_sets(parts, variables)
    # Only a run that has finished, and was asked for the same evaluation, has its results renewed.
    as_trained = not config_lib.differences(config_lib.load(workdir / "config.json"), config)
    before = before_training(workdir) if as_trained else {}
    finished = as_trained and (workdir / "results.json").is_file()
    return write_results(parts, before, after, "results.json" if finished else "evaluation.json")


def refuse_other_config(
    config: ConfigDict, workdir: Path, ignore: tuple[str, ...] = config_lib.BOOKKEEPING_KEYS
) -> None:
    """Refuses to touch a workdir that another config wrote (ValueError naming the keys)."""
    path = workdir / "config.json"
    if path.is_file() and (
        differing := config_lib.differences(config_lib.load(path), config, ignore)
    ):
        raise ValueError(
            f"--workdir={workdir} was written by another config ({'; '.join(differing)}): "
            "choose another workdir or the same values"
        )


def refuse_unwritable(workdir: Path) -> None:
    """Refuses a workdir that cannot be made or written (ValueError naming what is in the way)."""
    place = workdir.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(f"--workdir={workdir} cannot be written: see {place}")


def refuse_other_data(source: Source, workdir: Path) -> None:
    """Refuses to go on with other pairs than a run began with (ValueError)."""
    path = workdir / "data.json"
    if not path.is_file():
        return
    before = reporting.read_json(path)["train"]
    if before["fingerprint"] != source.fingerprint:
        raise ValueError(
            f"the pairs of {source.name} have changed since {workdir} was started (now "
            f"{len(source)}, fingerprint {source.fingerprint[:12]}, was "
            f"{before['fingerprint'][:12]}): choose another workdir or the same data"
        )


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Makes the workdir with its config.json, or says why it cannot be made."""
    if not workdir.parent.exists():
        say(f"making the missing folder {workdir.parent}")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        reporting.write_json(workdir / "config.json", config_lib.as_dict(config))
    except OSError as error:
        raise ValueError(f"--workdir={workdir} cannot be written: {error.strerror}") from error


def build_parts(
    config: ConfigDict, workdir: Path, mesh: Mesh, options: objectives.Options
) -> Parts:
    """Builds the model and opens the evaluation sets."""
    model, variables = dual_encoder.split(build_module(config))
    encoder = make_encoder(config, model, sharding.put_state(mesh, variables), mesh)
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
    """Says what is trained on what."""
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
        counts = ", ".join(f"{v:,} {k}" for k, v in each.contents().items() if isinstance(v, int))
        say(f"evaluated on {each.name}: {counts}")
    say(
        f"{total_steps} steps of {config.batch_size} pairs on {parts.mesh.devices.size} "
        f"{jax.devices()[0].platform} device(s), workdir {parts.workdir}"
    )


def open_training_data(parts: Parts, source: Source) -> TrainingData:
    """Chooses how batches are made: from features computed once, or from images every time."""
    config = parts.config
    fixed = config.data.augmentation == "none" and not config.data.flip
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
    )
    return TrainingData(source, loader, np.arange(len(source)), loader.unreadable)


def open_cached_data(parts: Parts, source: Source) -> TrainingData:
    """Computes the frozen image tower's features of all pairs, or reads them if they are known."""
    store, encoder = parts.store, parts.encoder

    def compute() -> dict[str, np.ndarray]:
        unreadable: dict[str, str] = {}
        features = encoder.image_features(readable_images(source, encoder, unreadable))
        return {
            "features": features,
            "unreadable": np.array(list(unreadable.items()), dtype=str).reshape(-1, 2),
        }

    stored = store.get(store.image_key(source.fingerprint), compute)
    unreadable = dict(stored["unreadable"].tolist())
    pairs = ((number, source[number]) for number in range(len(source)))
    usable = [(number, p.caption) for number, p in pairs if p.key not in unreadable]
    records = np.array([number for number, _ in usable], np.int64)
    captions = [caption for _, caption in usable]
    arrays = {"image_features": stored["features"], "index": records}
    if parts.config.model.text.frozen:
        arrays["text_features"] = store.text_features(encoder, captions)
    else:
        arrays["tokens"], arrays["token_mask"] = encoder.tokenizer(captions)
    return TrainingData(source, batches.array_loader(arrays), records, unreadable)


def readable_images(source: Source, encoder: Encoder, unreadable: dict[str, str]) -> Any:
    """Transformed images of a source in order, with progress; notes those that cannot be read."""
    for number in reporting.progress(range(len(source)), len(source), "training images"):
        record = source[number]
        try:
            yield encoder.transform(images.decode(record.image))
        except images.ImageError as error:
            unreadable[record.key] = str(error)


def write_data_note(parts: Parts, data: TrainingData) -> None:
    """data.json: what was really trained on, and what was left out and why."""
    path = parts.workdir / "data.json"
    noted: dict[str, str] = {}
    if path.is_file():  # Of an earlier start: what it could not read stays noted.
        noted = reporting.read_json(path)["train"]["unreadable"]
        data.unreadable |= noted
    if len(data.unreadable) > len(noted):
        say(f"images that cannot be read, and are not used: {len(data.unreadable)}; see data.json")
    reporting.write_json(
        path,
        {
            "train": {
                "source": parts.config.data.train,
                "pairs": len(data.source) - len(data.unreadable),
                "fingerprint": data.source.fingerprint,
                "skipped": data.source.skipped,
                "unreadable": dict(sorted(data.unreadable.items())),
            },
            "evaluate": {each.name: each.contents() for each in parts.sets},
        },
    )


def draw(parts: Parts, data: TrainingData, state: TrainState) -> None:
    """The pictures of the run, into figures/; soft targets where there is a teacher."""
    folder = parts.workdir / "figures"
    encoder = parts.encoder.replace(state.variables)
    if parts.options.uses_teacher:
        order = batches.record_order(len(data.records), parts.config.batch_size, parts.config.seed)
        # Whole [n, n] targets are drawn, which a large batch that trained in tiles has no room for.
        devices = parts.mesh.devices.size
        batch = data.load(0, order[0][: max(1, PICTURED_PAIRS // devices) * devices])
        numbers = batch.pop("index")
        placed = {name: sharding.put_rows(parts.mesh, rows) for name, rows in batch.items()}
        target = make_target_step(parts.model, parts.options, parts.mesh)(state, placed)
        gallery.draw_batch_targets(folder, data.source, numbers, np.asarray(target), encoder)
    draw_sets(parts, state.variables)


def draw_sets(parts: Parts, variables: dual_encoder.Variables) -> None:
    """Hits and misses of every evaluation set."""
    folder, encoder = parts.workdir / "figures", parts.encoder.replace(variables)
    for each in parts.sets:
        gallery.draw_set(folder, each, encoder, parts.store)
    say(f"pictures in {folder}")


def before_training(workdir: Path) -> dict[str, dict[str, float]]:
    """What was measured before the first step."""
    return reporting.read_evaluation(workdir / "metrics.jsonl", step=0)


def write_results(
    parts: Parts,
    before: dict[str, dict[str, float]],
    after: dict[str, dict[str, float]],
    name: str,
) -> Results:
    """The results as a file of the workdir, and the table on the screen."""
    results = after | {
        "before": {name: before[name] for name in after if name in before},
        "chance": {each.name: each.chance() for each in parts.sets},
    }
    reporting.write_json(parts.workdir / name, results)
    tables.write_csv((parts.workdir / name).with_suffix(".csv"), results)
    say("")
    say(reporting.results_table(results))
    return results


def read_finished(workdir: Path, total_steps: int) -> Results | None:
    """The results of a run that has come to its end, or None."""
    path = workdir / "results.json"
    if not path.is_file() or not (workdir / "checkpoints" / str(total_steps)).is_dir():
        return None
    return reporting.read_json(path)


def every(period: int, step: int) -> bool:
    """Whether something that happens every `period` steps (0: never) happens at this one."""
    return period > 0 and step % period == 0


def refuse_divergence(step: int, value: float) -> None:
    """Stops where training has diverged: `value` is the loss or the norm of the parameters."""
    if not math.isfinite(value):
        raise FloatingPointError(
            f"training has diverged at step {step} (loss or parameters are {value}): try a lower "
            "config.optimizer.learning_rate in another workdir; earlier checkpoints are kept"
        )
