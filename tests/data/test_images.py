"""Decoding against pictures whose pixels are known; transforms against Pillow and by property."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from otter_jax.data import images

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def two_colours() -> Image.Image:
    """24 wide, 16 high; the left half red, the right half green."""
    image = Image.new("RGB", (24, 16), RED)
    image.paste(GREEN, (12, 0, 24, 16))
    return image


def assert_near(pixel: np.ndarray, colour: tuple[int, int, int], tolerance: int) -> None:
    assert np.abs(pixel.astype(int) - colour).max() <= tolerance


class TestDecode:
    @pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "TIFF"])
    def test_lossless_formats_are_exact(self, file_format: str) -> None:
        array = noise(9, 13)
        data = encode(Image.fromarray(array), file_format, lossless=True)
        decoded = images.decode(data)
        np.testing.assert_array_equal(decoded, array)
        assert decoded.dtype == np.uint8 and decoded.flags.writeable

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_jpeg_is_what_pillow_sees(self, mode: str) -> None:
        data = encode(two_colours().convert(mode), "JPEG", quality=95)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(images.decode(data) - expected).max() <= 4  # Two builds of the same decoder.

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
    def test_exif_orientation_is_applied(self, file_format: str) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # The camera was turned: rotate by 90 degrees clockwise to see it upright.
        decoded = images.decode(encode(two_colours(), file_format, exif=exif))
        assert decoded.shape == (24, 16, 3)
        assert_near(decoded[3, 8], RED, 4)
        assert_near(decoded[20, 8], GREEN, 4)

    def test_cmyk_jpeg(self) -> None:
        decoded = images.decode(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
        assert_near(decoded[8, 8], RED, 4)

    def test_sixteen_bits_keep_their_high_byte(self) -> None:
        ramp = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
        decoded = images.decode(encode(Image.fromarray(ramp), "PNG"))
        np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 128, 255])
        assert decoded.shape == (1, 5, 3)

    def test_palette_with_a_transparent_entry(self) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([*RED, *GREEN])
        image.putpixel((1, 0), 1)
        decoded = images.decode(encode(image, "PNG", transparency=1))
        np.testing.assert_array_equal(decoded, [[RED, WHITE]])

    def test_rgb_with_a_transparent_colour(self) -> None:
        decoded = images.decode(encode(two_colours(), "PNG", transparency=GREEN))
        np.testing.assert_array_equal(decoded[0, [0, 23]], [RED, WHITE])

    @pytest.mark.parametrize(("mode", "colour"), [("LA", (0,)), ("RGBA", (255, 0, 0))])
    @pytest.mark.parametrize("alpha", [0, 51, 255])
    @pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
    def test_transparency_shows_white(
        self, mode: str, colour: tuple[int, ...], alpha: int, file_format: str
    ) -> None:
        image = Image.new(mode, (4, 4), (*colour, alpha))
        if file_format == "WEBP":
            image = image.convert("RGBA")
        decoded = images.decode(encode(image, file_format, lossless=True))
        opaque = colour * 3 if len(colour) == 1 else colour
        expected = [255 + (channel - 255) * alpha / 255 for channel in opaque]
        assert np.abs(decoded - np.array(expected)).max() <= 1

    @pytest.mark.parametrize("file_format", ["GIF", "WEBP"])
    def test_an_animation_gives_its_first_frame(self, file_format: str) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
        data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert_near(images.decode(data)[4, 4], RED, 8)

    def test_bytes_after_the_end_do_no_harm(self) -> None:
        data = encode(two_colours(), "JPEG") + b"trailing rubbish"
        assert_near(images.decode(data)[8, 2], RED, 8)


class TestDecodeRefuses:
    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
    def test_a_cut_file(self, file_format: str, share: float) -> None:
        data = encode(Image.fromarray(noise(64, 64)), file_format)
        with pytest.raises(images.ImageError):
            images.decode(data[: int(share * len(data))])

    @pytest.mark.parametrize(
        ("data", "reason"),
        [(b"", "empty"), (b"<html>404</html>", "unknown image format"), (bytes(1000), "unknown")],
    )
    def test_what_is_no_image(self, data: bytes, reason: str) -> None:
        with pytest.raises(images.ImageError, match=reason):
            images.decode(data)

    def test_too_many_pixels_before_decoding_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encode(Image.new("1", (20_000, 10_000)), "PNG")  # 25 KB that would become 600 MB.
        with pytest.raises(images.ImageError, match="more than 178,956,970 pixels"):
            images.decode(data)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(images.ImageError, match="20000 x 10000 pixels, more than 178,956,970"):
            images.decode(data)

    def test_hairlines(self) -> None:
        with pytest.raises(images.ImageError, match="3000 x 1 pixels"):
            images.decode(encode(Image.new("RGB", (3000, 1)), "PNG"))

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]), st.data())
    def test_damage_gives_an_image_or_an_image_error(
        self, file_format: str, data: st.DataObject
    ) -> None:
        damaged = bytearray(encode(two_colours(), file_format))
        for _ in range(data.draw(st.integers(1, 8))):
            position = data.draw(st.integers(0, len(damaged) - 1))
            damaged[position] = data.draw(st.integers(0, 255))
        try:
            array = images.decode(bytes(damaged))
        except images.ImageError as error:
            assert "\n" not in str(error)
        else:
            assert array.dtype == np.uint8 and array.shape[2:] == (3,)


class TestEvaluationTransform:
    @pytest.mark.parametrize(("height", "width"), [(90, 140), (140, 90), (64, 64), (300, 61)])
    def test_crop_is_pillows_bicubic_and_the_centre(self, height: int, width: int) -> None:
        array = noise(height, width)
        side = 64  # 56 * 256 / 224
        shorter = min(height, width)
        new_width, new_height = int(side * width / shorter), int(side * height / shorter)
        resized = Image.fromarray(array).resize((new_width, new_height), Image.Resampling.BICUBIC)
        left, top = round((new_width - 56) / 2), round((new_height - 56) / 2)
        expected = np.asarray(resized.crop((left, top, left + 56, top + 56)))
        np.testing.assert_array_equal(images.evaluation_transform(array, 56), expected)

    def test_224_is_cut_from_256(self) -> None:
        array = noise(256, 300)  # Its shorter side is 256 already: only the crop remains.
        result = images.evaluation_transform(array, 224)
        np.testing.assert_array_equal(result, array[16:240, 38:262])

    def test_pad_shows_the_whole_image_centred_on_white(self) -> None:
        array = np.zeros((20, 40, 3), np.uint8)
        result = images.evaluation_transform(array, 40, fit="pad")
        assert (result[10:30] == 0).all()
        assert (result[:10] == 255).all() and (result[30:] == 255).all()

    def test_no_margin(self) -> None:
        array = noise(40, 40)
        result = images.evaluation_transform(array, 40, resize_factor=1.0)
        np.testing.assert_array_equal(result, array)

    @pytest.mark.parametrize("options", [{"fit": "stretch"}, {"resize_factor": 0.9}])
    def test_refuses_what_it_does_not_know(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(options))):
            images.evaluation_transform(noise(8, 8), 4, **options)


KINDS = ["resize_random_crop", "random_resized_crop", "none"]
CROPS = KINDS[:2]


def train(array: np.ndarray, size: int, seed: int, **options: Any) -> np.ndarray:
    return images.training_transform(array, size, np.random.default_rng(seed), **options)


class TestTrainingTransform:
    @settings(max_examples=60, deadline=None)
    @given(
        st.integers(1, 90), st.integers(1, 90), st.integers(1, 48), st.integers(0, 99),
        st.sampled_from(KINDS), st.sampled_from(["crop", "pad"]), st.booleans(),
    )  # fmt: skip
    def test_shape_and_determinism(
        self, height: int, width: int, size: int, seed: int, kind: str, fit: str, flip: bool
    ) -> None:
        array = noise(height, width)
        before = array.copy()
        first, second = (train(array, size, seed, kind=kind, fit=fit, flip=flip) for _ in range(2))
        assert first.shape == (size, size, 3) and first.dtype == np.uint8
        assert first.flags.c_contiguous
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(array, before)

    @pytest.mark.parametrize("kind", CROPS)
    def test_seeds_differ(self, kind: str) -> None:
        results = {train(noise(80, 80), 32, seed, kind=kind).tobytes() for seed in range(10)}
        assert len(results) > 5

    def test_random_crop_reaches_every_corner_and_nothing_else(self) -> None:
        array = noise(16, 16)  # 16 = 14 * 256 / 224: nothing is resized, only cropped.
        crops = {array[y : y + 14, x : x + 14].tobytes() for y in range(3) for x in range(3)}
        assert {train(array, 14, seed).tobytes() for seed in range(200)} == crops

    def test_none_is_the_evaluation_transform(self) -> None:
        array = noise(50, 70)
        for fit in ("crop", "pad"):
            expected = images.evaluation_transform(array, 32, fit)
            np.testing.assert_array_equal(train(array, 32, 0, kind="none", fit=fit), expected)

    def test_flip_mirrors_half_of_the_images(self) -> None:
        array = noise(40, 40)
        plain = images.evaluation_transform(array, 32)
        results = [train(array, 32, seed, kind="none", flip=True) for seed in range(200)]
        mirrored = sum(np.array_equal(result, plain[:, ::-1]) for result in results)
        assert mirrored + sum(np.array_equal(result, plain) for result in results) == 200
        assert 70 < mirrored < 130  # Over four standard deviations either way.

    @pytest.mark.parametrize("kind", CROPS)
    def test_pad_cuts_from_the_whole_image_on_white(self, kind: str) -> None:
        array = np.zeros((10, 100, 3), np.uint8)  # A tenth of the square is black, the rest white.
        white = [(train(array, 32, seed, kind=kind, fit="pad") == 255).mean() for seed in range(20)]
        assert 0.5 < np.mean(white) < 1.0

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"kind": "mixup"}, "unknown augmentation 'mixup'"), ({"fit": "fill"}, "unknown fit")],
    )
    def test_refuses_what_it_does_not_know(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            train(noise(8, 8), 4, 0, **options)


class TestRandomBox:
    """The box of `random_resized_crop`, measured by cutting it out of a picture of coordinates."""

    @staticmethod
    def boxes(height: int, width: int, **options: Any) -> np.ndarray:
        rng = np.random.default_rng(0)
        scale, ratio = options.get("scale", (0.2, 1.0)), options.get("ratio", (3 / 4, 4 / 3))
        return np.array(
            [images._random_box(height, width, rng, scale, ratio) for _ in range(500)], float
        )

    def test_boxes_lie_inside_and_have_the_share_and_shape_asked_for(self) -> None:
        top, left, height, width = self.boxes(400, 400).T
        assert (top >= 0).all() and (left >= 0).all()
        assert (top + height <= 400).all() and (left + width <= 400).all()
        share, shape = height * width / 400**2, width / height
        assert 0.195 < share.min() < 0.25 and 0.9 < share.max() <= 1.0
        assert 0.74 < shape.min() < 0.78 and 1.28 < shape.max() < 1.35
        assert abs(np.log(shape).mean()) < 0.03  # As often upright as lying.

    @pytest.mark.parametrize(
        ("size", "box"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))]
    )
    def test_where_no_box_fits_the_largest_central_one_is_taken(
        self, size: tuple[int, int], box: tuple[int, int, int, int]
    ) -> None:
        assert (self.boxes(*size, scale=(0.9, 1.0)) == box).all()


def test_decoding_is_the_same_in_threads() -> None:
    files = [encode(Image.fromarray(noise(40, 40, seed)), "WEBP") for seed in range(20)]
    with ThreadPoolExecutor(4) as threads:
        for array, data in zip(threads.map(images.decode, files), files, strict=True):
            np.testing.assert_array_equal(array, images.decode(data))
