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
# # Which captions are wrong in my data?
#
# Any runtime will do; a GPU makes it faster. Before any training, and without labels, each pair's trust is
# estimated: images that look alike should have captions that say alike.

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

import numpy as np
from IPython.display import Image, display
from otter_jax.commands import main as commands
from otter_jax.data.sources import open_source

SMALL = bool(os.environ.get("OTTER_JAX_SMALL"))  # Set by the tests: fewer pairs.

# %% [markdown]
# ## Your pairs
#
# SPEC says where they are: `webdataset:DIR` for tar shards, `csv:FILE`, `folder:DIR`, or a name. In Colab,
# upload files with the folder symbol on the left, or mount a drive.

# %%
SPEC = "open_clipart"

# %% [markdown]
# ## Estimate
#
# This prints the share of wrong captions, and writes the trust of every pair, a histogram, and sheets of
# the pairs that are trusted least and most.

# %%
limit = ["--limit=150"] if SMALL else []
commands.main(["inspect", f"--data={SPEC}", "--trust", "--out=inspected", *limit])

# %%
for picture in sorted(Path("inspected").glob("*.png")):
    print(picture.stem)
    display(Image(str(picture), width=900))

# %% [markdown]
# ## Look closer
#
# A table with a row a pair. Below are the captions that are trusted least.

# %%
from pyarrow import parquet

table = parquet.read_table("inspected/trust.parquet")
record, trust = table["record"].to_numpy(), table["trust"].to_numpy()
source = open_source(SPEC)
for place in np.argsort(trust)[:10]:
    print(f"{trust[place]:.2f}  {source[int(record[place])].caption[:80]}")

# %% [markdown]
# ## A cleaned set
#
# Choose a threshold with the sheets above; the pairs at or above it become tar shards of their own, which
# `--config.data.train='webdataset:cleaned'` trains on. Weighting pairs by their trust instead of dropping
# them loses nothing that is right: `--config.objective.pair_weight=estimated` does so.

# %%
import io
import tarfile

THRESHOLD = 0.5
Path("cleaned").mkdir(exist_ok=True)
kept = record[trust >= THRESHOLD]
with tarfile.open("cleaned/00000.tar", "w") as shard:
    for number in kept:
        pair = source[int(number)]
        suffix = "svg" if pair.image[:5] in (b"<?xml", b"<svg ") else "png"
        for name, data in ((suffix, pair.image), ("txt", pair.caption.encode())):
            member = tarfile.TarInfo(f"{number:08d}.{name}")
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
Path("keep.txt").write_text("".join(f"{source[int(number)].key}\n" for number in kept))
print(f"{len(kept)} of {len(trust)} pairs kept")
assert len(open_source("webdataset:cleaned")) == len(kept)
