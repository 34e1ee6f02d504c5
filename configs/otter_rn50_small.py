"""otter_rn50 in small: both towers trained, on the embedded clip-art pairs, on a laptop's CPU."""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return otter_rn50 with the quickstart's pairs and pretrained towers."""
    config, small = read_preset("otter_rn50"), read_preset("quickstart")
    config.batch_size = 128
    config.total_epochs = 4.0
    config.log_every_steps = 10

    config.data.train = small.data.train
    config.data.fit = small.data.fit
    config.data.image_size = 96
    config.data.max_tokens = 16

    config.model.embed_dim = small.model.embed_dim
    config.model.image, config.model.text = small.model.image, small.model.text
    config.model.image.frozen = False
    config.model.text.frozen = False
    config.model.text.trainable = r"layers\.5\."

    config.optimizer.learning_rate = 0.01
    config.optimizer.warmup_steps = 10

    config.checkpoint.every_steps = 50
    config.evaluate.sets = small.evaluate.sets
    return config
