"""DeCLIP with ResNet50: self-supervision, multi-view and nearest-neighbour supervision.

Paper:    Li et al., Supervision Exists Everywhere: A Data Efficient Contrastive Language-Image
          Pre-training Paradigm (ICLR 2022), https://arxiv.org/abs/2110.05208
Command:  python main.py --config=configs/declip_rn50.py --workdir=runs/declip_rn50
          --config.data.train=webdataset:/data/yfcc15m says where the pairs lie,
          --config.evaluate.sets='("imagenet1k:/data/imagenet",)' what to rank;
          ablations: --config.objective.ss=False, mvs=False, nns=False;
          OTTER's targets in place of the given pairs: --config.objective.targets=otter
Hardware: the released configs are made for 32 GPUs of 128 pairs each. With fewer,
          --config.micro_batch=512 keeps the batch of 4,096 (batch norm then sees 512 images).
Time:     not in the paper for this data; what a step costs: docs/declip.md.
Expected: the authors' ImageNet zero-shot top-1 41.9 in the paper, 44.4 in their benchmark, on
          15,388,848 pairs of YFCC (not yet repeated here).

The released weights of the four parts: 0.4 for the mean over the four pairs of views, 0.2 for the
neighbours (from images to texts only), SimSiam and masked language modelling. The paper's sum over
the pairs is --config.objective.multi_view_weight=0.2, its symmetric neighbours
--config.objective.symmetric_neighbors=True.
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the preset."""
    config = read_preset("yfcc15m:clip_resnet50")
    config.objective.name = "declip"
    return config
