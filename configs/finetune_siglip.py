"""Fine-tuning a pretrained SigLIP on pairs of one's own: finetune_clip with the sigmoid loss.

Paper:    Zhai et al., Sigmoid Loss for Language Image Pre-Training (2023),
          https://arxiv.org/abs/2303.15343
Command:  python main.py --config=configs/finetune_siglip.py --workdir=runs/mine
          --config.data.train=folder:/data/mine
          --config.model.pretrained=google/siglip-base-patch16-224
Hardware: as of finetune_clip.
Time:     as of finetune_clip.
Expected: as of finetune_clip.

The scale of the similarities and its bias start at the checkpoint's.
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the preset."""
    config = read_preset("finetune_clip")
    config.model.pretrained = "google/siglip-base-patch16-224"
    config.objective.name = "sigmoid"
    return config
