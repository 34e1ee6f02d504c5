"""Whatever people have for an image is seen as the bytes that it stands for."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from otter_jax.embedding.given_images import as_rgb, one_by_one

BYTES = np.random.default_rng(0).integers(0, 256, size=(5, 7, 3), dtype=np.uint8)
GREY = BYTES[:, :, 0]


@pytest.mark.parametrize(
    "given",
    [
        BYTES,
        jnp.asarray(BYTES),
        BYTES / 255,
        (BYTES / 255).astype(np.float32),
        jnp.asarray(BYTES, jnp.float32) / 255,
        np.dstack([BYTES, np.full((5, 7), 255, np.uint8)]),
    ],
)
def test_arrays_of_bytes_and_of_shares(given: np.ndarray) -> None:
    np.testing.assert_array_equal(as_rgb(given), BYTES)


@pytest.mark.parametrize("given", [GREY, GREY[:, :, None], GREY / 255])
def test_grey_arrays_are_as_pillow_has_them(given: np.ndarray) -> None:
    expected = np.asarray(Image.fromarray(GREY).convert("RGB"))
    np.testing.assert_array_equal(as_rgb(given), expected)


def test_transparency_is_white_as_in_a_file() -> None:
    clear = np.dstack([BYTES, np.arange(35, dtype=np.uint8).reshape(5, 7)])
    file = io.BytesIO()
    Image.fromarray(clear).save(file, "PNG")
    np.testing.assert_array_equal(as_rgb(clear), as_rgb(file.getvalue()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            BYTES.astype(np.float32),
            r"floats of an image should lie in \[0, 1\], found \d.* to 2\d+",
        ),
        (BYTES / 127.5 - 1, r"should lie in \[0, 1\], found -"),
        (np.full((2, 2, 3), np.nan), r"should lie in \[0, 1\], found nan"),
        (BYTES.transpose(2, 0, 1), r"1, 3 or 4 channels, .* found uint8 \[3, 5, 7\]"),
        (BYTES.astype(np.int64), r"found int64 \[5, 7, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"an image should be uint8 \[H, W, 3\]"),
    ],
)
def test_what_is_no_image_is_refused(given: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_rgb(given)


def test_one_or_several() -> None:
    assert list(one_by_one("a.png")) == ["a.png"]
    assert [each.shape for each in one_by_one(GREY)] == [(5, 7)]
    assert len(one_by_one(np.stack([BYTES, BYTES]))) == 2
    for given, found in ((3, "int"), (np.zeros(4), r"float64 \[4\]")):
        with pytest.raises(ValueError, match=f"an image or several, found {found}"):
            one_by_one(given)
