"""Locked-image tuning on the embedded clip art: the text tower learns to meet a locked image tower.

Paper:    Zhai et al., LiT: Zero-Shot Transfer with Locked-image text Tuning (CVPR 2022),
          https://arxiv.org/abs/2111.07991
Command:  python main.py --config=configs/lit.py --workdir=runs/lit
          towers of your own: --config.model.image.name=... --config.model.image.pretrained=...
          --config.model.text.name=... --config.model.text.pretrained=...
Hardware: two CPU cores, no accelerator.
Time:     about nine minutes on a busy machine, of which 100 steps take five.
Expected: held-out recall@10 of images to texts 42 % (chance 1.9 %), OpenMoji hit@10 5.8 % (chance
          0.6 %); one run, seed 0.

For two towers that have never met. The image tower and its features stay as they are, so these are
computed once; the text tower and the linear layer behind it learn what they mean.
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the preset."""
    config = read_preset("quickstart")
    config.batch_size = 128
    config.total_steps = 100
    config.log_every_steps = 10
    config.data.max_tokens = 16

    config.model.embed_dim = 1280
    config.model.image.projection = "none"  # The locked tower's own features.
    config.model.text.frozen = False
    config.model.text.projection = "linear"

    config.objective.name = "infonce"
    config.objective.known_positives = "ignore"

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 10
    # The pretrained tower learns more slowly than the layer that is new.
    config.optimizer.groups = (
        {"pattern": r"^text\.", "learning_rate": 1e-4, "weight_decay": 0.01},
    )
    return config
