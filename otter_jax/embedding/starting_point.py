"""What a config leaves to the checkpoint that it starts from, `model.pretrained`."""

import math

import numpy as np
from ml_collections import ConfigDict

from otter_jax import objectives, sharding
from otter_jax.embedding.encoder import MOST_TOKENS
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.pretrained import from_pretrained
from otter_jax.models.two_towers import KINDS

LEFT_OPEN = ("model.embed_dim", "data.image_size", "data.max_tokens")


def complete(config: ConfigDict) -> ConfigDict:
    """Return a config in which nothing is left to `model.pretrained` any more.

    Where that is unset the config is returned as it is. Else both towers that have no weights of
    their own get its; the size of embeddings and images and the length of captions, where they are
    unset, become the checkpoint's, and so do the scale of the similarities and its bias.

    Raises:
        ValueError: something is unset and there is no checkpoint to ask, or it does not hold two
            towers.
        FileNotFoundError, ModuleNotFoundError: there is nothing at `model.pretrained`.
    """
    start = config.model.pretrained
    unset = [key for key in LEFT_OPEN if _get(config, key) is None]
    if start is None:
        if unset:
            raise ValueError(
                f"config.{unset[0]} is unset: only a checkpoint of two towers says it, set "
                "config.model.pretrained"
            )
        return config
    with sharding.on_host():
        module = _read(start)
    found = dict(zip(LEFT_OPEN, _sizes(module), strict=True))
    if config.model.text.positions is not None:
        found["data.max_tokens"] = config.model.text.positions
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({key: found[key] for key in unset})
    for kind in KINDS:
        if config.model[kind].pretrained is None:
            config.model[kind].pretrained = start
    _take_scalars(config, module)
    return config


def _read(start: str) -> DualEncoder:
    try:
        module = from_pretrained(start)
    except (FileNotFoundError, ModuleNotFoundError) as error:
        raise type(error)(f"config.model.pretrained: {error}") from error
    if not isinstance(module, DualEncoder):
        raise ValueError(
            f"config.model.pretrained: {start} holds one tower ({type(module).__name__}); it must "
            "hold an image and a text tower, as CLIP's and SigLIP's checkpoints do"
        )
    return module


def _sizes(module: DualEncoder) -> tuple[int, int, int]:
    """Return what a checkpoint says of `LEFT_OPEN`."""
    text = module.text.config
    longest = getattr(text, "longest_text", text.max_position_embeddings)
    size = getattr(module.image.config, "image_size", 224)
    return module.embed_dim, size, min(longest, MOST_TOKENS)


def _take_scalars(config: ConfigDict, module: DualEncoder) -> None:
    """Start the method's scale and bias, where they are unset, where the checkpoint has them."""
    method = objectives.make_method(**config.objective)
    lowest, highest = method.scale_bounds
    if config.objective.initial_scale is None:
        scale = math.exp(float(np.asarray(module.log_scale[...])))
        # float32's exp(log 100) is a little more than 100, where CLIP's bound lies.
        config.objective.initial_scale = min(max(scale, lowest or 0.0), highest or math.inf)
    is_open = method.initial_bias is not None and config.objective.initial_bias is None
    if is_open and hasattr(module, "logit_bias"):
        config.objective.initial_bias = float(np.asarray(module.logit_bias[...]))


def _get(config: ConfigDict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config
