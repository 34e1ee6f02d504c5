"""Label smoothing: a tenth of the mass is spread over the other captions of the batch.

Paper:    Wu et al., Data Efficient Language-supervised Zero-shot Recognition with Optimal
          Transport Distillation (ICLR 2022), https://arxiv.org/abs/2112.09445
Command:  python main.py --config=configs/label_smoothing_rn50.py --workdir=runs/label_smoothing
          --config.data.train=webdataset:/data/cc3m says where the pairs lie,
          --config.evaluate.sets='("open_images:/data/oi","imagenet10k:/data/in10k")' what to rank.
Hardware: the authors' 8 V100 GPUs, 64 pairs each. Any number of GPUs or TPU cores that divides 512
          will do: batch norm and the loss are over the whole batch.
Time:     not in the paper. 56,870 steps for 2.9 million pairs; rate and time left are printed.
Expected: the authors' Open Images flat hit@1/5/10 26.3 / 55.9 / 67.5,
          ImageNet-10K 10.1 / 29.6 / 39.8 (not yet repeated here).

How much mass is spread is not in the paper, and its script leaves it at 0; our default is 0.1.
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the preset."""
    config = read_preset("common")
    config.objective.name = "label_smoothing"
    return config
