"""Every preset's step, shrunk, lowered for accelerators that are not there, without a plugin."""

import re

import pytest
from ml_collections import ConfigDict

from otter_jax import sharding
from otter_jax.preset_files import preset_names, read_preset
from otter_jax.training.shapes import describe_step

PAIRS = 8192  # So many that a device's share of a matrix is worth tiling; nothing is computed.
SMALL_TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "intermediate_size": 32}  # fmt: skip
SMALL = {
    "bert": SMALL_TRANSFORMER | {"vocab_size": 64, "max_position_embeddings": 128},
    "clip_text": SMALL_TRANSFORMER,
    "clip_vit_b32": SMALL_TRANSFORMER | {"image_size": 64},
    "clip_resnet50": {"base_width": 4, "depths": (1, 1, 1, 1), "width": 16, "num_heads": 2,
                      "image_size": 64},
    "resnet18": {"stem_width": 4, "stage_widths": (8, 8, 16, 16)},
    "resnet50": {"depths": (1, 1, 1, 1), "stem_width": 4, "stage_widths": (8, 8, 16, 16)},
    "efficientnet_lite0": {"num_stages": 2, "stem_width": 8, "width": 16},
}  # fmt: skip
FOREIGN = ("f64", "callback", "infeed", "outfeed", "send", "recv")


def shrunk(name: str) -> ConfigDict:
    """A preset with towers of a layer or two; everything that the method does stays."""
    config = read_preset(name)
    config.batch_size, config.data.image_size = PAIRS, 64
    if config.objective.queue_size is not None:
        config.objective.queue_size = 2 * PAIRS
    for tower, default in ((config.model.image, "clip_vit_b32"), (config.model.text, "clip_text")):
        if tower.name == "auto":  # What the checkpoint has.
            tower.name = default
    with config.unlocked():
        for tower in (config.model.image, config.model.text):
            tower.overrides.update(SMALL[tower.name])
            tower.trainable = None  # It names layers that are not there any more.
    of_tower = config.model.image.name == "clip_resnet50"  # Its pool leads to the embedding.
    if of_tower or config.model.image.projection == "none" or not config.model.embed_dim:
        config.model.embed_dim = 16
    config.data.max_tokens = config.data.max_tokens or 77
    return config


@pytest.mark.parametrize("name", preset_names())
def test_presets_lower_for_accelerators(name: str) -> None:
    config = shrunk(name)
    step, state, batch = describe_step(config, sharding.make_mesh())
    traced = step.trace(state, batch)
    for platform in ("tpu", "cuda"):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert not re.findall(r"custom_call @(\w+)", program), platform
        for word in FOREIGN:
            assert not re.search(rf"\b{word}\b", program), (platform, word)
        # In tiles: no matrix of all pairs. NT-Xent has none; there the compiler splits the rows.
        assert (f"tensor<{PAIRS}x{PAIRS}x" in program) == (config.objective.name == "slip")
        # Forms for CPUs pool by comparing windows.
        assert "reduce_window" in program or config.model.image.name != "resnet50"


def test_a_tower_that_only_its_checkpoint_names_is_refused() -> None:
    with pytest.raises(ValueError, match=r"config\.model\.image\.name=auto .* name the tower"):
        describe_step(read_preset("finetune_clip"), sharding.make_mesh())
