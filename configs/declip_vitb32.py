"""DeCLIP with ViT-B/32: self-supervision, multi-view and nearest-neighbour supervision.

Paper:    Li et al., Supervision Exists Everywhere: A Data Efficient Contrastive Language-Image
          Pre-training Paradigm (ICLR 2022), https://arxiv.org/abs/2110.05208
Command:  python main.py --config=configs/declip_vitb32.py --workdir=runs/declip_vitb32
          --config.data.train=webdataset:/data/yfcc15m says where the pairs lie,
          --config.evaluate.sets='("imagenet1k:/data/imagenet",)' what to rank
Hardware: the released configs are made for 32 GPUs of 128 pairs each. With fewer,
          --config.micro_batch=512 keeps the batch of 4,096.
Time:     not in the paper for this data; what a step costs: docs/declip.md.
Expected: the authors' benchmark's ImageNet zero-shot top-1 43.2 on 15,388,848 pairs of YFCC (not
          yet repeated here).

The released network keeps its patch embedding as it was drawn; here it learns.
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the preset."""
    config = read_preset("yfcc15m:clip_vit_b32")
    config.objective.name = "declip"
    return config
