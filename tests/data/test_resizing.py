"""Tests of the ways of other libraries to a square image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from otter_jax.data.images import evaluation_transform
from otter_jax.data.resizing import resize_as, resized_side


def photo(height: int, width: int) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height)))


@settings(max_examples=20)
@given(st.integers(20, 90), st.integers(20, 90))
def test_the_usual_margin_gives_the_usual_evaluation(height: int, width: int) -> None:
    image = photo(height, width)
    wanted = evaluation_transform(image, 28)
    np.testing.assert_array_equal(resize_as(image, 28, "shortest", 224 / 256, "bicubic"), wanted)


def test_without_a_margin_the_shorter_side_is_whole() -> None:
    image = photo(20, 30)
    found = resize_as(image, 20, "shortest", 1.0, "bicubic")
    np.testing.assert_array_equal(found, image[:, 5:25])


@pytest.mark.parametrize(("mode", "first"), [("shortest", 2), ("shortest_floor", 1)])
def test_half_a_pixel_at_the_crop_goes_one_way_or_the_other(mode: str, first: int) -> None:
    image = photo(20, 23)  # Three columns too many: one and a half on each side.
    found = resize_as(image, 20, mode, 1.0, "bicubic")
    np.testing.assert_array_equal(found, image[:, first : first + 20])


def test_squashing_keeps_all_of_the_image() -> None:
    image = photo(20, 30)
    wanted = Image.fromarray(image).resize((10, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_as(image, 10, "squash", 1.0, "bilinear"), wanted)
    assert resize_as(image, 9, "squash", 0.9, "lanczos").shape == (9, 9, 3)


def test_sides_are_rounded_as_timm_rounds_them() -> None:
    assert [resized_side(224, share) for share in (1.0, 0.9, 0.875, 224 / 256)] == [
        224,
        248,
        256,
        256,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stretch", 1.0, "bicubic"), "cannot be resized by 'stretch' and 'bicubic'"),
        (("squash", 1.0, "sinc"), "one of nearest, lanczos"),
        (("squash", 0.0, "box"), "crop_share is 0.0; it must be above 0"),
    ],
)
def test_what_is_no_way_is_refused(arguments: tuple[str, float, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_as(photo(20, 20), 10, *arguments)
