"""evaluate(config, workdir): measures a run's model, and writes down what was found."""

from pathlib import Path

from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import objectives, sharding
from otter_jax.embedding.starting_point import complete
from otter_jax.evaluation import tables
from otter_jax.json_files import read_json, write_json
from otter_jax.models.dual_encoder import Variables
from otter_jax.pictures import gallery, pages
from otter_jax.runs import processes, reporting
from otter_jax.runs.best_step import best_step
from otter_jax.runs.checkpoints import Checkpoints
from otter_jax.runs.compiled_programs import keep_compiled_programs
from otter_jax.runs.interruption import Interruption
from otter_jax.runs.workdir import refuse_other_config
from otter_jax.terminal import say
from otter_jax.training.interpolations import measure_interpolations
from otter_jax.training.parts import Parts, Results, build_parts_together

Scores = dict[str, dict[str, float]]  # {set: {metric: value}}


def evaluate(config: ConfigDict, workdir: Path) -> Results:
    """Repeat the final evaluation of `workdir` from its latest checkpoint that is whole.

    `evaluate.*` may differ from the run's own config. Writes results.json if the run has finished,
    its last checkpoint is whole, and they do not, else evaluation.json with the step of the model
    as `step`; so it may look at a run that is under way.

    Raises:
        ValueError, FileNotFoundError: one line on what is wrong with the config or the workdir.
        Interrupted: on SIGTERM or SIGINT; features that were computed are kept.
    """
    workdir = Path(workdir)
    keep_compiled_programs(config.compiled_programs)
    with processes.refusing_together():
        config = complete(config)
        config_lib.check(config)
        if not (workdir / "config.json").is_file():
            raise FileNotFoundError(
                f"--workdir={workdir}: there is no run to evaluate (no config.json)"
            )
        refuse_other_config(config, workdir, ignore=("evaluate.", *config_lib.BOOKKEEPING_KEYS))
        method = objectives.make_method(**config.objective)
        processes.refuse_not_deterministic(config)
    processes.refuse_differences(processes.facts(config, {}))
    with Interruption() as interruption:
        return evaluate_workdir(config, workdir, method, interruption)


def evaluate_workdir(
    config: ConfigDict, workdir: Path, method: objectives.Method, interruption: Interruption
) -> Results:
    """Measure the model in a workdir, draw its pictures, and write what was found."""
    parts = build_parts_together(config, workdir, sharding.make_mesh(config.mesh.fsdp), method)
    parts.interruption = interruption
    parts.store.keep_trained = True  # The model is finished: its features are worth a file.
    step, variables, is_latest = restore_variables(parts)
    say(f"{workdir} after step {step}")
    if config.evaluate.interpolate:
        return measure_interpolations(parts, variables, step)
    after = parts.evaluate(variables)
    draw_sets(parts, variables)
    # Only a run that has finished, and was asked for the same evaluation, has its results renewed.
    as_trained = not config_lib.differences(config_lib.load_config(workdir / "config.json"), config)
    before = before_training(workdir) if as_trained else {}
    if as_trained and is_latest and (path := workdir / "results.json").is_file():
        facts = {k: each for k, each in read_json(path).items() if not isinstance(each, dict)}
        return write_results(parts, before, after, "results.json", **facts)
    if not as_trained:
        say("other evaluate.* values than the run's: its results.json stays as it is")
    return write_results(parts, before, after, "evaluation.json", step=step)


def restore_variables(parts: Parts) -> tuple[int, Variables, bool]:
    """Return the latest whole variables, or the best, their step, and whether the run ends so."""
    with Checkpoints(parts.workdir / "checkpoints") as saved:
        untrained = parts.encoder.variables
        template = sharding.describe_state(parts.mesh, untrained, fsdp=parts.config.fsdp)
        best = best_step(parts.config, parts.workdir)
        step, variables = saved.restore_variables(template, best)
        return step, variables, step == (best or saved.latest_step)


def draw_sets(parts: Parts, variables: Variables) -> None:
    """Draw hits and misses of every set; say where all pictures are, if there are any."""
    folder, encoder = parts.workdir / "figures", parts.encoder.replace(variables)
    for each in parts.sets:
        parts.interruption.look_alone()
        gallery.draw_set(folder, each, encoder, parts.store)
    if folder.is_dir():
        say(f"pictures in {folder}")


def before_training(workdir: Path) -> Scores:
    """Return what was measured before the first step."""
    return reporting.read_evaluation(workdir / "metrics.jsonl", step=0)


def write_results(parts: Parts, before: Scores, after: Scores, name: str, **facts: int) -> Results:
    """Write the results, with facts about them, into the workdir; show the table; return them."""
    results = after | {
        "before": {name: before[name] for name in after if name in before},
        "chance": {each.name: each.chance() for each in parts.sets},
    }
    tables.write_csv((parts.workdir / name).with_suffix(".csv"), results)
    # Last of all: with it the run is finished.
    write_json(parts.workdir / name, results | facts)
    if parts.sets:
        say("")
        say(reporting.results_table(results))
    say(f"\nwritten to {parts.workdir / name}, and as a table beside it")
    pages.write_report(parts.workdir)
    say(f"curves, pictures and results as a page: {parts.workdir / pages.FILE}")
    return results | facts
