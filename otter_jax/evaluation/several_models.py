"""Several models on the same sets, into one table: runs, exported folders, any CLIP."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from otter_jax.config import default_config
from otter_jax.embedding.encoder import config_of, load, refuse_no_model
from otter_jax.embedding.features import FeatureStore
from otter_jax.evaluation.sets import SetMetrics, open_sets, refuse_unknown_sets
from otter_jax.runs.reporting import percent
from otter_jax.terminal import aligned, say

Scores = dict[str, SetMetrics]  # {set: {metric: share}}


def evaluate_models(
    paths: Sequence[str],
    specs: Sequence[str],
    *,
    template: str | None = None,
    names: str | None = None,
    keep: Callable[[dict[str, Scores]], None],
) -> dict[str, Scores]:
    """Measure models, one after the other, as the sets would be measured in a run.

    Args:
        paths: of the models, as `otter_jax.load` takes them.
        specs: what to measure them on, as config.evaluate.sets has it.
        template: as config.evaluate.template; None: each run's own, and the default for models of
            no run.
        names: as config.evaluate.names, and so on.
        keep: called with what has been found after every model.

    Returns:
        `{path: {set: {metric: share}}}`, and under "chance" that of a random ranking.

    Raises:
        ValueError, FileNotFoundError: for a model or a set that is none; what can be told at once
            is, before anything is measured.
    """
    if repeated := {path for path in paths if paths.count(path) > 1}:
        raise ValueError(f"--model={repeated.pop()} is given twice")
    refuse_unknown_sets(specs)
    for path in paths:
        refuse_no_model(path)
    found: dict[str, Scores] = {}
    for path in paths:
        model = load(path)
        own = prompts_of(path)
        given = {"template": template, "names": names}
        prompts = own | {name: value for name, value in given.items() if value is not None}
        say(f"{path}: {model!r}, prompt {prompts['template']!r}")
        # In memory: there is no workdir that the features would belong to.
        store = FeatureStore(Path(), model, freeze_image=False, freeze_text=False)
        sets = list(open_sets(list(specs), image_size=model.image_size, **prompts))
        chance = {each.name: each.chance() for each in sets}
        found.pop("chance", None)  # It stands behind all models.
        found |= {path: {each.name: each.evaluate(model, store) for each in sets}}
        found["chance"] = chance
        keep(found)
    return found


def prompts_of(path: str) -> dict[str, str]:
    """Return config.evaluate.template and .names of the run that made a model, or the defaults."""
    settings = (config_of(path) or default_config()).evaluate
    return {"template": settings.template, "names": settings.names}


def table(found: Mapping[str, Scores]) -> str:
    """Return what was found in words: a line for every metric, a column for every model."""
    named = dict.fromkeys(
        (name, metric)
        for scores in found.values()
        for name, metrics in scores.items()
        for metric in metrics
    )
    rows = [("", *found)]
    for name, metric in named:
        cells = (percent(scores.get(name, {}).get(metric)) for scores in found.values())
        rows.append((f"{name}  {metric}", *cells))
    return "\n".join(aligned(rows))
