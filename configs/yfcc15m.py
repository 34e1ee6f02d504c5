"""What the presets on YFCC15M share: the recipe of DeCLIP's released configs and its benchmark.

From scratch: CLIP's causal text transformer with one more token for the mask, and CLIP's ResNet50
or its ViT-B/32. Batches of 4,096, AdamW with betas 0.9 and 0.98, learning rate 1e-3 after 2,500
steps of warm-up (from 0 here, from 1e-4 in the released code), cosine decay to 0 over 128,000
steps, weight decay 0.1 on matrices alone; scales within [20.1, 100]; images normalised like
ImageNet's, texts of 77 tokens (Li et al., ICLR 2022, appendix C; Cui et al., "Democratizing
Contrastive Language-Image Pre-training", 2022, https://arxiv.org/abs/2203.05796).
"""

import math

from ml_collections import ConfigDict

from otter_jax.config import default_config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# CLIP's vocabulary, whose last token ends a text, and behind it the mask.
END_OF_TEXT, VOCABULARY_WITH_MASK = 49_407, 49_409


# By image tower: the width of the embedding, and what leads to it.
TOWERS = {
    "clip_resnet50": (1024, "none"),  # Its attention pool leads to the embedding.
    "clip_vit_b32": (512, "linear_no_bias"),
}


def get_config(image_tower: str) -> ConfigDict:
    """Return a config with everything but the method; the tower is a key of `TOWERS`."""
    embed_dim, image_projection = TOWERS[image_tower]
    config = default_config()
    config.batch_size = 4096
    config.total_steps = 128_000

    config.data.train = "webdataset:data/yfcc15m"
    config.data.image_size = 224
    config.data.augmentation = "moco"
    config.data.view_augmentation = "moco"
    config.data.max_tokens = 77

    config.model.embed_dim = embed_dim
    config.model.image.name = image_tower
    config.model.image.projection = image_projection
    config.model.text.name = "clip_text"
    config.model.text.tokenizer = "openai/clip-vit-base-patch32"
    config.model.text.projection = "linear"
    with config.unlocked():
        config.model.image.overrides.update(mean=IMAGENET_MEAN, std=IMAGENET_STD)
        config.model.text.overrides.update(
            vocab_size=VOCABULARY_WITH_MASK, eos_token_id=END_OF_TEXT
        )

    config.objective.min_scale = math.exp(3)  # As released: the logarithm stays in [3, 6].
    config.objective.max_scale = 100.0
    config.objective.initial_scale = math.exp(3)

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.momentum = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_steps = 2500

    config.checkpoint.every_steps = 2000
    config.evaluate.template = "clip80"
    config.evaluate.sets = ()  # See the configs' docstrings.
    return config
