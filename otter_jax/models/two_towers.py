"""Checkpoints that hold an image tower and a text tower: which array belongs to what.

CLIP and its descendants save both towers, their projections and the scale of the similarities in
one file. A `HalfLayout` says once how a family names one side of it; the names inside a tower are
the business of the tower's own `CheckpointLayout`.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from otter_jax.models.descriptions import Guess
from otter_jax.models.preprocessing import CLIP_STATISTICS, IMAGENET_STATISTICS
from otter_jax.models.weights import CheckpointArrays

Kind = Literal["image", "text"]
KINDS: tuple[Kind, ...] = ("image", "text")


class HalfLayout(NamedTuple):
    """How a family of files names one of two towers.

    Attributes:
        prefix: regular expression that begins the names of the tower's arrays.
        projections: regular expressions of names that the layer after the tower may have. A file
            without any of them has the tower's features for its embeddings.
        beside: regular expression that begins another name of the same file, where the prefix is
            not enough to know the family.
        hints: settings of the tower that the family's files do not say.
    """

    prefix: str
    projections: tuple[str, ...]
    beside: str = ""
    hints: Mapping[str, Any] = {}


class Half(NamedTuple):
    """One tower of a file and its projection."""

    prefix: str  # As in the layout.
    tower: dict[str, np.ndarray]  # With their whole names.
    projection: dict[str, np.ndarray]  # See `projections.read_projection`.
    hints: Mapping[str, Any] = {}  # As in the layout.

    def without_prefix(self) -> dict[str, np.ndarray]:
        """Return the tower's arrays as a file of the tower alone would name them."""
        return {re.sub(rf"^({self.prefix})", "", name): a for name, a in self.tower.items()}


# The first whose prefix occurs is taken, so that the more special ones come first.
HALVES: Mapping[Kind, tuple[HalfLayout, ...]] = {
    "image": (
        HalfLayout(r"image\.", ("image_projection",)),  # Ours, see export.py.
        HalfLayout(r"vision_model\.", ("visual_projection",)),  # Hugging Face's CLIP.
        # OTTER: the classifier of a timm tower has become the projection.
        HalfLayout(
            r"image_encoder\.model\.", (r"image_encoder\.model\.fc",), hints=CLIP_STATISTICS
        ),
        # open_clip with a timm tower, whose classifier may have become the projection.
        HalfLayout(
            r"visual\.trunk\.",
            (
                r"visual\.head\.proj",
                r"visual\.head\.mlp",
                r"visual\.trunk\.head\.fc",
                r"visual\.trunk\.head(?=\.(weight|bias)$)",
            ),
        ),
        # DeCLIP: CLIP's networks on pixels normalised like ImageNet's.
        HalfLayout(r"visual\.", (r"visual\.proj",), r"encode_text\.", IMAGENET_STATISTICS),
        HalfLayout(r"visual\.", (r"visual\.proj",)),  # OpenAI, open_clip.
    ),
    "text": (
        HalfLayout(r"text_model\.", ("text_projection", r"text_model\.head")),  # Hugging Face's.
        HalfLayout(r"text_encoder\.model\.", (r"text_encoder\.fc",)),  # OTTER.
        HalfLayout(r"encode_text\.", (r"encode_text\.text_projection",)),  # DeCLIP.
        # open_clip with a Hugging Face tower.
        HalfLayout(
            r"text\.transformer\.(?=embeddings\.|encoder\.|pooler\.)",
            (r"text\.proj",),
            hints={"pooling": Guess("mean")},
        ),
        # Ours, and open_clip with a text tower in a module of its own.
        HalfLayout(r"text\.", ("text_projection", r"text\.text_projection")),
        HalfLayout(  # OpenAI, open_clip.
            r"(?=transformer\.resblocks\.|token_embedding\.|positional_embedding$|ln_final\.)",
            ("text_projection",),
        ),
    ),
}
# Names in a `DualEncoder` -> in files.
SCALARS = {
    "log_scale": ("log_scale", "logit_scale", "contrastive_loss.T"),
    "distillation_log_scale": ("distillation_log_scale", "dist_loss.T_s"),
    "logit_bias": ("logit_bias",),
}


def find_half(kind: Kind, arrays: CheckpointArrays) -> Half | None:
    """Return one side of a file that may hold two towers, None if it does not have that side.

    A file of a tower alone, whose names begin with nothing that tells which, has no side.
    """
    for layout in HALVES[kind]:
        if not any(re.match(layout.beside, name) for name in arrays):
            continue
        is_projection = re.compile(rf"({'|'.join(layout.projections)})(\.|$)")
        tower, projection = {}, {}
        for name, array in arrays.items():
            if begin := is_projection.match(name):
                projection[name[begin.end() :] or "matrix"] = array
            elif re.match(layout.prefix, name):
                tower[name] = array
        if tower:
            return Half(layout.prefix, tower, projection, layout.hints)
    return None


def holds_two_towers(arrays: CheckpointArrays) -> bool:
    """Return whether a file has an image side and a text side."""
    return all(find_half(kind, arrays) for kind in KINDS)


def find_scalars(arrays: CheckpointArrays) -> dict[str, float]:
    """Return a file's log-scales and bias of similarities, named as in a `DualEncoder`."""
    # Of shape [] or, in DeCLIP and SigLIP, [1].
    return {
        ours: float(arrays[name].reshape(()))
        for ours, names in SCALARS.items()
        for name in names
        if name in arrays
    }
