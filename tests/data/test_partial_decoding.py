"""Parts of a JPEG against the same parts of the whole image, and against other resampling."""

import io
import sys
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from data.test_image_corruption import flipped
from data.test_images import encode, mean_difference, photo_like
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from otter_jax.data import images, partial_decoding
from otter_jax.data.augmentations import draw_view
from otter_jax.data.images import Box
from otter_jax.data.pair_loader import PairLoader, Views
from otter_jax.data.records import Record

REDUCED = {
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
OPTIONS = {
    "image_size": 32,
    "fit": "crop",
    "augmentation": "random_resized_crop",
    "flip": True,
    "seed": 0,
}


class Tokens:
    """A tokenizer of no interest here."""

    special_ids = ()

    def __call__(self, captions: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(captions), 1)
        return np.zeros(shape, np.int32), np.ones(shape, bool)


def jpeg(height: int, width: int, mode: str = "RGB", **options: Any) -> bytes:
    return encode(Image.fromarray(photo_like(height, width)).convert(mode), "JPEG", **options)


def photograph(name: str) -> bytes:
    """One of the two photographs of scikit-learn, 427 x 640, as a JPEG of 100 KB or less."""
    return encode(Image.fromarray(load_sample_image(name)), "JPEG", quality=90)


def turned(data: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(Image.open(io.BytesIO(data)), "JPEG", exif=exif)


def load_views(data: bytes, steps: int, **changes: Any) -> list[np.ndarray]:
    source = [Record("a", data, "a cat", {}, ("a cat",))]
    load = PairLoader(source, Tokens(), **(OPTIONS | changes))
    batches = [load(step, np.array([0])) for step in range(steps)]
    assert not load.unreadable
    return [np.concatenate([b[k] for k in sorted(b) if k.startswith("image")]) for b in batches]


@given(
    height=st.integers(9, 150),
    width=st.integers(9, 150),
    places=st.tuples(*[st.floats(0, 1)] * 4),
    mode=st.sampled_from(["RGB", "L"]),
    subsampling=st.integers(0, 2),
    quality=st.sampled_from([10, 90]),
    restart=st.sampled_from([0, 1]),
    divisor=st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=80, deadline=None)
def test_a_part_has_the_pixels_of_the_whole(
    height: int,
    width: int,
    places: tuple[float, ...],
    mode: str,
    subsampling: int,
    quality: int,
    restart: int,
    divisor: int,
) -> None:
    options = {"quality": quality, "restart_marker_rows": restart}
    if mode == "RGB":
        options["subsampling"] = subsampling
    data = jpeg(height, width, mode, **options)
    top, left = int(places[0] * (height - 1)), int(places[1] * (width - 1))
    box = Box(
        top, left, 1 + int(places[2] * (height - top - 1)), 1 + int(places[3] * (width - left - 1))
    )
    smaller = Box(*(length // divisor for length in box))
    expected = images.decode(data)
    if divisor > 1:
        reduced = cv2.IMREAD_COLOR_RGB | REDUCED[divisor]
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), reduced)
    size = images.size_by_rows(data)
    assert size == (height, width)
    found = partial_decoding._decode_rows(data, size, box.top + box.height, divisor)
    np.testing.assert_array_equal(smaller.cut(found), smaller.cut(expected))


@pytest.mark.parametrize(
    ("target", "shape"),
    [
        (101, (200, 240)),
        (100, (100, 120)),
        (51, (100, 120)),
        (50, (50, 60)),
        (25, (25, 30)),
        (2, (25, 30)),
    ],
)
def test_scale_follows_the_smallest_side_of_all(target: int, shape: tuple[int, int]) -> None:
    data, box = jpeg(260, 300), Box(8, 16, 200, 240)
    alone, beside = (
        partial_decoding.decode_boxes(data, (260, 300), boxes, target)[0]
        for boxes in ([box], [box, Box(0, 0, 260, 300)])
    )
    assert alone.shape == (*shape, 3)
    np.testing.assert_array_equal(alone, beside)
    tiny = partial_decoding.decode_boxes(data, (260, 300), [box, Box(0, 0, 1, 1)], target)
    assert [each.shape[0] for each in tiny] == [200, 1]


def test_rows_below_the_lowest_box_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    heights = []
    decoder = partial_decoding.decoder()
    decode = decoder.decode_jpeg

    def recorded(data: bytes, **options: Any) -> np.ndarray:
        heights.append(decoder.decode_jpeg_header(data)[0])
        return decode(data, **options)

    monkeypatch.setattr(decoder, "decode_jpeg", recorded)
    boxes = [Box(0, 0, 40, 50), Box(30, 7, 60, 60)]
    partial_decoding.decode_boxes(jpeg(400, 300), (400, 300), boxes, 30)
    assert heights == [90 + partial_decoding.CONTEXT]


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("side", [200, 250, 330])
def test_a_scaled_part_is_as_near_to_bicubic_as_the_whole_one(name: str, side: int) -> None:
    data, box = photograph(name), Box(16, 32, side, side)
    whole = np.ascontiguousarray(box.cut(images.decode(data)))
    reference = Image.fromarray(whole).resize((100, 100), Image.Resampling.BICUBIC)
    [part] = partial_decoding.decode_boxes(data, (427, 640), [box], 100)
    assert part.shape[0] == side // 2
    full, scaled = (
        mean_difference(images._resize_opencv(each, 100, 100), reference) for each in (whole, part)
    )
    bilinear = Image.fromarray(whole).resize((100, 100), Image.Resampling.BILINEAR)
    assert scaled < full + 0.4 * mean_difference(bilinear, reference)


@pytest.mark.parametrize("kind", ["random_resized_crop", "resize_random_crop", "light", "moco"])
@pytest.mark.parametrize("views", [1, 2])
def test_views_of_crops_too_small_to_scale_show_what_those_of_decoding_1_show(
    kind: str, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_BILINEAR_TO", 0)
    data = jpeg(60, 63)  # No crop is twice as large as 32.
    options = {"views": Views(images=views), "augmentation": kind}
    for first, second in zip(
        load_views(data, 6, **options), load_views(data, 6, **options, decoding=2), strict=True
    ):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_a_cut_is_resized_about_as_well_as_by_pillows_bilinear(name: str) -> None:
    whole, others = images.decode(photograph(name)), 0
    for height, width in ((100, 100), (100, 139), (120, 104), (140, 140), (141, 120), (99, 130)):
        cut = whole[100 : 100 + height, 200 : 200 + width]
        image, rng = Image.fromarray(np.ascontiguousarray(cut)), np.random.default_rng(0)
        bicubic, bilinear = (
            image.resize((100, 100), each)
            for each in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
        )
        view = images.training_transform(cut, 100, rng, is_cut=True)
        assert mean_difference(view, bicubic) <= 1.3 * mean_difference(bilinear, bicubic)
        others += not np.array_equal(view, images._resize_opencv(cut, 100, 100))
    assert others == 3


def test_views_of_larger_crops_are_scaled_parts() -> None:
    data, divisors = photograph("flower.jpg"), Counter()
    whole = images.decode(data)
    for step, view in enumerate(load_views(data, 12, image_size=150, decoding=2)):
        rng = np.random.default_rng((0, step, 0))
        box = draw_view(427, 640, 150, rng, "random_resized_crop")
        divisor = 2 if min(box[2:]) >= 2 * 150 else 1
        moved = Box(*(length // divisor * divisor for length in box))
        expected = images._resize_opencv(moved.cut(whole), 150, 150)
        expected = expected[:, ::-1] if rng.random() < 0.5 else expected
        assert mean_difference(view[0], expected) < 1.5
        divisors[divisor] += 1
    assert divisors[1] > 1 and divisors[2] > 1


@pytest.mark.parametrize(
    "data",
    [
        encode(Image.fromarray(photo_like(90, 120)), "PNG"),
        jpeg(90, 120, progressive=True),
        jpeg(90, 120, "CMYK"),
        turned(jpeg(90, 120)),
    ],
    ids=["PNG", "progressive", "CMYK", "turned"],
)
def test_other_files_are_decoded_whole(data: bytes) -> None:
    assert images.size_by_rows(data) is None
    for first, second in zip(load_views(data, 4), load_views(data, 4, decoding=2), strict=True):
        np.testing.assert_array_equal(first, second)


def test_an_image_that_is_to_be_enlarged_is_decoded_whole() -> None:
    data, options = jpeg(30, 40), {"augmentation": "resize_random_crop"}
    for first, second in zip(
        load_views(data, 4, **options), load_views(data, 4, **options, decoding=2), strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_damaged_files_give_what_the_whole_ones_give() -> None:
    """Or what lies above the damage: nothing below a crop is looked at."""
    whole_data, rng, alike = jpeg(90, 70, quality=80), np.random.default_rng(0), 0
    for _ in range(300):
        data = flipped(whole_data, rng)
        try:
            size = images.size_by_rows(data)
            whole = images.decode(data)
        except images.ImageError as error:
            whole = error.reason
        if size is None or size[0] * size[1] > 10**6:
            continue
        box = Box(0, 0, int(rng.integers(1, size[0] + 1)), size[1])
        try:
            [part] = partial_decoding.decode_boxes(data, size, [box], 10**4)
        except images.ImageError as error:
            assert whole == error.reason
        else:
            assert isinstance(whole, str) or np.array_equal(part, box.cut(whole))
            alike += not isinstance(whole, str)
    assert alike > 100


def test_without_its_decoder_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'otter_jax\[jpeg\]'"):
        load_views(jpeg(60, 60), 1, decoding=2)
    load_views(jpeg(60, 60), 1, decoding=2, augmentation="none")
    with pytest.raises(ValueError, match="no decoding 3"):
        load_views(jpeg(60, 60), 1, decoding=3)
