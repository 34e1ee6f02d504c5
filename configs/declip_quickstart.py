"""DeCLIP on the embedded clip-art pairs: minutes on a laptop's CPU, nothing to download.

Paper:    Li et al., Supervision Exists Everywhere: A Data Efficient Contrastive Language-Image
          Pre-training Paradigm (ICLR 2022), https://arxiv.org/abs/2110.05208
Command:  python main.py --config=configs/declip_quickstart.py --workdir=runs/declip
          parts of it: --config.objective.ss=False (self-supervision), mvs (several views),
          nns (nearest neighbours); with all three off it is CLIP on the same augmentation
Hardware: two CPU cores, no accelerator.
Time:     4 to 5 minutes on two free cores (111 steps of 2 s), 10 on one.
Expected: recall@1 / 5 / 10 (mean of both directions) 5.5 / 18.6 / 30.4 %, OpenMoji hit@1 / 5 / 10
          0.7 / 2.9 / 5.0 % (means of seeds 0 to 2). CLIP with a light augmentation is better here;
          docs/declip.md has the parts one by one.
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the quickstart's pairs and pretrained towers, whose last blocks are trained too."""
    config = read_preset("quickstart")
    config.batch_size = 128
    config.total_epochs = 3.0

    config.data.image_size = 64
    config.data.max_tokens = 20
    config.data.augmentation = "moco"
    config.data.view_augmentation = "moco"

    config.model.image.frozen = False
    config.model.image.trainable = r"blocks\.1[45]\.|head|projection"
    config.model.image.keep_batch_stats = True
    config.model.text.frozen = False
    config.model.text.trainable = r"layers\.5\."

    config.objective.name = "declip"
    config.objective.queue_size = 4096
    config.optimizer.learning_rate = 1e-3
    return config
