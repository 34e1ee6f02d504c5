"""OTTER: optimal transport turns the EMA teacher's similarities into soft targets.

Paper:    Wu et al., Data Efficient Language-supervised Zero-shot Recognition with Optimal
          Transport Distillation (ICLR 2022), https://arxiv.org/abs/2112.09445
Command:  python main.py --config=configs/otter_rn50.py --workdir=runs/otter
          --config.data.train=webdataset:/data/cc3m says where the pairs lie,
          --config.evaluate.sets='("open_images:/data/oi","imagenet10k:/data/in10k")' what to rank.
Hardware: the authors' 8 V100 GPUs, 64 pairs each. Any number of GPUs or TPU cores that divides 512
          will do: batch norm and the loss are over the whole batch.
Time:     not in the paper. 56,870 steps for 2.9 million pairs; rate and time left are printed.
Expected: the authors' Open Images flat hit@1/5/10 29.1 / 59.6 / 70.9,
          ImageNet-10K 12.0 / 31.8 / 42.1 (not yet repeated here).

Given pairs are taken out of the transport on all rows. The released multi-GPU code does so on the
first GPU's rows only; the authors' scores may have been made with that. The method's defaults are
the authors' values: alpha 0.5, epsilon 0.15, 5 iterations.
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return the preset."""
    config = read_preset("common")
    config.objective.name = "otter"
    return config
