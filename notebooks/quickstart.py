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
# # Quickstart: train, look, classify a picture of your own
#
# Any runtime will do: a CPU is enough. Linear heads on frozen towers learn from 4,751 pieces of clip art
# and their captions, in two to four minutes, and then name pictures that they have never seen.

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

import otter_jax
from IPython.display import HTML, Image, display
from otter_jax.preset_files import read_preset
from otter_jax.train import train

SMALL = bool(os.environ.get("OTTER_JAX_SMALL"))  # Set by the tests: fewer and smaller pictures.
workdir = Path("runs/quickstart")

# %% [markdown]
# ## Train
#
# A preset is a config with a name; every key can be changed. `config.objective.name` is the method: try
# `infonce`, `kd` or `sigmoid` (and a workdir of its own for each).

# %%
config = read_preset("quickstart")
config.objective.name = "otter"
if SMALL:
    heldout = Path(otter_jax.__file__).parent / "data/open_clipart/heldout-00000.tar"
    config.data.train = f"webdataset:{heldout}"
    config.data.image_size, config.batch_size, config.total_epochs = 64, 128, 5.0
    config.evaluate.sets = (f"webdataset:{heldout}",)
results = train(config, workdir)

# %% [markdown]
# The same call again resumes where a run was interrupted; now that it is finished, it shows its results.
#
# ## Look
#
# What the teacher matches with what, in one batch: each row spreads one image's target over the captions.

# %%
Image(str(workdir / "figures" / "soft_targets.png"))

# %% [markdown]
# Curves, results, hits and misses, data and versions are in one page, which can also be downloaded and
# sent to others.

# %%
page = (workdir / "report.html").read_text(encoding="utf-8")
escaped = page.replace("&", "&amp;").replace('"', "&quot;")
HTML(f'<iframe srcdoc="{escaped}" width="100%" height="700" style="border:0"></iframe>')

# %% [markdown]
# ## Classify a picture of your own
#
# In Colab a button appears; elsewhere say where the picture is.

# %%
model = otter_jax.load(workdir)
picture = "my_picture.jpg"
try:
    from google.colab import files

    picture = next(iter(files.upload()), picture)
except ModuleNotFoundError:
    pass
if not Path(picture).exists():  # Nothing was given: one of the pieces of clip art.
    from otter_jax.data.sources import open_source

    source = open_source("open_clipart")
    picture = "clip_art.png"
    Path(picture).write_bytes(source[7].image)
    print("its caption was:", source[7].caption)

labels = ["a cat", "a dog", "a house", "a tree", "a car", "a flower", "a person", "a star"]
probabilities = model.classify(picture, labels, template="a drawing of {}.")[0]
display(Image(picture, width=200))
for probability, label in sorted(zip(probabilities, labels, strict=True), reverse=True):
    print(f"{probability:6.1%}  {label}")
