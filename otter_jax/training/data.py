"""The pairs a run trains on: opening them, what cannot be used, and how far each is trusted."""

import dataclasses
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from otter_jax import objectives, sharding
from otter_jax.data import batches, text_augmentations
from otter_jax.data.groups import group_name, hash_groups
from otter_jax.data.pair_loader import PairLoader, Views
from otter_jax.data.records import (
    count_reasons,
    refuse_too_many_bad,
    single_captions,
)
from otter_jax.data.sources import Source, count_by_source, left_out, skipped_files
from otter_jax.embedding import caption_repair, trust, trust_rounds
from otter_jax.embedding.features import MEMORY_LIMIT, fingerprint, in_parts
from otter_jax.embedding.image_collections import compute_features, from_source, named_records
from otter_jax.embedding.pair_features import PairFeatures, embed_pairs
from otter_jax.json_files import read_json, write_json
from otter_jax.runs import processes
from otter_jax.terminal import progress, say
from otter_jax.training.parts import Parts

PAIR_FEATURES = "pair_features_"  # Folders in a workdir, while trust is estimated.


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


def open_training_data(parts: Parts, source: Source) -> TrainingData:
    """Choose how batches are made: from features computed once, or from images every time.

    A frozen text tower's features are computed once even where images vary.
    """
    config = parts.config
    views = views_of(config, parts.method)
    if config.data.token_buckets and not parts.encoder.ignores_padding:
        raise ValueError(
            f"config.data.token_buckets={config.data.token_buckets}: the text tower "
            f"{config.model.text.name} looks at padding too, which must not be cut; leave it ()"
        )
    one_view = views.images == 1 and not views.masked_text and not views.second_text
    fixed = config.data.augmentation == "none" and not config.data.flip and one_view
    trains = config.total_steps != 0  # Else hardly a pair is looked at.
    if trains and config.data.cache_features and config.model.image.frozen and fixed:
        return open_cached_data(parts, source, views)
    texts = known_text_features(parts, source, views) if trains else None
    loader = PairLoader(
        source,
        None if texts is not None else parts.encoder.tokenizer,
        image_size=config.data.image_size,
        fit=config.data.fit,
        augmentation=config.data.augmentation,
        flip=config.data.flip,
        seed=config.seed,
        views=views,
        decoding=config.data.decoding,
        resize=parts.encoder.resize,
    )
    load = loader if texts is None else batches.with_values(loader, "text_features", texts)
    return TrainingData(source, load, np.arange(len(source)), loader.unreadable)


def known_text_features(parts: Parts, source: Source, views: Views) -> np.ndarray | None:
    """Return the frozen text tower's features of each pair's caption, float32 [n, width].

    None where they vary from step to step, since captions are reworded, masked or drawn among
    several; and where there are too many to be held in memory. Equal captions are embedded once.
    """
    config, encoder = parts.config, parts.encoder
    frozen = config.data.cache_features and config.model.text.frozen
    if not frozen or views.second_text or views.masked_text:
        return None
    if len(source) * encoder.text_width * np.float32().nbytes > MEMORY_LIMIT:
        return None
    captions = single_captions(source)
    if captions is None:
        return None
    # NumPy's `unique` would give every caption the room of the longest.
    places = {caption: place for place, caption in enumerate(sorted(set(captions)))}
    encoder = parts.place_encoder()
    features = parts.store.text_features(encoder, list(places), "training captions")
    return features[[places[caption] for caption in captions]]


def views_of(config: ConfigDict, method: objectives.Method) -> Views:
    """Return the views of a pair that an objective asks for.

    Raises:
        ValueError: if they would be no views, or nothing would learn from them.
    """
    number = 3 if method.uses_simclr else 2 if method.uses_two_image_views else 1
    if number > 1 and config.data.view_augmentation == "none":
        raise ValueError(
            f"config.data.view_augmentation='none': objective {method.name!r} needs {number} "
            "different views of an image; moco is the customary augmentation"
        )
    if method.uses_masked_language and config.model.text.frozen:
        raise ValueError(
            "config.model.text.frozen=True: masked language modelling would teach the text tower "
            "nothing; train part of it (model.text.trainable, as --config=declip_quickstart does), "
            "or set config.objective.mlm_weight=0"
        )
    if method.uses_simclr and config.model.image.frozen:
        raise ValueError(
            "config.model.image.frozen=True: SimCLR would teach the image tower nothing; train "
            "part of it (model.image.trainable), or set config.objective.simclr_weight=0"
        )
    if method.uses_two_text_views:
        text_augmentations.wordnet()  # Refuses at the start if it is not installed.
    groups = method.known_positives is not None
    if config.data.group is not None and not groups:
        raise ValueError(
            f"config.data.group={config.data.group!r}: set config.objective.known_positives to "
            "ignore or share too"
        )
    if number == 1 and not method.uses_masked_language:
        return Views(groups=groups, group_column=config.data.group)
    return Views(
        images=number,
        augmentations=(config.data.augmentation, *(config.data.view_augmentation,) * (number - 1)),
        second_text=method.uses_two_text_views,
        masked_text=method.uses_masked_language,
    )


def open_cached_data(parts: Parts, source: Source, views: Views) -> TrainingData:
    """Compute the frozen image tower's features of all pairs, or read them if they are known."""
    store, encoder, column = parts.store, parts.place_encoder(), views.group_column
    named = [
        (name, record and record.caption, record and group_name(record, record.caption, column))
        for name, record in named_records(source)
    ]
    collection = from_source(source, [name for name, *_ in named])
    found = compute_features(collection, encoder, store, "training")
    captions = [named[number][1] for number in found.numbers]
    arrays = {"image_features": found.features, "index": found.numbers}
    if views.groups:
        arrays["group"] = hash_groups(named[number][2] for number in found.numbers)
    if parts.config.model.text.frozen:
        arrays["text_features"] = store.text_features(encoder, captions, "training captions")
    else:
        arrays["tokens"], arrays["token_mask"] = encoder.tokenizer(captions)
    load = batches.array_loader(arrays)
    return TrainingData(source, load, found.numbers, found.unreadable, fixed=arrays)


def check_data(parts: Parts, data: TrainingData) -> None:
    """Write down and say what cannot be used, and refuse too much of it (ValueError)."""
    data.share_unreadable()
    write_data_note(parts, data)
    if len(data.unreadable) > data.said:
        data.said = len(data.unreadable)
        say(f"images that cannot be read, and are not used: {len(data.unreadable)}; see data.json")
    refuse_bad_data(parts.config, data.source, data.unreadable)


def write_data_note(parts: Parts, data: TrainingData) -> None:
    """Write data.json: what is really trained on, and what any process left out and why."""
    unreadable = data.unreadable
    write_json(
        parts.workdir / "data.json",
        {
            "train": {
                "source": parts.config.data.train,
                "pairs": len(data.source) - len(unreadable),
                "fingerprint": data.source.fingerprint,
                "left_out": left_out(data.source),
                "skipped": data.source.skipped,
                "skipped_files": skipped_files(data.source),
                "unreadable_by_reason": count_reasons(unreadable.values()),
                "unreadable": dict(sorted(unreadable.items())),
            },
            "evaluate": {each.name: each.contents() for each in parts.sets},
            "images": parts.encoder.describe_transform(),
        },
    )


def read_unreadable(workdir: Path) -> dict[str, str]:
    """Return what an earlier start of this run could not read, which stays noted."""
    path = workdir / "data.json"
    return read_json(path)["train"]["unreadable"] if path.is_file() else {}


def refuse_bad_data(config: ConfigDict, source: Source, unreadable: dict[str, str]) -> None:
    """Refuse data of which too much is bad, as far as is known by now (ValueError)."""
    total = len(source) + sum(source.skipped.values()) + sum(left_out(source).values())
    bad = Counter(source.skipped) + Counter(count_reasons(unreadable.values()))
    refuse_too_many_bad(bad, total, config.data.max_bad_share)


def add_trust(parts: Parts, data: TrainingData) -> None:
    """Have batches carry each pair's trust: estimated before the first step, then kept.

    Raises:
        ValueError: if what the workdir keeps is another's, or there are too few different pairs.
    """
    path, key = parts.workdir / trust.FILE, trust_key(parts, data.source)
    if sharding.first_process_says(path.is_file()):
        found, records = trust.read(path, key)
    else:
        if jax.process_count() == 1:  # What a killed run has left.
            for left in parts.workdir.glob(f"{PAIR_FEATURES}*"):
                shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=parts.workdir, prefix=PAIR_FEATURES) as folder:
            found, records = estimate_trust(parts, data, Path(folder))
        trust.write(path, key, found, records)
    say(trust.describe_trust(found))
    # Of a record that could not be read then, no more is known than of all together.
    values = np.full(len(data.source), 1.0 - found.share_wrong, np.float32)
    values[records] = found.alpha
    if parts.config.trust.captions:
        values[data.records] = repair_captions(parts, data, values[data.records])
    data.load = batches.with_values(data.load, "trust", values)


def repair_captions(parts: Parts, data: TrainingData, alpha: np.ndarray) -> np.ndarray:
    """Have batches carry repaired captions, and return how far these are trusted, [n].

    Args:
        parts: of the run.
        data: whose features of n pairs are in memory; changed.
        alpha: [n], the trust of these pairs.
    """
    config = parts.config
    repaired = caption_repair.repair(
        data.fixed["image_features"],
        data.fixed["text_features"],
        alpha,
        captions=config.trust.captions,
        reference=config.trust.reference,
        seed=config.seed,
        mesh=parts.mesh,
    )
    data.fixed = data.fixed | {"text_features": repaired.text}
    data.load = batches.array_loader(data.fixed)
    return repaired.trust


def estimate_trust(
    parts: Parts, data: TrainingData, folder: Path
) -> tuple[trust.Trust, np.ndarray]:
    """Return the trust of pairs by the towers before training, and their records' numbers."""
    config, fixed = parts.config, data.fixed
    for tower in ("image", "text"):
        if config.model[tower].pretrained is None:
            say(
                f"trust is estimated with the {tower} tower's random weights, which say nothing of "
                f"what is right; set config.model.{tower}.pretrained"
            )
    if not fixed:
        pairs = embed_pairs(data.source, parts.place_encoder(), folder, store=parts.store)
    elif "text_features" in fixed:
        pairs = PairFeatures(fixed["image_features"], fixed["text_features"], data.records)
    else:
        encoder = parts.place_encoder()
        rows = in_parts(zip(fixed["tokens"], fixed["token_mask"], strict=True), encoder)
        embedded = map(encoder.token_features, rows)
        said = progress(embedded, len(data.records), "captions of pairs", count=len)
        pairs = PairFeatures(fixed["image_features"], np.concatenate(list(said)), data.records)
    options = {name: value for name, value in config.trust.items() if name != "captions"}
    found = trust_rounds.estimate_in_rounds(
        pairs.image, pairs.text, **options, seed=config.seed, mesh=parts.mesh
    )
    return found, pairs.numbers


def trust_key(parts: Parts, source: Source) -> str:
    """Return a hash of all that pair trust depends on."""
    config, variables = parts.config, parts.encoder.variables
    towers = [group.get(kind) for group in variables for kind in ("image", "text")]
    transform = [config.data[name] for name in ("image_size", "fit", "max_tokens")]
    asked = config.trust
    numbers = [trust.TRUST_FORMAT, asked.neighbors, asked.reference, config.seed]
    if asked.rounds:  # Else what an earlier version has found stays good.
        numbers += [asked.rounds, asked.folds]
    return fingerprint(source.fingerprint, towers, transform, config.model.dtype, numbers)


def order_of_records(config: ConfigDict, source: Source, records: np.ndarray) -> grain.MapDataset:
    """Return rows of `records` by step, see batches.record_order."""
    lengths = count_by_source(source, records)
    settings = config.data
    return batches.record_order(
        lengths, config.batch_size, config.seed, settings.weights, settings.order
    )
