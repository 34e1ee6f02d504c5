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
# # What OTTER's targets are
#
# Any runtime will do. In a batch of noisy pairs other captions often fit an image as well as its own.
# OTTER asks a teacher how all of them fit together, and optimal transport turns the answer into soft
# targets. Here is one batch, step by step.

# %%
# Install what this notebook needs, where it is not there yet, as in Colab. REPOSITORY is where you have
# otter_jax from: the address of a git repository, or the folder of a clone.
import importlib.util

REPOSITORY = "/content/otter_jax"
if importlib.util.find_spec("otter_jax") is None:
    # %pip install -q "otter_jax[quickstart] @ file://{REPOSITORY}"
    pass


# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from otter_jax import sharding
from otter_jax.data import images
from otter_jax.data.sources import open_source
from otter_jax.embedding.encoder import build_module, make_encoder
from otter_jax.models import dual_encoder
from otter_jax.objectives import sinkhorn
from otter_jax.preset_files import read_preset

# %% [markdown]
# ## One batch
#
# 24 pairs: every fourth one of a stretch of the clip art, which is sorted by folder, so that some of them
# are alike.

# %%
source = open_source("open_clipart")
pairs = [source[number] for number in range(400, 496, 4)]
pictures = [images.evaluation_transform(images.decode(p.image), 64, fit="pad") for p in pairs]
captions = [pair.caption for pair in pairs]

figure, axes = plt.subplots(3, 8, figsize=(12, 5))
for place, picture, caption in zip(axes.flat, pictures, captions, strict=True):
    place.imshow(picture)
    place.set_title(caption[:18], fontsize=7, parse_math=False)
    place.axis("off")

# %% [markdown]
# ## The cost
#
# The similarity of image i and caption j is `K_ij = gv v_i.v_j + gt t_i.t_j + v_i.t_j`: caption j fits
# image i also if image j looks like image i, or if caption j reads like caption i. Here the towers are
# as they come, not trained together yet, so the third part means nothing and is left out. The given pairs
# are taken out (lowered by 200), so that the transport must look for other captions.

# %%
config = read_preset("quickstart")
model, variables = dual_encoder.split(build_module(config))
mesh = sharding.make_mesh()
encoder = make_encoder(config, model, sharding.put_state(mesh, variables), mesh)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


v = unit(encoder.image_features(encoder.transform(images.decode(p.image)) for p in pairs))
t = unit(encoder.text_features(captions))
similarity = v @ v.T + t @ t.T
without_given = similarity - 200 * np.eye(len(pairs))


def show(matrix: np.ndarray, title: str, place: plt.Axes | None = None) -> None:
    """Draw a matrix of images (rows) over captions (columns)."""
    place = place or plt.subplots(figsize=(5, 5))[1]
    place.imshow(matrix, cmap="Blues")
    place.set(title=title, xlabel="caption", ylabel="image", xticks=[], yticks=[])


show(similarity, "K, with the given pairs on the diagonal")

# %% [markdown]
# ## Sinkhorn, iteration by iteration
#
# The plan is `exp(K / epsilon)`, rows and columns scaled in turn until each image gives and each caption
# receives the same mass. The papers stop after five iterations. The error is how far the captions' masses
# are from equal, after the rows were normalised once more.

# %%
figure, axes = plt.subplots(1, 4, figsize=(14, 4))
for place, iterations in zip(axes, (1, 2, 5, 50), strict=True):
    plan = np.asarray(sinkhorn.row_plan(jnp.array(without_given), 0.15, iterations))
    error = np.abs(plan.sum(axis=0) - 1).mean()
    show(plan, f"{iterations} iteration(s), error {error:.3f}", place)

# %% [markdown]
# ## The plan as a picture
#
# Read a row: what the target of this image is, besides its own caption.

# %%
plan = np.asarray(sinkhorn.row_plan(jnp.array(without_given), 0.15, 5))
assert np.allclose(plan.sum(axis=1), 1, atol=1e-5) and plan.diagonal().max() < 1e-6
for number in np.argsort(-plan.max(axis=1))[:8]:
    best = np.argsort(-plan[number])[:3]
    print(captions[number][:40])
    print("".join(f"    {plan[number, each]:.0%} {captions[each][:40]}\n" for each in best))

# %% [markdown]
# ## Epsilon
#
# A small epsilon matches one to one; a large one spreads every row evenly. Move the slider.

# %%
from ipywidgets import FloatSlider, interact


@interact(epsilon=FloatSlider(0.15, min=0.02, max=1.0, step=0.01, continuous_update=False))
def spread(epsilon: float) -> None:
    """Draw the plan, and say how many captions a row has on average (exp of its entropy)."""
    plan = np.asarray(sinkhorn.row_plan(jnp.array(without_given), epsilon, 5))
    entropy = -(plan * np.log(plan + 1e-30)).sum(axis=1).mean()
    show(plan, f"epsilon {epsilon:.2f}: {np.exp(entropy):.1f} captions a row")
    plt.show()
