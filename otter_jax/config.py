"""The configuration of a run: every key with its default and meaning, checks, what a workdir keeps.

A config file in configs/ starts from `default_config()` and changes what its experiment changes, so
that the difference of two files is the difference of two experiments. The config is locked: a
misspelt key is an error, never a silent no-op.

Each section is a dataclass below, but for `objective`: its keys are the options of the methods
(objectives/methods.py), unset until somebody sets them, so that a method's defaults stand with it.
"""

import ast
import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import itertools
import json
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from otter_jax.data import partial_decoding
from otter_jax.data.augmentations import AUGMENTATIONS
from otter_jax.data.batches import ORDERS
from otter_jax.data.templates import read_templates
from otter_jax.json_files import read_json_object
from otter_jax.objectives import METHODS, make_method
from otter_jax.objectives.methods import ESTIMATED, fields_of

# Keys that say how a run is kept, not what it computes; they may change between two starts.
BOOKKEEPING_KEYS = (
    "checkpoint.every_",
    "checkpoint.keep",
    "compiled_programs",
    "data.max_bad_share",
    "data.threads",
    "fsdp",
    "mesh.fsdp",
    "on_nan",
    "max_loss_ratio",
    "max_nan_steps",
    "profile",
    "wandb_project",
)
# What keys are called elsewhere.
CUSTOMARY_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "epochs": "total_epochs",
    "steps": "total_steps",
    "bs": "batch_size",
    "warmup": "warmup_steps",
    "temperature": "initial_scale",
    "eps": "epsilon",
}
OVERRIDE = re.compile(r"model\.(image|text)\.overrides\.[^.]+")  # Any plain value.


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Keys of no section.

    Attributes:
        seed: of everything that is random in the run.
        batch_size: pairs in a batch, over all devices.
        total_epochs: length of the run; an epoch is as many pairs as there are.
        total_steps: where set, it wins over total_epochs; 0 measures the model as it is, untrained.
        log_every_steps: how often the loss is shown and written down.
        micro_batch: rows that go through the towers at a time; the loss is still that of the whole
            batch. Unset: all. Batch norm then has the statistics of these rows, or none with
            keep_batch_stats.
        fsdp: split parameters, moments and teacher over the devices instead of keeping them on
            each.
        deterministic: on GPUs, only kernels that give the same bits every time; slower, and without
            need elsewhere.
        profile: (first, last) keeps a trace of these steps in WORKDIR/profile.
        compiled_programs: a folder in which compiled programs are kept, so that a run that resumes
            need not compile again; auto: in the user's cache, at most 4 GiB | none.
        wandb_project: where set, metrics go to Weights & Biases as well.
        on_nan: what follows a loss or update that is not finite, or a loss that has exploded, none
            of which enters the parameters: stop | skip (go on with the next batch) | rollback (to
            the last checkpoint, whose parameters go on behind all the batches that came after it).
        max_nan_steps: above so many of these, skip and rollback stop.
        max_loss_ratio: a loss has exploded above this many times its running mean, or times 1 if
            that is more; 0: never.
    """

    seed: int = 0
    batch_size: int = 512
    total_epochs: float = 10.0
    total_steps: int | None = None
    log_every_steps: int = 50
    micro_batch: int | None = None
    fsdp: bool = False
    deterministic: bool = False
    profile: tuple = ()
    compiled_programs: str = "auto"
    wandb_project: str | None = None
    on_nan: str = "stop"
    max_nan_steps: int = 10
    max_loss_ratio: float = 10.0


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """The section `mesh`.

    Attributes:
        fsdp: with fsdp=True, how many devices share one copy of parameters, moments and teacher;
            each such group has a copy of its own. Unset: all of them share one.
        dtype: float32 | bfloat16, in which the towers' weights and their gradients go from device
            to device. bfloat16, for model.dtype=bfloat16, is half as much, and adds up gradients
            in 8 bits.
    """

    fsdp: int | None = None
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class DataSection:
    """The section `data`.

    Attributes:
        train: a SPEC: open_clipart | icons | webdataset:PATH | csv:FILE | folder:PATH |
            tfds:NAME[:SPLIT], see data/sources.py; or several, ("webdataset:a.tar", "csv:b.csv"):
            one set of pairs.
        weights: with several sources, (1.0, 3.0) mixes them in these shares, each in epochs of its
            own. An epoch of the run is always as many pairs as there are in all sources together.
        order: which permutations pairs go through: 1 | 2, which below 65,536 pairs takes a tenth of
            the time (data/batches.py).
        decoding: how JPEGs are decoded for random crops: 1 whole, 2 no further than the crop needs,
            with simplejpeg (data/partial_decoding.py).
        captions: one | all: of several captions of an image one is drawn at every step, or each is
            a pair of its own, so that an epoch has all of them.
        keep: a list of the pairs to train on, by their keys, or a table with each pair's trust or
            score, FILE?above=0.5, see data/kept_pairs.py. Unset: all.
        group: with objective.known_positives, a column of a table, or a key of the tar's json,
            that is equal where pairs match each other. Unset: the captions.
        held_out: share of the pairs that is not trained on but evaluated, as the set `held_out`;
            drawn by the seed, equal images and captions staying together. 0: none.
        max_bad_share: where more of the records cannot be used, the run stops.
        image_size: pixels a side. Unset: those of `model.pretrained`.
        fit: crop | pad (pads to a square on white; suits drawings).
        augmentation: none | resize_random_crop | random_resized_crop | light | moco, see
            data/augmentations.py.
        view_augmentation: the same, of further views, where the objective asks for them.
        flip: mirror images at random.
        max_tokens: of a caption; the rest is cut off. Unset: as many as `model.pretrained` takes,
            128 at most.
        token_buckets: (16, 24, 32, 48): a batch's captions are padded to the first of these that
            holds the longest, else to max_tokens; the step is compiled for each once. Losses are
            the same to rounding, 1e-6, but that dropout between tokens draws other masks. For text
            towers that take no notice of padding. (): always to max_tokens.
        threads: that read and decode ahead of the step.
        cache_features: where a tower is frozen and nothing is augmented, compute its features once.
    """

    train: str | tuple = "open_clipart"
    weights: tuple = ()
    order: int = 1
    decoding: int = 1
    captions: str = "one"
    keep: str | None = None
    group: str | None = None
    held_out: float = 0.0
    max_bad_share: float = 0.05
    image_size: int | None = 224
    fit: str = "crop"
    augmentation: str = "resize_random_crop"
    view_augmentation: str = "moco"
    flip: bool = False
    max_tokens: int | None = 60
    token_buckets: tuple = ()
    threads: int = 2
    cache_features: bool = True


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """The section `model`, which holds those of the towers, `image` and `text`.

    Attributes:
        pretrained: a checkpoint of two towers, a folder, a file or a Hugging Face name, for each
            tower that has no `pretrained` of its own. Where the similarities' scale is unset
            (objective.initial_scale), it is the checkpoint's.
        embed_dim: numbers in an embedding. Unset: those of `pretrained`.
        dtype: float32 | bfloat16, the towers' compute type; losses stay in float32.
    """

    pretrained: str | None = None
    embed_dim: int | None = 768
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class TowerSection:
    """The sections `model.image` and `model.text`.

    Attributes:
        name: which network, see docs/towers.md; "auto" for that of `pretrained`.
        pretrained: its weights: a folder, a file, a Hugging Face name or package:NAME. Unset:
            random.
        allow_missing: what of this tower's names the file may lack, with * and ?.
        frozen: all of the tower stays as it is, and its features can be computed once.
        trainable: a regular expression, searched in the parameters' paths ("layer4|projection"),
            says which are trained; "projection" stands for the layer after the tower. Unset: all.
        keep_batch_stats: batch norm keeps its running statistics. Otherwise they move also in a
            tower whose parameters do not (as released).
        remat: compute activations again for the gradient instead of keeping them: less memory, more
            time. On a CPU XLA does so only where scan_layers is set too.
        scan_layers: compile layers that are equal once, as a loop (of ViTs, CLIP's texts, the BERT
            family and ResNets): a program of a fraction of the size, with the same numbers.
        projection: linear | linear_no_bias | mlp | none | auto (none if widths agree, else
            linear) | pretrained (what the file of `pretrained` has after this tower).
    """

    name: str
    pretrained: str | None = None
    allow_missing: tuple = ()
    frozen: bool = False
    trainable: str | None = None
    keep_batch_stats: bool = False
    remat: bool = False
    scan_layers: bool = False
    projection: str = "linear"


@dataclasses.dataclass(frozen=True)
class TextTowerSection(TowerSection):
    """What `model.text` has beside these.

    Attributes:
        tokenizer: a folder. Unset: that of `pretrained`.
        mask_token: what stands for a masked token, for tokenizers that have none. Unset: an id
            behind the last one, for which the tower needs a row (overrides.vocab_size).
        positions: of a CLIP's text tower, to how many tokens its table of positions is stretched;
            the first 20 stay as they are. Unset: as the weights have them.
    """

    tokenizer: str | None = None
    mask_token: str | None = None
    positions: int | None = None


@dataclasses.dataclass(frozen=True)
class LoraSection:
    """The sections `model.image.lora` and `model.text.lora`: see models/lora.py.

    Attributes:
        rank: of low-rank updates of the tower's linear layers, which are trained instead of it; the
            projection is trained as well, or what `trainable` says. Unset: none.
        alpha: the updates are scaled by alpha / rank.
        dropout: of the updates' inputs, in [0, 1).
        layers: a regular expression, searched in the layers' paths ("query|value").
            Unset: every linear layer.
    """

    rank: int | None = None
    alpha: float = 16.0
    dropout: float = 0.0
    layers: str | None = None


@dataclasses.dataclass(frozen=True)
class TeacherSection:
    """The section `teacher`, where the objective has one.

    Attributes:
        kind: average (the moving average of the student) | pretrained (the student as it was before
            training, which keeps a fine-tuned model near it).
        decay: of the moving average, in [0, 1).
        warmup: decay_t = min(decay, (1 + t) / (10 + t)).
        train_mode: dropout and batch statistics in the teacher, as released.
    """

    kind: str = "average"
    decay: float = 0.999
    warmup: bool = True
    train_mode: bool = False


@dataclasses.dataclass(frozen=True)
class TrustSection:
    """The section `trust`: of each pair, where the objective asks for it (embedding/trust.py).

    Attributes:
        neighbors: how many of the most similar images vote on a caption.
        reference: among how many pairs at most they are looked for.
        rounds: how often trust is estimated again, by maps between images and captions that the
            pairs of other folds have taught (embedding/trust_rounds.py); 2 are enough.
        folds: into how many parts the pairs are divided for that.
        captions: of a distrusted pair, how many trusted neighbours' captions stand in for its own
            (embedding/caption_repair.py); 5 are good, 0 are none. Both towers must be frozen, and
            their features computed once.
    """

    neighbors: int = 30
    reference: int = 100_000
    rounds: int = 0
    folds: int = 5
    captions: int = 0


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn in another way than the rest: one of `optimizer.groups`.

    Attributes:
        pattern: regular expression, searched in names such as "text.layers.3.query.kernel",
            "image_projection.kernel" and "log_scale".
        learning_rate: the highest. Unset, here and below: as `optimizer` says.
        weight_decay: of all in the group but biases, norms and scales.
        layer_decay: each layer of a tower learns by this factor more slowly than the one above it,
            the group's highest at the full rate. Unset: all alike.
        warmup_steps: in which the learning rate rises linearly.
        schedule: after it, cosine (falls to 0 by half a cosine) | constant.
    """

    pattern: str
    learning_rate: float | None = None
    weight_decay: float | None = None
    layer_decay: float | None = None
    warmup_steps: int | None = None
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        """Refuse what is no such group (ValueError)."""
        try:
            re.compile(self.pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"pattern={self.pattern!r} is no regular expression: {error}"
            ) from None
        for name in ("learning_rate", "weight_decay", "warmup_steps"):
            kinds = (int,) if name == "warmup_steps" else (int, float)
            if (value := getattr(self, name)) is None:
                continue
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: it must be a number, whole for warmup_steps")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: it must not be negative or infinite")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay={self.layer_decay}: it must lie in (0, 1]")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"schedule={self.schedule!r}: choose from cosine, constant")


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """The section `optimizer`.

    Attributes:
        name: sgd | adamw.
        learning_rate: the highest; it falls to 0 by half a cosine.
        momentum: b1 of AdamW, in [0, 1).
        b2: of AdamW, in [0, 1).
        weight_decay: of all but biases, norms and scales.
        warmup_steps: in which the learning rate rises linearly.
        gradient_clip: most that the gradients' global norm may be. Unset: anything.
        groups: parameters with rates of their own, ({"pattern": "^image", "learning_rate": 1e-5},),
            each with a pattern and any of learning_rate, weight_decay, layer_decay, warmup_steps,
            schedule (docs/finetuning.md). What no pattern matches learns as said above.
    """

    name: str = "sgd"
    learning_rate: float = 3e-3
    momentum: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    warmup_steps: int = 0
    gradient_clip: float | None = None
    groups: tuple = ()


@dataclasses.dataclass(frozen=True)
class CheckpointSection:
    """The section `checkpoint`.

    Attributes:
        every_steps: how often one is written.
        every_minutes: and when the last is that long ago; 0: never.
        keep: how many of the latest.
        best: a metric such as "eval/held_out/hit@1": the checkpoint with the highest is kept as
            well, and is what results.json and `otter_jax.load` speak of.
        stop_after: the run ends when so many evaluations in a row have brought no better `best`.
    """

    every_steps: int = 1000
    every_minutes: float = 30.0
    keep: int = 2
    best: str | None = None
    stop_after: int | None = None


@dataclasses.dataclass(frozen=True)
class EvaluateSection:
    """The section `evaluate`.

    Attributes:
        sets: names or SPECs, see docs/evaluation.md.
        every_steps: how often; 0: only before and after training.
        batch_size: images and texts that go through the towers at a time.
        template: the prompt around a class name, a text file of one a line, or clip80.
        names: joined | averaged: a class's names in one prompt (as released), or one each.
        interpolate: (0, 0.25, 0.5, 0.75, 1) has `otter-jax evaluate` measure the models at these
            shares of the way from the start of the run to its end.
    """

    sets: tuple = ("open_clipart",)
    every_steps: int = 0
    batch_size: int = 64
    template: str = "a photo of {}."
    names: str = "joined"
    interpolate: tuple = ()


IMAGE_TOWER, TEXT_TOWER = TowerSection("efficientnet_lite0"), TextTowerSection("bert")
SECTIONS = {
    "": Experiment(),
    "mesh": MeshSection(),
    "data": DataSection(),
    "model": ModelSection(),
    "model.image": IMAGE_TOWER,
    "model.text": TEXT_TOWER,
    "model.image.lora": LoraSection(),
    "model.text.lora": LoraSection(),
    "teacher": TeacherSection(),
    "trust": TrustSection(),
    "optimizer": OptimizerSection(),
    "checkpoint": CheckpointSection(),
    "evaluate": EvaluateSection(),
}


def default_config() -> ConfigDict:
    """Return every key, with the papers' value where they name one (OTTER, released code)."""
    config = ConfigDict()
    for path, section in SECTIONS.items():
        parent, _, name = path.rpartition(".")
        group = ConfigDict() if path else config
        for field in dataclasses.fields(section):
            group[field.name] = _reference(_type_of(section, field), getattr(section, field.name))
        if path:
            (_get(config, parent) if parent else config)[name] = group
    for tower in ("image", "text"):
        config.model[tower].overrides = ConfigDict()  # Fields of the tower's own configuration.
    config.objective = ConfigDict({"name": "otter"})
    for method in METHODS.values():
        for field in dataclasses.fields(method):
            if field.name not in config.objective:
                config.objective[field.name] = _reference(_type_of(method, field), None)
    return config.lock()


def _type_of(owner: Any, field: dataclasses.Field) -> Any:
    owner = owner if isinstance(owner, type) else type(owner)
    return typing.get_type_hints(owner)[field.name]


def _reference(kind: Any, value: Any) -> Any:
    """Return what a ConfigDict holds for a value: it knows the type also of what is unset."""
    kinds = [each for each in typing.get_args(kind) or (kind,) if each is not types.NoneType]
    if len(kinds) > 1:  # Several types: a plain value of any.
        return FieldReference(value, field_type=object)
    optional = types.NoneType in typing.get_args(kind)
    return FieldReference(value, field_type=kinds[0]) if optional or value is None else value


def describe_keys() -> Iterator[tuple[str, str, str]]:
    """Yield each key, its default and its meaning in words."""
    for path, section in SECTIONS.items():
        meanings = _meanings(type(section))
        for field in dataclasses.fields(section):
            key = f"{path}.{field.name}" if path else field.name
            yield key, _shown(getattr(section, field.name)), meanings[field.name]
        if path in ("model.image", "model.text"):
            yield f"{path}.overrides.KEY", "", "a field of the tower's own configuration."
    yield "objective.name", "otter", f"the method: {' | '.join(METHODS)}."
    seen: set[str] = set()
    for method in METHODS.values():
        meanings = _meanings(method)
        for field in dataclasses.fields(method):
            if field.name not in seen:
                seen.add(field.name)
                yield f"objective.{field.name}", _defaults(field.name), meanings[field.name]


def _defaults(option: str) -> str:
    """Return the default of an option, by method where it is not the same for all that have it."""
    owners = {n: fields_of(m)[option].default for n, m in METHODS.items() if option in fields_of(m)}
    values = list(dict.fromkeys(map(_shown, owners.values())))
    if len(owners) == len(METHODS) and len(values) == 1:
        return values[0]
    return "; ".join(
        f"{value} ({', '.join(n for n, default in owners.items() if _shown(default) == value)})"
        for value in values
    )


def _shown(value: Any) -> str:
    return "unset" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _meanings(owner: type) -> dict[str, str]:
    """Return what a dataclass and those above it say of their attributes."""
    meanings: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        listed = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            meanings[name] = " ".join(text.split())
    return meanings


class Problems:
    """What is wrong with a start, gathered so that all of it can be said at once."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._found: dict[str, Exception] = {}  # By its words, lest anything be said twice.

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._found)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Note what the block refuses, and go on after it."""
        try:
            yield
        except (ValueError, OSError, ModuleNotFoundError) as error:
            self._found.setdefault(str(error), error)

    def refuse(self) -> None:
        """Raise what was found: a single problem as it is, several as one ValueError."""
        if len(self._found) == 1:
            raise next(iter(self._found.values()))
        if self._found:
            numbered = (f"({number}) {words}" for number, words in enumerate(self._found, start=1))
            raise ValueError(f"{len(self._found)} things are wrong: {'; '.join(numbered)}")


def check(config: ConfigDict) -> None:
    """Refuse values that could only fail later.

    Raises:
        ValueError: naming the key, what was found and what would be right, of all that are wrong.
        ModuleNotFoundError: if a package is missing, and nothing else is wrong.
    """
    problems_of(config).refuse()


def problems_of(config: ConfigDict) -> Problems:
    """Return what `check` refuses."""
    problems = Problems()
    with problems.noting():
        _refuse_unknown_keys(config)
    if problems:
        return problems  # The others ask for keys.
    with problems.noting():
        _check_finite(config)
    if problems:
        return problems  # Others would say it again, in other words.
    for refuse in (
        *(_check_seed, _check_choices, _check_profile, _check_wandb, _check_sources),
        *(_check_captions, _check_batch, _check_loss_ratio, _check_mesh, _check_trust),
        *(
            _check_template,
            _check_token_buckets,
            _check_decoding,
            _check_best,
            _check_interpolate,
            groups_of,
        ),
    ):
        with problems.noting():
            refuse(config)
    for tower in ("image", "text"):
        with problems.noting():
            _refuse_contradictions(config, tower)
    for keys, allowed, words in RANGES:
        for key in keys:
            value = _get(config, key)
            with problems.noting():
                if value is not None and not allowed(value):
                    raise ValueError(f"config.{key}={value}: it must {words}")
    return problems


LARGEST = 2**14  # Pixels a side, tokens and the like: more is a slip, and no memory would do.
# Keys of numbers, and what they may be.
RANGES = (
    (
        ("batch_size", "micro_batch", "log_every_steps", "checkpoint.every_steps",
         "checkpoint.keep", "checkpoint.stop_after", "data.image_size", "data.max_tokens",
         "data.threads", "model.embed_dim", "trust.neighbors", "evaluate.batch_size",
         "total_epochs", "optimizer.gradient_clip", "model.image.lora.rank", "model.text.lora.rank",
         "model.image.lora.alpha", "model.text.lora.alpha"),
        lambda value: value > 0,
        "be positive",
    ),
    (
        ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.warmup_steps",
         "total_steps", "evaluate.every_steps", "checkpoint.every_minutes", "max_nan_steps",
         "trust.rounds", "trust.captions"),
        lambda value: value >= 0,
        "not be negative",
    ),
    (
        ("data.image_size", "data.max_tokens", "model.embed_dim", "data.threads"),
        lambda value: value <= LARGEST,
        f"be at most {LARGEST}",
    ),
    (
        ("teacher.decay", "optimizer.momentum", "optimizer.b2", "model.image.lora.dropout",
         "model.text.lora.dropout"),
        lambda value: 0 <= value < 1,
        "lie in [0, 1)",
    ),
)  # fmt: skip


def total_steps(config: ConfigDict, num_pairs: int) -> int:
    """Return the steps of the run; an epoch is `num_pairs` / `batch_size` of them, not rounded."""
    if config.total_steps is not None:
        return int(config.total_steps)
    return max(1, int(config.total_epochs * num_pairs / config.batch_size))


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """Return what config.json holds: nested plain values, keys in order.

    Of the objective it has the method's own options, complete.
    """
    plain = json.loads(config.to_json(sort_keys=True))
    method = make_method(**plain["objective"])
    return plain | {"objective": {"name": method.name, **dataclasses.asdict(method)}}


def unset_foreign_options(config: ConfigDict, given: Iterable[str] = ()) -> list[str]:
    """Unset what a preset has set for a method of its own, where another was chosen since.

    Args:
        config: changed in place.
        given: keys (`objective.epsilon`) that the user set, which are left, to be refused.

    Returns:
        The options that were unset.
    """
    name = config.objective.name
    if name not in METHODS:
        return []
    own = {"name", *fields_of(METHODS[name])}
    foreign = [
        key
        for key, value in config.objective.items()
        if value is not None and key not in own and f"objective.{key}" not in set(given)
    ]
    for key in foreign:
        config.objective[key] = None
    return foreign


def split_unset(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command line's arguments without `--config.KEY=none`, and the keys that say so.

    Only keys that may be unset are taken: `model.image.projection=none` is a value.

    >>> split_unset(["--config.model.text.pretrained=none", "--config.seed=1"])
    (['--config.seed=1'], ['model.text.pretrained'])
    """
    may_be_unset = {key for key, optional in _optional_keys() if optional}
    rest, keys = [], []
    for argument in arguments:
        found = re.fullmatch(r"--?config\.([\w.]+)=(none|None|)", argument)
        if found and found[1] in may_be_unset:
            keys.append(found[1])
        else:
            rest.append(argument)
    return rest, keys


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return a command line's arguments without fields of the towers' own, and these by key.

    >>> split_overrides(["--config.model.image.overrides.hidden_act=gelu", "--config.seed=1"])
    (['--config.seed=1'], {'model.image.overrides.hidden_act': 'gelu'})
    """
    rest, overrides = [], {}
    for argument in arguments:
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals or not argument.startswith("--config.") or not OVERRIDE.fullmatch(key):
            rest.append(argument)
            continue
        try:
            overrides[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            overrides[key] = text  # A word, as most are.
    return rest, overrides


def set_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Set fields of the towers' own configurations, by key; the towers refuse unknown ones."""
    for key, value in overrides.items():
        group, _, name = key.rpartition(".")
        with config.unlocked():
            _get(config, group)[name] = value


def unset(config: ConfigDict, keys: Iterable[str]) -> None:
    """Set keys to None."""
    for key in keys:
        group, _, name = key.rpartition(".")
        (_get(config, group) if group else config)[name] = None


def _optional_keys() -> Iterator[tuple[str, bool]]:
    """Yield each key, and whether None is a value of it."""
    for path, section in SECTIONS.items():
        for field in dataclasses.fields(section):
            kinds = typing.get_args(_type_of(section, field))
            yield (f"{path}.{field.name}" if path else field.name), types.NoneType in kinds
    for method in METHODS.values():
        for field in dataclasses.fields(method):
            yield f"objective.{field.name}", True  # Then it has the method's default.


def load_config(path: Path) -> ConfigDict:
    """Read a saved config; keys that have come since get their defaults.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it has a key that does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not a workdir: it has no {path.name}")
    config = default_config()
    known = flatten(config.to_dict())
    saved = read_json_object(path)
    if not isinstance(saved.get("objective", {}), dict):
        raise ValueError(f"{path} is damaged: its objective should be an object")
    methods_keys = {key for key in known if key.startswith("objective.")} - {"objective.name"}
    own = _own_options(path, saved.get("objective", {}).get("name", config.objective.name))
    for key, value in flatten(saved).items():
        value = tuple(value) if isinstance(value, list) else value
        if key in known and key in methods_keys and value == own.get(key, value):
            continue  # Earlier versions kept the options of all methods. A default stays unset.
        if OVERRIDE.fullmatch(key):
            group, _, name = key.rpartition(".")
            with config.unlocked():
                _get(config, group)[name] = value
        elif key in known:
            config.update_from_flattened_dict({key: value})
        else:
            raise ValueError(f"{path}: unknown key {key!r}")
    return config


def _own_options(path: Path, name: str) -> dict[str, Any]:
    """Return the options of a saved config's method by key (ValueError if it is not known)."""
    if name not in METHODS:
        raise ValueError(
            f"{path}: objective {name!r} is none of {', '.join(METHODS)}; import the file that "
            "registers it first"
        )
    return {f"objective.{key}": field.default for key, field in fields_of(METHODS[name]).items()}


def describe_unknown_key(key: str) -> str | None:
    """Return what to write instead of a key such as `data.trian`; None if it may exist."""
    known = list(flatten(default_config().to_dict()))
    if key in known or OVERRIDE.fullmatch(key):
        return None
    name = key.rpartition(".")[2]
    name = CUSTOMARY_NAMES.get(name, name)
    near = [other for other in known if other.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {' or '.join(near)}? All keys" if near else "all keys"
    return f"unknown config key {key}: {hint} are listed by otter-jax train --help"


def differences(
    saved: ConfigDict, asked: ConfigDict, ignore: Iterable[str] = BOOKKEEPING_KEYS
) -> list[str]:
    """Return lines `key: saved -> asked` of all keys that differ, but for prefixes in `ignore`."""
    old, new = flatten(as_dict(saved)), flatten(as_dict(asked))
    keys = [key for key in sorted(old | new) if not key.startswith(tuple(ignore))]
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _check_finite(config: ConfigDict) -> None:
    """Refuse infinities and what is no number, wherever they stand."""
    problems = Problems()
    for key, value in flatten(config.to_dict()).items():
        for each in value if isinstance(value, list) else [value]:
            with problems.noting():
                if isinstance(each, float) and not math.isfinite(each):
                    raise ValueError(f"config.{key}={each}: it must be finite")
    problems.refuse()


def _check_seed(config: ConfigDict) -> None:
    """Refuse what not both JAX and the order of the data can tell apart."""
    if not 0 <= config.seed < 2**32:
        raise ValueError(f"config.seed={config.seed}: it must be 0 to {2**32 - 1}")


def _check_choices(config: ConfigDict) -> None:
    problems = Problems()
    for key, choices in (
        ("on_nan", ("stop", "skip", "rollback")),
        ("data.order", ORDERS),
        ("data.decoding", partial_decoding.DECODINGS),
        ("data.fit", ("crop", "pad")),
        ("data.augmentation", AUGMENTATIONS),
        ("data.view_augmentation", AUGMENTATIONS),
        ("optimizer.name", ("sgd", "adamw")),
        ("mesh.dtype", ("float32", "bfloat16")),
        ("model.dtype", ("float32", "bfloat16")),
        ("evaluate.names", ("joined", "averaged")),
        ("teacher.kind", ("average", "pretrained")),
    ):
        with problems.noting():
            _choice(config, key, choices)
    problems.refuse()


def _check_profile(config: ConfigDict) -> None:
    """Refuse what is not a first and a last step."""
    steps = config.profile
    whole = all(isinstance(step, int) for step in steps)
    if steps and not (whole and len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        raise ValueError(
            f"config.profile={steps}: it must be a first and a last step, counted from 1, or ()"
        )


def _check_wandb(config: ConfigDict) -> None:
    if config.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError(
            f"config.wandb_project={config.wandb_project!r} needs: pip install 'otter_jax[wandb]'"
        )


def _check_batch(config: ConfigDict) -> None:
    """Refuse a batch that is none, or that its parts do not fill."""
    if config.batch_size == 1:
        raise ValueError("config.batch_size=1: a contrastive loss needs at least 2 pairs a batch")
    if config.micro_batch and config.batch_size % config.micro_batch:
        raise ValueError(
            f"config.micro_batch={config.micro_batch} does not divide "
            f"config.batch_size={config.batch_size}"
        )


def _check_loss_ratio(config: ConfigDict) -> None:
    if config.max_loss_ratio != 0 and not config.max_loss_ratio > 1:
        raise ValueError(
            f"config.max_loss_ratio={config.max_loss_ratio}: it must be above 1, or 0 for never"
        )


def _check_interpolate(config: ConfigDict) -> None:
    shares = config.evaluate.interpolate
    if shares and not config.evaluate.sets and not config.data.held_out:
        raise ValueError("config.evaluate.interpolate: nothing is measured, set evaluate.sets")
    if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares):
        raise ValueError(
            f"config.evaluate.interpolate={shares}: it must be shares in [0, 1], (0, 0.5, 1)"
        )


def _check_best(config: ConfigDict) -> None:
    """Refuse a search for the best step that never looks, or looks for nothing."""
    best, stop_after = config.checkpoint.best, config.checkpoint.stop_after
    if stop_after is not None and best is None:
        raise ValueError(
            f"config.checkpoint.stop_after={stop_after}: set config.checkpoint.best to a metric too"
        )
    if best is not None and not config.evaluate.every_steps:
        raise ValueError(
            f"config.checkpoint.best={best!r}: set config.evaluate.every_steps, or it is measured "
            "at the end alone"
        )


def _check_mesh(config: ConfigDict) -> None:
    if config.mesh.fsdp is not None and not config.fsdp:
        raise ValueError(f"config.mesh.fsdp={config.mesh.fsdp}: set config.fsdp=True too")
    if config.mesh.dtype == "bfloat16" and config.model.dtype != "bfloat16":
        raise ValueError(
            "config.mesh.dtype=bfloat16 would round the weights of towers that compute in "
            f"{config.model.dtype}: set config.model.dtype=bfloat16 too"
        )


def _check_trust(config: ConfigDict) -> None:
    """Refuse neighbours and folds that cannot be, and captions that could not be repaired."""
    if config.trust.reference <= config.trust.neighbors:
        raise ValueError(
            f"config.trust.reference={config.trust.reference}: it must be more than "
            f"config.trust.neighbors={config.trust.neighbors}"
        )
    if config.trust.folds < 2:
        raise ValueError(f"config.trust.folds={config.trust.folds}: there must be at least 2")
    if config.trust.captions:
        _check_repair(config)


def _check_repair(config: ConfigDict) -> None:
    """Refuse to repair captions whose features are not computed once, or without trust."""
    method, captions = make_method(**config.objective), config.trust.captions
    if not method.uses_trust:
        raise ValueError(
            f"config.trust.captions={captions}: set config.objective.pair_weight={ESTIMATED!r} too"
        )
    unvaried = config.data.augmentation == "none" and not config.data.flip and not method.uses_views
    frozen = config.model.image.frozen and config.model.text.frozen
    if not (unvaried and frozen and config.data.cache_features):
        raise ValueError(
            f"config.trust.captions={captions} mixes the features of captions, and so needs those "
            "that are computed once: set model.image.frozen, model.text.frozen, "
            "data.cache_features, data.augmentation='none' and data.flip=False"
        )


def _check_template(config: ConfigDict) -> None:
    try:
        read_templates(config.evaluate.template)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"config.evaluate.template: {error}") from None


def groups_of(config: ConfigDict) -> tuple[ParameterGroup, ...]:
    """Return `optimizer.groups`.

    Raises:
        ValueError: one is no group, or there is something wrong with it.
    """
    groups = []
    for number, fields in enumerate(config.optimizer.groups):
        try:
            groups.append(ParameterGroup(**fields))
        except (TypeError, ValueError) as error:
            known = ", ".join(field.name for field in dataclasses.fields(ParameterGroup))
            raise ValueError(
                f"config.optimizer.groups[{number}]={fields!r}: {_plain(error)}; a group has a "
                f"pattern, and may have others of: {known}"
            ) from None
    return tuple(groups)


def _plain(error: Exception) -> str:
    return str(error).replace("ParameterGroup.__init__() ", "")


def _check_sources(config: ConfigDict) -> None:
    """Refuse what cannot be a list of SPECs or of weights, and a share that is none."""
    train = config.data.train
    specs = (train,) if isinstance(train, str) else train
    if not isinstance(specs, tuple | list) or not all(isinstance(s, str) for s in specs):
        raise ValueError(f"config.data.train={train!r}: it must be a SPEC, or several as a tuple")
    weights = config.data.weights
    if not all(isinstance(weight, int | float) for weight in weights):
        raise ValueError(f"config.data.weights={weights}: it must be numbers, one for each source")
    if not all(isinstance(text, str) for text in config.evaluate.sets):
        raise ValueError(f"config.evaluate.sets={config.evaluate.sets}: it must be SPECs")
    if not 0 <= config.data.max_bad_share <= 1:
        raise ValueError(
            f"config.data.max_bad_share={config.data.max_bad_share}: it must lie in [0, 1]"
        )
    if not 0 <= config.data.held_out < 1:
        raise ValueError(f"config.data.held_out={config.data.held_out}: it must lie in [0, 1)")


def _check_token_buckets(config: ConfigDict) -> None:
    """Refuse lengths that are none, or not ascending."""
    lengths = config.data.token_buckets
    whole = all(isinstance(each, int) and 0 < each <= LARGEST for each in lengths)
    if not whole or any(second <= first for first, second in itertools.pairwise(lengths)):
        raise ValueError(
            f"config.data.token_buckets={lengths}: it must be ascending numbers of tokens, as "
            "(16, 24, 32, 48), or ()"
        )


def _check_decoding(config: ConfigDict) -> None:
    """Refuse a decoding whose package is missing (ModuleNotFoundError), before data are indexed."""
    if config.data.decoding == 2:
        partial_decoding.decoder()


def _check_captions(config: ConfigDict) -> None:
    """Refuse what is no choice of captions, and trust where captions of one image would vote."""
    _choice(config, "data.captions", ("one", "all"))
    objective = config.objective
    if config.data.captions == "all" and make_method(**objective).uses_trust:
        raise ValueError(
            "config.data.captions='all': the captions of an image would vouch for each other where "
            "trust is estimated; take 'one', or set neither objective.alpha nor "
            "objective.pair_weight to 'estimated'"
        )


def _refuse_unknown_keys(config: ConfigDict) -> None:
    """Refuse a config that is not complete, or has what config.json cannot give back."""
    known, found = flatten(default_config().to_dict()), flatten(config.to_dict())
    added = [key for key in found if key not in known and not OVERRIDE.fullmatch(key)]
    missing = [key for key in known if key not in found]
    if added or missing:
        raise ValueError(f"the config has unknown keys {added} and lacks {missing}")


def _refuse_contradictions(config: ConfigDict, tower: str) -> None:
    """Refuse what no tower can be."""
    key, settings = f"model.{tower}", config.model[tower]
    kinds = ("linear", "linear_no_bias", "mlp", "none", "auto", "pretrained")
    _choice(config, f"{key}.projection", kinds)
    start = settings.pretrained or config.model.pretrained
    if settings.projection == "pretrained" and start is None:
        raise ValueError(f"config.{key}.projection='pretrained': set config.{key}.pretrained too")
    if settings.frozen and settings.trainable is not None:
        raise ValueError(
            f"config.{key}.frozen=True with trainable={settings.trainable!r}: choose one of them"
        )
    if settings.frozen and settings.lora.rank:
        raise ValueError(
            f"config.{key}.frozen=True with lora.rank={settings.lora.rank}: choose one of them; "
            "what has low-rank updates is frozen but for these"
        )
    idle = [name for name, value in vars(LoraSection()).items() if settings.lora[name] != value]
    if idle and not settings.lora.rank:
        raise ValueError(
            f"config.{key}.lora.{idle[0]}={settings.lora[idle[0]]!r} has no effect without "
            f"config.{key}.lora.rank, which is unset; 16 is common"
        )
    for name, pattern in (("trainable", settings.trainable), ("lora.layers", settings.lora.layers)):
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(
                f"config.{key}.{name}={pattern!r}: it must be a regular expression ({error})"
            ) from None


def _choice(config: ConfigDict, key: str, choices: Iterable[str | int]) -> None:
    if _get(config, key) not in choices:
        listed = ", ".join(map(str, choices))
        raise ValueError(f"config.{key}={_get(config, key)!r}: choose from {listed}")


def _get(config: ConfigDict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """Return nested values on one level: {"a.b": 1} for {"a": {"b": 1}}."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
