"""Tests of what checkpoints' files say about images."""

from typing import Any

import pytest

from otter_jax.models.preprocessing import read_preprocessing

CROPPED = {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": 224}


@pytest.mark.parametrize(
    ("entries", "resize"),
    [
        (CROPPED, ("shortest_floor", 1.0, "bicubic")),
        ({**CROPPED, "size": 256, "resample": 2}, ("shortest_floor", 0.875, "bilinear")),
        ({"size": 224, "resample": 2}, ("squash", 1.0, "bilinear")),
        ({"size": {"height": 224, "width": 224}}, ("squash", 1.0, "bicubic")),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.9}, ("shortest_floor", 0.9, "bicubic")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.9}, ("squash", 1.0, "bicubic")),
        ({"image_mean": [0.1] * 3}, None),
    ],
)
def test_hugging_faces_processors(entries: dict[str, Any], resize: tuple | None) -> None:
    assert read_preprocessing(entries, None, None).get("resize") == resize


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"do_normalize": False}, "do_normalize=False; only True"),
        ({"rescale_factor": 1 / 127.5}, "another range than 0..1"),
        ({"do_sharpen": True}, "do_sharpen=True, which this package does not know"),
        ({"resample": 9}, "resample=9; only 0 or 1"),
    ],
)
def test_other_processors_are_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_preprocessing(entries, None, None)


def test_timm_and_open_clip() -> None:
    timm = {"pretrained_cfg": {"mean": [1, 2, 3], "crop_pct": 1.0, "crop_mode": "squash"}}
    found = read_preprocessing(None, timm, None)
    assert found == {"mean": (1, 2, 3), "resize": ("squash", 1.0, "bicubic")}
    squash = {"preprocess_cfg": {"std": [1, 2, 3], "resize_mode": "squash"}}
    found = read_preprocessing(None, timm, squash)
    assert found == {"std": (1, 2, 3), "resize": ("squash", 1.0, "bicubic")}
    with pytest.raises(ValueError, match="resize_mode='longest'; only 'shortest' or 'squash'"):
        read_preprocessing(None, None, {"preprocess_cfg": {"resize_mode": "longest"}})
