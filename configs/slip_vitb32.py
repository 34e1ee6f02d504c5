"""SLIP with ViT-B/32: CLIP, and SimCLR on two further views of each image.

Paper:    Mu et al., SLIP: Self-supervision meets Language-Image Pre-training (2021),
          https://arxiv.org/abs/2112.12750, as trained by Cui et al., Democratizing Contrastive
          Language-Image Pre-training (2022), https://arxiv.org/abs/2203.05796
Command:  python main.py --config=configs/slip_vitb32.py --workdir=runs/slip_vitb32
          --config.data.train=webdataset:/data/yfcc15m says where the pairs lie
Hardware: the released configs are made for 32 GPUs of 128 pairs each.
Time:     not published.
Expected: the benchmark's ImageNet zero-shot top-1 34.3 on 15,388,848 pairs of YFCC (not yet
          repeated here).
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the preset."""
    config = read_preset("yfcc15m:clip_vit_b32")
    config.data.augmentation = "light"
    config.objective.name = "slip"
    config.objective.initial_scale = 1 / 0.07
    config.objective.min_scale = config.objective.max_scale = None  # Its scale has no bounds.
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 0.5
    return config
