"""Contrastive self-distillation: the EMA teacher's image-text softmax as soft targets.

Paper:    Cheng et al., Data-Efficient Language-Supervised Zero-Shot Learning with
          Self-Distillation (CVPR Workshops 2021), https://arxiv.org/abs/2104.08945
Command:  python main.py --config=configs/self_distillation_rn50.py --workdir=runs/self_distillation
          --config.data.train=webdataset:/data/cc3m says where the pairs lie,
          --config.evaluate.sets='("open_images:/data/oi","imagenet10k:/data/in10k")' what to rank.
Hardware: the authors' 8 V100 GPUs, 64 pairs each. Any number of GPUs or TPU cores that divides 512
          will do: batch norm and the loss are over the whole batch.
Time:     not in the paper. 56,870 steps for 2.9 million pairs; rate and time left are printed.
Expected: the paper reports relative gains only: 10.5 % over CLIP on Open Images, 73 % over the
          best general zero-shot method before it on ImageNet 21k+1k; not yet repeated here.

As in the authors' first public code, from which OTTER's repository grew.
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the preset."""
    config = read_preset("common")
    config.objective.name = "kd"
    return config
