"""The configuration of a run: every key with its default, checks, and what a workdir remembers.

A config file in configs/ starts from `default_config()` and changes what its experiment changes, so
that the difference of two files is the difference of two experiments. The config is locked: a
misspelt key is an error, never a silent no-op.
"""

import difflib
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from otter_jax.data.augmentations import AUGMENTATIONS
from otter_jax.data.templates import read_templates

# Keys that say how a run is kept, not what it computes; they may change between two starts.
BOOKKEEPING_KEYS = (
    "checkpoint.",
    "data.max_bad_share",
    "data.threads",
    "fsdp",
    "on_nan",
    "max_loss_ratio",
    "max_nan_steps",
    "profile",
    "wandb_project",
)
OVERRIDE = re.compile(r"model\.(image|text)\.overrides\.[^.]+")  # Any plain value.


def default_config() -> ConfigDict:
    """Return every key that exists, with the papers' value where they name one (OTTER, released code)."""
    config = ConfigDict()
    config.seed = 0
    config.batch_size = 512
    config.total_epochs = 10.0
    config.total_steps = placeholder(int)  # Where set, it wins over total_epochs.
    config.log_every_steps = 50
    # Rows that go through the towers at a time; the loss is still that of the whole batch. Unset:
    # all. Batch norm then has the statistics of these rows, or none with keep_batch_stats.
    config.micro_batch = placeholder(int)
    # Split parameters, moments and teacher over the devices instead of keeping them on each.
    config.fsdp = False
    # On GPUs, only kernels that give the same bits every time; slower, and without need elsewhere.
    config.deterministic = False
    config.profile = ()  # (first, last): keeps a trace of these steps in WORKDIR/profile.
    config.wandb_project = placeholder(str)  # Where set, metrics go to Weights & Biases as well.
    # What follows a loss or update that is not finite, or a loss that has exploded, none of which
    # enters the parameters: stop | skip (go on with the next batch) | rollback (to the last
    # checkpoint, whose parameters go on behind all the batches that came after it). Above the
    # maximum, skip and rollback stop.
    config.on_nan = "stop"
    config.max_nan_steps = 10
    # A loss has exploded above this many times its running mean, or times 1 if that is more.
    # 0: never.
    config.max_loss_ratio = 10.0

    config.data = ConfigDict()
    # A SPEC: open_clipart | webdataset:PATH | csv:FILE | folder:PATH | tfds:NAME[:SPLIT], see
    # data/sources.py. Or several, ("webdataset:a.tar", "csv:b.csv"): together one set of pairs or,
    # with weights such as (1.0, 3.0), mixed in these shares, each source in epochs of its own. An
    # epoch of the run is always as many pairs as there are in all sources together.
    config.data.train = FieldReference("open_clipart", field_type=object)
    config.data.weights = ()
    # one | all: of several captions of an image one is drawn at every step, or each is a pair of
    # its own, so that an epoch has all of them.
    config.data.captions = "one"
    config.data.max_bad_share = 0.05  # Where more of the records cannot be used, the run stops.
    config.data.image_size = 224
    config.data.fit = "crop"  # crop | pad (pads to a square on white; suits drawings).
    # none | resize_random_crop | random_resized_crop | light | moco, see data/augmentations.py.
    config.data.augmentation = "resize_random_crop"
    config.data.view_augmentation = "moco"  # Of further views, where the objective asks for them.
    config.data.flip = False
    config.data.max_tokens = 60
    config.data.threads = 2
    config.data.cache_features = True  # Frozen tower, no augmentation: compute its features once.

    config.model = ConfigDict()
    config.model.embed_dim = 768
    config.model.dtype = "float32"  # Compute type of the towers; losses stay in float32.
    for tower, name in (("image", "efficientnet_lite0"), ("text", "bert")):
        config.model[tower] = ConfigDict()
        config.model[tower].name = name
        config.model[tower].pretrained = placeholder(str)
        # A file may hold two towers; what of this tower's names it may lack, with * and ?.
        config.model[tower].allow_missing = ()
        # Frozen: all of the tower stays as it is, and its features can be computed once. Else a
        # regular expression, searched in the parameters' paths ("layer4|projection"), says which
        # are trained; "projection" stands for the layer after the tower. Unset: all of them.
        config.model[tower].frozen = False
        config.model[tower].trainable = placeholder(str)
        # Otherwise batch statistics move, also in a tower whose parameters do not (as released).
        config.model[tower].keep_batch_stats = False
        config.model[tower].remat = False  # Less memory, more time: see the tower's own `remat`.
        # linear | linear_no_bias | mlp | none | auto (none if widths agree, else linear) |
        # pretrained (what the file of `pretrained` has after this tower).
        config.model[tower].projection = "linear"
        config.model[tower].overrides = ConfigDict()  # Fields of the tower's own configuration.
    config.model.text.tokenizer = placeholder(str)  # Default: the folder of model.text.pretrained.
    # What stands for a masked token, for tokenizers that have none. Unset: an id behind the last
    # one, for which the text tower needs a row (model.text.overrides.vocab_size).
    config.model.text.mask_token = placeholder(str)

    config.objective = ConfigDict()
    config.objective.name = (
        "otter"  # infonce | label_smoothing | kd | otter | sigmoid | declip | slip
    )
    # Weight of the given pairs against the soft targets; "estimated": each pair's own, the
    # probability that its caption is right (see config.trust).
    config.objective.alpha = FieldReference(0.5, field_type=object)
    # "estimated": each pair weighs in proportion to that probability. Unset: all the same.
    config.objective.pair_weight = placeholder(str)
    config.objective.epsilon = 0.15  # Entropic regulariser of the transport, in cosine units.
    config.objective.iterations = 5  # Sinkhorn iterations, rows first.
    # Image-image and text-text similarity in the teacher's matrix, and whether the given pairs are
    # taken out of it. Unset: 1, 1, True for otter; 0, 0, False for kd.
    config.objective.image_weight = placeholder(float)
    config.objective.text_weight = placeholder(float)
    config.objective.remove_diagonal = placeholder(bool)
    config.objective.smoothing = 0.1  # Label smoothing's e; the paper does not give its value.
    config.objective.teacher_scale = 100.0  # KD: softmax(teacher_scale * similarity).
    config.objective.mixed_target = False  # One target alpha I + (1 - alpha) P, as in the paper.
    config.objective.stop_gradient_keys = False  # As multi-process runs of the released code.
    # Most rows of the similarity matrices held at a time (fewer where that would exceed 16 MiB);
    # batch_size and more: all of them. Unset: 1024 where a device's part of a matrix would exceed
    # 1024 x 1024, else all.
    config.objective.tile = placeholder(int)
    # Where the learnable scales (1 / temperature) start, and what the sigmoid loss adds to logits.
    # Unset: exp(3.9) = 49.4; for sigmoid 10 and -10.
    config.objective.initial_scale = placeholder(float)
    config.objective.initial_bias = placeholder(float)

    # declip and slip: the target of each pair of views, identity | otter.
    config.objective.targets = "identity"
    # declip: self-supervision, multi-view and nearest-neighbour supervision; unset: all on.
    config.objective.ss = placeholder(bool)
    config.objective.mvs = placeholder(bool)
    config.objective.nns = placeholder(bool)
    config.objective.clip_weight = placeholder(float)  # Unset: 0.4; 1 for slip.
    config.objective.multi_view_weight = placeholder(
        float
    )  # Unset: the mean of all pairs of views.
    config.objective.neighbor_weight = 0.2
    config.objective.symmetric_neighbors = False  # From the neighbours to the images too.
    config.objective.queue_size = 65_536  # Texts that neighbours are looked for among.
    config.objective.simsiam_weight = 0.2
    config.objective.mlm_weight = 0.2
    config.objective.simclr_weight = 1.0
    # Bounds of the learnable scales. Unset: 1 and 100; none for slip and sigmoid.
    config.objective.min_scale = placeholder(float)
    config.objective.max_scale = placeholder(float)

    config.teacher = ConfigDict()
    config.teacher.decay = 0.999
    config.teacher.warmup = True  # decay_t = min(decay, (1 + t) / (10 + t))
    config.teacher.train_mode = False  # Dropout and batch statistics in the teacher, as released.

    # Where the objective asks for each pair's trust, see trust.py: how many of the most similar
    # images vote on a caption, and among how many pairs at most they are looked for.
    config.trust = ConfigDict()
    config.trust.neighbors = 30
    config.trust.reference = 100_000

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd | adamw
    config.optimizer.learning_rate = 3e-3
    config.optimizer.momentum = 0.9  # b1 of AdamW.
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 0
    config.optimizer.gradient_clip = placeholder(float)  # Global norm.

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.every_minutes = 30.0  # And when the last save is that long ago; 0: never.
    config.checkpoint.keep = 2

    config.evaluate = ConfigDict()
    config.evaluate.sets = ("open_clipart",)  # See evaluation/sets.py.
    config.evaluate.every_steps = 0  # 0: only before and after training.
    config.evaluate.batch_size = 64
    config.evaluate.template = "a photo of {}."  # | clip80 | a text file of one template a line
    config.evaluate.names = "joined"  # A class's names in one prompt (as released) | averaged
    return config.lock()


def check(config: ConfigDict) -> None:
    """Refuse values that could only fail later.

    Raises:
        ValueError: naming the key, what was found and what would be right.
    """
    _refuse_unknown_keys(config)
    if not 0 <= config.seed < 2**32:  # What both JAX and the order of the data can tell apart.
        raise ValueError(f"config.seed={config.seed}: it must be 0 to {2**32 - 1}")
    _choice(config, "on_nan", ("stop", "skip", "rollback"))
    _check_profile(config.profile)
    if config.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        raise ModuleNotFoundError(
            f"config.wandb_project={config.wandb_project!r} needs: pip install 'otter_jax[wandb]'"
        )
    _check_sources(config)
    _check_captions(config)
    _choice(config, "data.fit", ("crop", "pad"))
    _choice(config, "data.augmentation", AUGMENTATIONS)
    _choice(config, "data.view_augmentation", AUGMENTATIONS)
    _choice(config, "optimizer.name", ("sgd", "adamw"))
    _choice(config, "model.dtype", ("float32", "bfloat16"))
    for tower in ("image", "text"):
        _refuse_contradictions(config, tower)
    for key in ("batch_size", "micro_batch", "log_every_steps", "checkpoint.every_steps",
                "checkpoint.keep",
                "data.image_size", "data.max_tokens", "data.threads", "model.embed_dim",
                "trust.neighbors",
                "evaluate.batch_size", "total_steps", "total_epochs"):  # fmt: skip
        value = _get(config, key)
        if value is not None and value <= 0:
            raise ValueError(f"config.{key}={value}: it must be positive")
    for key in ("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.warmup_steps",
                "evaluate.every_steps", "checkpoint.every_minutes", "max_nan_steps"):  # fmt: skip
        if not _get(config, key) >= 0:
            raise ValueError(f"config.{key}={_get(config, key)}: it must not be negative")
    if config.max_loss_ratio != 0 and not config.max_loss_ratio > 1:
        raise ValueError(
            f"config.max_loss_ratio={config.max_loss_ratio}: it must be above 1, or 0 for never"
        )
    for key in ("teacher.decay", "optimizer.momentum", "optimizer.b2"):
        if not 0 <= _get(config, key) < 1:
            raise ValueError(f"config.{key}={_get(config, key)}: it must lie in [0, 1)")
    if config.micro_batch is not None and config.batch_size % config.micro_batch:
        raise ValueError(
            f"config.micro_batch={config.micro_batch} does not divide "
            f"config.batch_size={config.batch_size}"
        )
    if config.trust.reference <= config.trust.neighbors:
        raise ValueError(
            f"config.trust.reference={config.trust.reference}: it must be more than "
            f"config.trust.neighbors={config.trust.neighbors}"
        )
    if config.batch_size < 2:
        raise ValueError("config.batch_size=1: a contrastive loss needs at least 2 pairs a batch")
    _choice(config, "evaluate.names", ("joined", "averaged"))
    try:
        read_templates(config.evaluate.template)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"config.evaluate.template: {error}") from None


def total_steps(config: ConfigDict, num_pairs: int) -> int:
    """Return length of the run in steps; an epoch is `num_pairs` / `batch_size` steps, not rounded."""
    if config.total_steps is not None:
        return int(config.total_steps)
    return max(1, int(config.total_epochs * num_pairs / config.batch_size))


def without_micro_batches(config: ConfigDict) -> ConfigDict:
    """Return the same config with all rows of a batch going through the towers at once."""
    config = config.copy_and_resolve_references()
    config.micro_batch = None
    return config


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """Return what config.json holds: nested plain values, keys in order."""
    return json.loads(config.to_json(sort_keys=True))


def load(path: Path) -> ConfigDict:
    """Read a saved config; keys that have come since get their defaults.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it has a key that does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not a workdir: it has no {path.name}")
    config = default_config()
    known = _flatten(config.to_dict())
    for key, value in _flatten(json.loads(path.read_text(encoding="utf-8"))).items():
        value = tuple(value) if isinstance(value, list) else value
        if OVERRIDE.fullmatch(key):
            group, _, name = key.rpartition(".")
            with config.unlocked():
                _get(config, group)[name] = value
        elif key in known:
            config.update_from_flattened_dict({key: value})
        else:
            raise ValueError(f"{path}: unknown key {key!r}")
    return config


def describe_unknown_key(key: str) -> str | None:
    """Return what to write instead of a key such as `data.trian`; None if it may exist."""
    known = list(_flatten(default_config().to_dict()))
    if key in known or OVERRIDE.fullmatch(key):
        return None
    name = key.rpartition(".")[2]
    near = [other for other in known if other.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {' or '.join(near)}? All keys" if near else "all keys"
    return f"unknown config key {key}: {hint} are in otter_jax/config.py"


def differences(
    saved: ConfigDict, asked: ConfigDict, ignore: Iterable[str] = BOOKKEEPING_KEYS
) -> list[str]:
    """Return lines `key: saved -> asked` for every key that differs, but for prefixes in `ignore`."""
    old, new = _flatten(saved.to_dict()), _flatten(asked.to_dict())
    keys = [key for key in sorted(old | new) if not key.startswith(tuple(ignore))]
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _check_profile(steps: tuple[int, ...]) -> None:
    """Refuse what is not a first and a last step."""
    whole = all(isinstance(step, int) for step in steps)
    if steps and not (whole and len(steps) == 2 and 1 <= steps[0] <= steps[1]):
        raise ValueError(
            f"config.profile={steps}: it must be a first and a last step, counted from 1, or ()"
        )


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


def _check_captions(config: ConfigDict) -> None:
    """Refuse what is no choice of captions, and trust where captions of one image would vote."""
    _choice(config, "data.captions", ("one", "all"))
    objective = config.objective
    if config.data.captions == "all" and "estimated" in (objective.alpha, objective.pair_weight):
        raise ValueError(
            "config.data.captions='all': the captions of an image would vouch for each other where "
            "trust is estimated; take 'one', or set neither objective.alpha nor "
            "objective.pair_weight to 'estimated'"
        )


def _refuse_unknown_keys(config: ConfigDict) -> None:
    """A config must be complete, and what config.json cannot give back must not be in it."""
    known, found = _flatten(default_config().to_dict()), _flatten(config.to_dict())
    added = [key for key in found if key not in known and not OVERRIDE.fullmatch(key)]
    missing = [key for key in known if key not in found]
    if added or missing:
        raise ValueError(f"the config has unknown keys {added} and lacks {missing}")


def _refuse_contradictions(config: ConfigDict, tower: str) -> None:
    """Refuse what no tower can be."""
    key, settings = f"model.{tower}", config.model[tower]
    kinds = ("linear", "linear_no_bias", "mlp", "none", "auto", "pretrained")
    _choice(config, f"{key}.projection", kinds)
    if settings.projection == "pretrained" and settings.pretrained is None:
        raise ValueError(f"config.{key}.projection='pretrained': set config.{key}.pretrained too")
    if settings.frozen and settings.trainable is not None:
        raise ValueError(
            f"config.{key}.frozen=True with trainable={settings.trainable!r}: choose one of them"
        )
    try:
        re.compile(settings.trainable or "")
    except re.error as error:
        raise ValueError(
            f"config.{key}.trainable={settings.trainable!r}: it must be a regular expression "
            f"({error})"
        ) from None


def _choice(config: ConfigDict, key: str, choices: tuple[str, ...]) -> None:
    if _get(config, key) not in choices:
        raise ValueError(f"config.{key}={_get(config, key)!r}: choose from {', '.join(choices)}")


def _get(config: ConfigDict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def _flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
