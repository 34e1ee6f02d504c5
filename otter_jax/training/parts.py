"""What training and evaluation are made of, built once from a config."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from otter_jax import config as config_lib
from otter_jax import objectives, sharding
from otter_jax.data.caption_checks import sample_captions
from otter_jax.data.held_out import Split
from otter_jax.data.records import in_words
from otter_jax.data.sources import Source, left_out
from otter_jax.embedding.encoder import Encoder, build_module, make_encoder
from otter_jax.embedding.features import FeatureStore
from otter_jax.embedding.training_pairs import open_whole, split_held_out
from otter_jax.evaluation.sets import EvaluationSet, held_out_set, open_sets
from otter_jax.models import dual_encoder
from otter_jax.models.dual_encoder import FunctionalModel
from otter_jax.runs import processes
from otter_jax.runs.best_step import PREFIX, refuse_unmeasured
from otter_jax.runs.interruption import Interruption
from otter_jax.terminal import say
from otter_jax.training.optimizers import describe_groups, labels_of

Results = dict[str, Any]


@dataclasses.dataclass
class Parts:
    """What training and evaluation are made of, built once from a config."""

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    method: objectives.Method
    model: FunctionalModel
    encoder: Encoder  # With the untrained variables, which lie in the host's memory.
    store: FeatureStore
    sets: list[EvaluationSet]
    interruption: Interruption = dataclasses.field(default_factory=Interruption)

    def place_encoder(self) -> Encoder:
        """Return the untrained encoder at work: on the devices for as long as it is held."""
        variables = self.encoder.variables
        return self.encoder.replace(sharding.put_state(self.mesh, variables, fsdp=self.config.fsdp))

    def evaluate(self, variables: dual_encoder.Variables) -> dict[str, dict[str, float]]:
        """Return `{set: {metric: value}}` of these variables; may raise Interrupted."""
        return self.measure(self.encoder.replace(variables))

    def measure(self, encoder: Encoder) -> dict[str, dict[str, float]]:
        """Return `{set: {metric: value}}` of a model; may raise Interrupted."""
        results = {}
        for each in self.sets:
            self.interruption.look()
            results[each.name] = each.evaluate(encoder, self.store)
        return results


def build_parts_together(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    method: objectives.Method,
    split: Split | None = None,
) -> Parts:
    """Build the parts; all processes refuse where one does, or where their sets differ."""
    with processes.refusing_together():
        parts = build_parts(config, workdir, mesh, method, split)
    processes.refuse_differences({each.name: counts_of(each) for each in parts.sets})
    return parts


def build_parts(
    config: ConfigDict,
    workdir: Path,
    mesh: Mesh,
    method: objectives.Method,
    split: Split | None = None,
) -> Parts:
    """Build the model and open the evaluation sets.

    `split` is what `split_held_out` gave, where the caller has it: it reads all images.
    """
    with sharding.on_host():
        model, variables = dual_encoder.split(build_module(config))
    labels_of(config_lib.groups_of(config), variables.params)  # Refuses idle and overlapping ones.
    variables = jax.tree.map(np.array, variables)  # Copies: no device holds what restarts need.
    encoder = make_encoder(config, model, variables, mesh)
    store = FeatureStore.of(workdir, encoder, config)
    listed = open_sets(
        list(config.evaluate.sets),
        image_size=config.data.image_size,
        template=config.evaluate.template,
        names=config.evaluate.names,
    )
    sets = list(listed)
    if split is None and config.data.held_out:
        split = split_held_out(config, open_whole(config, workdir))
    if split is not None:
        sets = [held_out_set(split, config.evaluate.template), *sets]
    return Parts(config, workdir, mesh, method, model, encoder, store, sets)


def refuse_unmeasured_best(parts: Parts) -> None:
    """Refuse a `checkpoint.best` that no evaluation of the run gives (ValueError)."""
    sets = parts.sets
    measured = [f"{PREFIX}{each.name}/{metric}" for each in sets for metric in each.chance()]
    refuse_unmeasured(parts.config.checkpoint.best, measured)


def describe_run(parts: Parts, source: Source, total_steps: int) -> None:
    """Say what is trained on what."""
    config, variables = parts.config, parts.encoder.variables
    trained, frozen = dual_encoder.count(variables.params), dual_encoder.count(variables.frozen)
    towers = [
        f"{kind} tower {tower.name} ({tower.pretrained or 'random weights'}"
        f"{', frozen' if tower.frozen else ''}"
        f"{f', LoRA of rank {tower.lora.rank}' if tower.lora.rank else ''})"
        for kind, tower in (("image", config.model.image), ("text", config.model.text))
    ]
    others = left_out(source)
    without = f" (left out: {in_words(others)})" if others else ""
    say(f"objective {config.objective.name} on {len(source):,} pairs of {source.name}{without}")
    say(", ".join(towers))
    say(f"{trained:,} trained parameters, {frozen:,} frozen")
    if config.optimizer.groups:
        say("\n".join(describe_groups(config, variables.params)))
    if cut := parts.encoder.tokenizer.share_cut(sample_captions(source)):
        say(
            f"{100 * cut:.1f} % of captions are longer than config.data.max_tokens="
            f"{config.data.max_tokens} and lose their end"
        )
    for each in parts.sets:
        say(f"to be evaluated on {each.name}: {counts_of(each)}")
    if seen := sets_trained_on(parts, source):
        say(
            f"also trained on: {', '.join(seen)}; what is measured there says how well it was "
            "learned, not how well the model does on what it has not seen"
        )
    say(
        f"{total_steps} steps of {config.batch_size} pairs on {parts.mesh.devices.size} "
        f"{jax.devices()[0].platform} device(s), workdir {parts.workdir}"
    )


def sets_trained_on(parts: Parts, source: Source) -> list[str]:
    """Return the names of the evaluation sets that are the training pairs, or some of them."""
    train = parts.config.data.train
    specs = [train] if isinstance(train, str) else list(train)
    specs = [spec for spec in specs if ":" in spec]  # A bare name has a split of its own for both.
    sources = getattr(source, "sources", (source,))
    fingerprints = {each.fingerprint for each in (source, *sources)}
    return [
        each.name
        for each in parts.sets
        if each.name in specs or each.contents().get("fingerprint") in fingerprints
    ]


def counts_of(evaluated: EvaluationSet) -> str:
    """Return how much there is in a set: 48 pairs, or 10,000 images, 100 classes."""
    contents = evaluated.contents().items()
    return ", ".join(f"{count:,} {name}" for name, count in contents if isinstance(count, int))
