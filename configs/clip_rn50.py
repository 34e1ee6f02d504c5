"""CLIP with ResNet50, the baseline beside DeCLIP: the same data, towers and schedule.

Paper:    Radford et al., Learning Transferable Visual Models From Natural Language Supervision
          (2021), https://arxiv.org/abs/2103.00020, as trained by Cui et al., Democratizing
          Contrastive Language-Image Pre-training (2022), https://arxiv.org/abs/2203.05796
Command:  python main.py --config=configs/clip_rn50.py --workdir=runs/clip_rn50
          --config.data.train=webdataset:/data/yfcc15m says where the pairs lie;
          --config.data.augmentation=moco gives it DeCLIP's augmentation, without which the
          comparison of the two also compares augmentations
Hardware: the released configs are made for 32 GPUs of 128 pairs each.
Time:     not published.
Expected: the benchmark's ImageNet zero-shot top-1 37.2, the DeCLIP paper's 35.9, on 15,388,848
          pairs of YFCC (not yet repeated here).
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the preset."""
    config = read_preset("yfcc15m:clip_resnet50")
    config.data.augmentation = "light"
    config.objective.name = "declip"  # With its three supervisions off, it is CLIP.
    config.objective.ss = config.objective.mvs = config.objective.nns = False
    config.objective.clip_weight = 1.0
    return config
