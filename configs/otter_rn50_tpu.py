"""otter_rn50 in bfloat16, in the shapes that a TPU does not pad.

Paper:    Wu et al., Data Efficient Language-supervised Zero-shot Recognition with Optimal
          Transport Distillation (ICLR 2022), https://arxiv.org/abs/2112.09445
Command:  python main.py --config=configs/otter_rn50_tpu.py --workdir=runs/otter_tpu
          with --config.data.train and --config.evaluate.sets as for otter_rn50.
Hardware: a slice of TPUs whose number of chips divides 512; made for v5e:2x4.
Time:     not measured. docs/pods.md has what the compiler estimates, before and after.
Expected: not measured; otter_rn50's scores are the ones to compare with.

The towers compute in bfloat16; targets, losses, sums of gradients, batch statistics and softmaxes
stay in float32. Rows of 64 tokens instead of 60 lie in a TPU's memory as they do in matrices, and
BERT's heads attend in twos, which fill its 128 lanes.
"""

from ml_collections import ConfigDict

from otter_jax.preset_files import read_preset


def get_config() -> ConfigDict:
    """Return otter_rn50 with what says how it is computed, and four tokens more."""
    config = read_preset("otter_rn50")
    config.data.max_tokens = 64
    config.model.dtype = "bfloat16"
    with config.unlocked():
        config.model.text.overrides.update(pack_heads=True)
    return config
