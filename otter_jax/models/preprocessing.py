"""What a checkpoint's files say about its images: how pixels are normalised, how a size is reached.

Hugging Face's folders say it in preprocessor_config.json, timm's in the `pretrained_cfg` of
config.json, open_clip's in the `preprocess_cfg` of open_clip_config.json.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from otter_jax.models.descriptions import (
    SIZE,
    Description,
    Keys,
    refuse_other,
    refuse_other_kinds,
    words,
)

# Of pixels in 0..1, channel by channel.
CLIP_STATISTICS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
IMAGENET_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

INTERPOLATIONS = (
    "nearest",
    "lanczos",
    "bilinear",
    "bicubic",
    "box",
    "hamming",
)  # As Pillow counts.


class Resize(NamedTuple):
    """How an image is brought to a square in evaluation.

    Attributes:
        mode: "shortest", the shorter side is brought to a length and the centre cut out;
            "shortest_floor", the same with transformers' rounding; "squash", both sides are.
        crop_share: what is cut out, as a share of that length.
        interpolation: one of `INTERPOLATIONS`, antialiased.
    """

    mode: Literal["shortest", "shortest_floor", "squash"]
    crop_share: float
    interpolation: str


CLIP_RESIZE = Resize("shortest", 1.0, "bicubic")

HUGGING_FACE_KEYS = Keys(
    fields={"image_mean": "mean", "image_std": "std"},
    only={
        "do_resize": (True, None),
        "do_rescale": (True, None),
        "do_normalize": (True, None),
        "do_pad": (False, None),
        "include_top": (None, False),
    },
    harmless=words(
        """image_processor_type feature_extractor_type processor_class do_convert_rgb size crop_size
        do_center_crop resample crop_pct rescale_factor rescale_offset default_to_square
        use_square_size data_format input_data_format device return_tensors pad_size
        disable_grouping image_seq_length _valid_processor_keys _processor_class"""
    ),
)


def read_preprocessing(
    pixels: Description | None, config: Description | None, open_clip: Description | None
) -> dict[str, Any]:
    """Return the settings `mean`, `std` and `resize` of an image tower, as far as files say them.

    Args:
        pixels: of preprocessor_config.json.
        config: of config.json.
        open_clip: of open_clip_config.json, if the weights are its.

    Raises:
        ValueError: an entry is unknown, or asks for what evaluation here cannot do.
    """
    if open_clip is not None:
        return _of_open_clip(open_clip.get("preprocess_cfg") or {})
    of_timm = (config or {}).get("pretrained_cfg")
    found = _of_timm(of_timm) if isinstance(of_timm, Mapping) else {}
    return found | (_of_hugging_face(pixels) if pixels else {})


def _of_open_clip(entries: Description) -> dict[str, Any]:
    source = "open_clip_config.json's preprocess_cfg"
    refuse_other_kinds(entries, source)
    mode = entries.get("resize_mode", "shortest")
    refuse_other(mode, ("shortest", "squash"), "resize_mode", source)
    interpolation = entries.get("interpolation", "bicubic")
    refuse_other(interpolation, ("bicubic", "bilinear"), "interpolation", source)
    return _statistics(entries) | {"resize": Resize(mode, 1.0, interpolation)}


def _of_timm(entries: Description) -> dict[str, Any]:
    source = "config.json's pretrained_cfg"
    refuse_other_kinds(entries, source)
    mode = entries.get("crop_mode", "center")
    refuse_other(mode, ("center", "squash"), "crop_mode", source)
    interpolation = entries.get("interpolation", "bicubic")
    refuse_other(interpolation, INTERPOLATIONS, "interpolation", source)
    mode = "squash" if mode == "squash" else "shortest"
    crop_share = _share(entries.get("crop_pct") or 0.875, source)
    return _statistics(entries) | {"resize": Resize(mode, crop_share, interpolation)}


def _statistics(entries: Description) -> dict[str, Any]:
    return {name: tuple(entries[name]) for name in ("mean", "std") if entries.get(name)}


def _share(value: float, source: str) -> float:
    if not 0 < value <= 1:
        raise ValueError(f"{source} says crop_pct={value}; it must be above 0 and at most 1")
    return float(value)


def _of_hugging_face(entries: Description) -> dict[str, Any]:
    source = "preprocessor_config.json"
    fields = {k: tuple(v) for k, v in HUGGING_FACE_KEYS.read(entries, source).items()}
    factor = entries.get("rescale_factor") or 1 / 255
    if abs(factor - 1 / 255) > 1e-9 or entries.get("rescale_offset"):
        raise ValueError(f"{source} brings pixels to another range than 0..1 before its mean")
    resize = _resize_of_hugging_face(entries, source)
    return fields if resize is None else fields | {"resize": resize}


def _resize_of_hugging_face(entries: Description, source: str) -> Resize | None:
    number = entries.get("resample", 3)
    refuse_other(number, tuple(range(len(INTERPOLATIONS))), "resample", source)
    interpolation, size = INTERPOLATIONS[number], entries.get("size")
    if size is None:
        return None
    cut = entries.get("crop_size") if entries.get("do_center_crop") else None
    crop = None if cut is None else _side(cut, "crop_size", source)
    if isinstance(size, Mapping) and "shortest_edge" not in size:
        side = _side(size, "size", source)
        return side and Resize("squash", (crop or side) / side, interpolation)
    named = size["shortest_edge"] if isinstance(size, Mapping) else size
    side = _side(named, "size", source)
    if entries.get("crop_pct"):  # ConvNeXt's, which leaves nothing out from 384 pixels on.
        if side >= 384:
            return Resize("squash", 1.0, interpolation)
        return Resize("shortest_floor", _share(entries["crop_pct"], source), interpolation)
    if crop is None:  # A lone number meant a square before there were names for it.
        return None if isinstance(size, Mapping) else Resize("squash", 1.0, interpolation)
    if crop > side:
        raise ValueError(f"{source} cuts {crop} pixels out of images of {side}")
    return Resize("shortest_floor", crop / side, interpolation)


def _side(size: Any, name: str, source: str) -> int | None:
    """Return the side of a square size, None for others."""
    sides = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else [size]
    if not all(map(SIZE.admits, sides)):
        raise ValueError(f"{source} says {name}={size!r:.60}; its sides must be {SIZE.words}")
    return sides[0] if len(set(sides)) == 1 else None
