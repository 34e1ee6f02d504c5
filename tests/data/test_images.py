"""Decoding against pictures whose pixels are known; transforms against Pillow and by property."""

import base64
import importlib
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from otter_jax.data import images
from otter_jax.data.sources import open_source

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)

# `two_colours`, compressed by `jpegtran -arithmetic`, which Pillow cannot write.
ARITHMETIC_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4R"
    "DgsLEBYQERMUFRUVDA8XGBYUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQU"
    "FBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/yQARCAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIR"
    "AxEAPwD/ANlHSnnYgmQAupG6WVBCF+LM4qurjpUguQpkrs2dEMsjX4fL/wDiABCEV1E2YJ1n5DbOl9h6gP/Z"
)


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


def photo_like(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise whose amplitude falls with frequency, as in photographs."""
    across, down = np.fft.fftfreq(width) * width, np.fft.fftfreq(height) * height
    frequency = np.maximum(np.hypot(across, down[:, None]), 1.0)[..., None]
    random = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = np.fft.ifft2(np.fft.fft2(random, axes=(0, 1)) / frequency**1.2, axes=(0, 1)).real
    return np.clip(smooth / smooth.std() * 45 + 128, 0, 255).astype(np.uint8)


def mean_difference(first: Any, second: Any) -> float:
    return float(np.abs(np.asarray(first).astype(int) - np.asarray(second)).mean())


def reason(data: bytes) -> str:
    """Why `data` is refused."""
    with pytest.raises(images.ImageError) as error:
        images.decode(data)
    assert error.value.reason in images.REASONS
    assert str(error.value).startswith(error.value.reason) and "\n" not in str(error.value)
    return error.value.reason


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

    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, file_format: str, orientation: int) -> None:
        four_corners = np.zeros((16, 24, 3), np.uint8)
        four_corners[:8, :12], four_corners[:8, 12:], four_corners[8:, :12] = RED, GREEN, WHITE
        upright = {  # What the EXIF standard says of row 0 and column 0 of what is stored.
            1: four_corners,
            2: four_corners[:, ::-1],  # Row 0 is the top, column 0 the right.
            3: four_corners[::-1, ::-1],
            4: four_corners[::-1],
            5: four_corners.transpose(1, 0, 2),  # Row 0 is the left, column 0 the top.
            6: np.rot90(four_corners, -1),  # Row 0 is the right, column 0 the top.
            7: four_corners[::-1, ::-1].transpose(1, 0, 2),
            8: np.rot90(four_corners),
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if file_format == "WEBP" else {}
        options |= {"subsampling": 0, "quality": 95} if file_format == "JPEG" else {}
        data = encode(Image.fromarray(four_corners), file_format, exif=exif, **options)
        decoded = images.decode(data)
        assert decoded.shape == upright.shape
        assert np.abs(decoded - upright.astype(int)).max() <= 8

    @pytest.mark.filterwarnings("ignore")
    def test_damaged_exif_costs_the_orientation_only(self) -> None:
        exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(40))
        for file_format in ("JPEG", "PNG", "WEBP"):
            decoded = images.decode(encode(two_colours(), file_format, exif=exif))
            assert decoded.shape == (16, 24, 3)
            assert_near(decoded[8, 2], RED, 4)

    @pytest.mark.parametrize(
        "options", [{"progressive": True}, {"keep_rgb": True}, {"dpi": (7, 7)}]
    )
    def test_jpeg_variants(self, options: dict[str, Any]) -> None:
        decoded = images.decode(encode(two_colours(), "JPEG", **options))
        assert_near(decoded[8, 2], RED, 4)
        assert_near(decoded[8, 21], GREEN, 4)

    def test_arithmetic_jpeg(self) -> None:
        decoded = images.decode(ARITHMETIC_JPEG)
        assert_near(decoded[8, 2], RED, 4)
        assert_near(decoded[8, 21], GREEN, 4)

    def test_colour_profiles_are_ignored(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        for file_format in ("JPEG", "PNG"):
            plain = images.decode(encode(two_colours(), file_format))
            profiled = images.decode(encode(two_colours(), file_format, icc_profile=profile))
            np.testing.assert_array_equal(profiled, plain)

    def test_content_decides_and_several_pages_give_the_first(self) -> None:
        pages = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
        data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
        assert_near(images.decode(data)[4, 4], RED, 0)
        assert images.format_and_mode(data) == "TIFF RGB"

    def test_one_bit(self) -> None:
        bits = np.array([[0, 1, 1, 0, 1]], bool)
        for file_format in ("PNG", "TIFF", "BMP"):
            decoded = images.decode(encode(Image.fromarray(bits), file_format))
            np.testing.assert_array_equal(decoded[..., 1], bits * 255)

    def test_cmyk_jpeg(self) -> None:
        decoded = images.decode(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
        assert_near(decoded[8, 8], RED, 4)

    def test_ycck_jpeg(self) -> None:
        """Photoshop's: Adobe's mark says that the first three of four channels are YCbCr."""
        stored = np.array([120, 90, 200, 230])  # Y, Cb, Cr, K; Pillow stores CMYK inverted.
        data = bytearray(encode(Image.new("CMYK", (16, 16), tuple(255 - stored)), "JPEG"))
        data[data.index(b"Adobe") + 11] = 2  # From CMYK to YCCK.
        light, blue, red = stored[:3] - np.array([0, 128, 128])
        rgb = np.array([light + 1.402 * red, light - 0.344 * blue - 0.714 * red,
                        light + 1.772 * blue]).clip(0, 255)  # fmt: skip
        # libjpeg takes 255 minus that for CMY, and Adobe inverts all four.
        expected = (255 - rgb) * stored[3] / 255
        assert np.abs(images.decode(bytes(data))[8, 8] - expected).max() <= 4

    @pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
    def test_sixteen_bits_keep_their_high_byte(self, file_format: str) -> None:
        ramp = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
        decoded = images.decode(encode(Image.fromarray(ramp), file_format))
        np.testing.assert_array_equal(decoded[0, :, 0], [0, 0, 1, 128, 255])
        assert decoded.shape == (1, 5, 3)

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    @pytest.mark.parametrize("channels", [3, 4])
    def test_sixteen_bits_in_colour(self, suffix: str, channels: int) -> None:
        colour = np.array([65535, 30000, 300, 65535][:channels], np.uint16)  # BGR, opaque.
        _, data = cv2.imencode(suffix, np.broadcast_to(colour, (4, 4, channels)).copy())
        assert_near(images.decode(data.tobytes())[2, 2], (300 >> 8, 30000 >> 8, 255), 1)

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


@st.composite
def image_files(draw: st.DrawFn) -> bytes:
    """Files of any mode that a format can hold, some of them turned."""
    mode, file_format = draw(st.sampled_from([
        *((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *((mode, "TIFF") for mode in ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "F", "I")),
        *((mode, "JPEG") for mode in ("L", "RGB", "CMYK")), ("I;16", "PPM"), ("P", "GIF"),
        *((mode, "WEBP") for mode in ("RGB", "RGBA")), ("RGB", "AVIF"), ("RGB", "BMP"),
    ]))  # fmt: skip
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (9, 14, 4), np.uint8)
    image = Image.fromarray(values, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(values[..., :2].copy().view(np.uint16)[..., 0])
    else:
        image = image.convert("RGB").convert(mode) if mode in "1PFI" else image.convert(mode)
    options: dict[str, Any] = {}
    if file_format in ("PNG", "JPEG", "WEBP") and draw(st.booleans()):
        exif = Image.Exif()
        exif[274] = draw(st.integers(1, 8))
        options["exif"] = exif
    if file_format == "PNG" and mode in ("L", "P", "I;16") and draw(st.booleans()):
        options["transparency"] = int(np.asarray(image).max())
    if file_format == "TIFF" and mode in ("1", "L", "I;16") and draw(st.booleans()):
        options["tiffinfo"] = {262: 0}
    return encode(image, file_format, **options)


def array_or_reason(image: Any) -> Any:
    try:
        return images.as_array(image).tolist()
    except images.ImageError as error:
        return error.reason


class TestAsArray:
    @given(data=image_files())
    def test_images_of_pillow_and_paths_are_seen_as_their_files(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "as_array"
        path.write_bytes(data)
        try:
            expected = images.decode(data).tolist()
        except images.ImageError as error:
            expected = error.reason
        for image in (Image.open(io.BytesIO(data)), Image.open(path), path, str(path), data):
            assert array_or_reason(image) == expected

    @pytest.mark.parametrize(
        ("image", "reason"),
        [
            (Image.new("F", (8, 8), 0.5), "unknown range of values"),
            (Image.new("I", (8, 8), 255), "unknown range of values"),
            (Image.new("L", (1, 500)), "too thin"),
        ],
    )
    def test_what_no_file_would_be_decoded_to(self, image: Image.Image, reason: str) -> None:
        assert array_or_reason(image) == reason

    def test_a_broken_file_that_pillow_opened(self) -> None:
        data = encode(two_colours(), "PNG")
        assert array_or_reason(Image.open(io.BytesIO(data[: len(data) // 2]))) == "truncated"

    def test_arrays_are_taken_as_they_are(self) -> None:
        array = noise(3, 4)
        assert images.as_array(array) is array
        for wrong in (array[..., 0], array / 255, array[:0], array.astype(np.uint16)):
            with pytest.raises(ValueError, match=r"an image should be uint8 \[H, W, 3\], found "):
                images.as_array(wrong)

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(FileNotFoundError, match=r"there is no image file gone\.jpg"):
            images.as_array("gone.jpg")

    @pytest.mark.parametrize("wrong", [None, 3, [[1]]])
    def test_what_is_no_image_at_all(self, wrong: Any) -> None:
        with pytest.raises(ValueError, match="an image should be a PIL image or a uint8 array"):
            images.as_array(wrong)


class TestSixteenBitsOfGrey:
    VALUES = np.array([[0, 40_000, 65_535], [256, 255, 40_000]], np.uint16)

    def test_a_transparent_value_lies_on_white(self) -> None:
        data = encode(Image.fromarray(self.VALUES), "PNG", transparency=40_000)
        expected = [[0, 255, 255], [1, 0, 255]]
        np.testing.assert_array_equal(images.decode(data)[..., 0], expected)

    def test_white_as_zero_is_not_inverted(self) -> None:
        sixteen = encode(Image.fromarray(self.VALUES), "TIFF", tiffinfo={262: 0})
        expected = 255 - (self.VALUES >> 8)
        np.testing.assert_array_equal(images.decode(sixteen)[..., 1], expected)
        plain = encode(Image.fromarray(self.VALUES), "TIFF")
        np.testing.assert_array_equal(images.decode(plain)[..., 1], self.VALUES >> 8)


class TestLargeChunks:
    @pytest.mark.parametrize("place", ["text", "texts", "profile"])
    def test_they_do_not_damage_a_png(self, place: str) -> None:
        large = "x" * (1 << 21)
        info, options = PngImagePlugin.PngInfo(), {}
        if place == "profile":
            options["icc_profile"] = b"x" * (1 << 21)
        for number in range(40 if place == "texts" else 1):
            info.add_text(f"key {number}", large, zip=True)
        exif = Image.Exif()
        exif[274] = 6
        data = encode(two_colours(), "PNG", pnginfo=info, exif=exif, **options)
        with pytest.raises(ValueError, match=r"MAX_TEXT|text chunks"):
            Image.open(io.BytesIO(data)).load()
        expected = np.rot90(np.asarray(two_colours()), -1)  # eXIf is kept.
        np.testing.assert_array_equal(images.decode(data), expected)
        assert images.format_and_mode(data) == "PNG RGB"

    def test_a_png_that_is_damaged_besides_is_refused(self) -> None:
        info = PngImagePlugin.PngInfo()
        info.add_text("key", "x" * (1 << 21), zip=True)
        data = encode(two_colours(), "PNG", pnginfo=info)
        assert reason(data[: len(data) - 40]) == "truncated"


class TestFurtherFormats:
    def test_avif_is_upright_and_in_the_right_colours(self) -> None:
        exif = Image.Exif()
        exif[274] = 6
        found = images.decode(encode(two_colours(), "AVIF", exif=exif, quality=95))
        assert found.shape == (24, 16, 3)
        assert_near(found[4, 8], RED, 16)
        assert_near(found[20, 8], GREEN, 16)

    @pytest.mark.parametrize(
        ("file_format", "package"), [("HEIF", "pillow_heif"), ("JXL", "pillow_jxl")]
    )
    def test_formats_of_the_extra(self, file_format: str, package: str) -> None:
        if hasattr(plugin := importlib.import_module(package), "register_heif_opener"):
            plugin.register_heif_opener()  # As its writer needs, too.
        exif = Image.Exif()
        exif[274] = 6
        image = two_colours().resize((240, 160), Image.Resampling.NEAREST)
        data = encode(image, file_format, exif=exif.tobytes(), quality=95)
        assert images.format_and_mode(data) == f"{file_format} RGB"
        found = images.decode(data)
        assert found.shape == (240, 160, 3)
        assert_near(found[40, 80], RED, 8)
        assert_near(found[200, 80], GREEN, 8)
        assert reason(data[: len(data) // 2]) in ("truncated", "damaged", "not an image")
        transparent = encode(Image.new("RGBA", (64, 64), (255, 0, 0, 0)), file_format)
        assert_near(images.decode(transparent)[32, 32], WHITE, 4)

    @pytest.mark.parametrize(
        ("data", "package"),
        [
            (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIF needs pillow_heif"),
            (b"\0\0\0\x1cftypmif1\0\0\0\0heic", "HEIF needs pillow_heif"),
            (b"\xff\x0a etc", "JXL needs pillow_jxl"),
        ],
    )
    def test_a_package_that_is_missing_is_named(
        self, monkeypatch: pytest.MonkeyPatch, data: bytes, package: str
    ) -> None:
        for name in ("pillow_heif", "pillow_jxl"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(images.ImageError, match=rf"not an image: {package}: pip install"):
            images.decode(data)

    def test_an_avif_that_is_a_heif_first(self) -> None:
        data = encode(two_colours(), "AVIF")
        assert data[8:12] == b"avif" and b"mif1" in data[16:40]
        swapped = data[:8] + b"mif1" + data[12:]
        np.testing.assert_array_equal(images.decode(swapped), images.decode(data))


class TestReducedDecoding:
    """A JPEG at a fraction of its size, where that is plenty."""

    @pytest.mark.parametrize(
        ("at_least", "shape"),
        [(None, (403, 600)), (404, (403, 600)), (202, (403, 600)), (201, (202, 300)),
         (100, (101, 150)), (50, (51, 75)), (1, (51, 75))],
    )  # fmt: skip
    def test_the_shorter_side_stays_long_enough(
        self, at_least: int | None, shape: tuple[int, int]
    ) -> None:
        data = encode(Image.fromarray(photo_like(403, 600)), "JPEG")
        assert images.decode(data, at_least=at_least).shape == (*shape, 3)

    def test_it_is_upright_and_in_the_right_colours(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        data = encode(two_colours().resize((240, 160)), "JPEG", exif=exif)
        decoded = images.decode(data, at_least=40)
        assert decoded.shape == (60, 40, 3)
        assert_near(decoded[5, 20], RED, 4)
        assert_near(decoded[55, 20], GREEN, 4)

    def test_other_formats_are_decoded_whole(self) -> None:
        assert images.decode(encode(two_colours(), "PNG"), at_least=1).shape == (16, 24, 3)

    @pytest.mark.parametrize("kind", ["resize_random_crop", "random_resized_crop", "moco"])
    def test_no_view_needs_more_than_half_of_it(self, kind: str) -> None:
        side = images.sufficient_side(100, kind)
        if kind == "resize_random_crop":
            assert side == 2 * 114
        else:
            smallest = TestRandomBox.boxes(side, side)[:, 2:].min()
            assert 200 <= smallest < 1.1 * 200

    def test_nothing_is_spared_without_an_augmentation(self) -> None:
        assert images.sufficient_side(224, "none") is None

    @pytest.mark.parametrize("height", [1030, 1200])
    def test_the_view_stays_as_it_was(self, height: int) -> None:
        data = encode(Image.fromarray(photo_like(height, 1300)), "JPEG", quality=90)
        side = images.sufficient_side(224, "resize_random_crop")
        whole, reduced = images.decode(data), images.decode(data, at_least=side)
        assert reduced.shape[0] == height // 2
        expected = Image.fromarray(whole).resize((224, 224), Image.Resampling.BICUBIC)
        bilinear = Image.fromarray(whole).resize((224, 224), Image.Resampling.BILINEAR)
        found = images._resize_opencv(reduced, 224, 224)
        assert mean_difference(found, expected) < 1.3 * mean_difference(bilinear, expected)


class TestDecodeRefuses:
    @pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
    @pytest.mark.parametrize("share", [0.3, 0.9])
    def test_a_cut_file(self, file_format: str, share: float) -> None:
        data = encode(Image.fromarray(noise(64, 64)), file_format)
        assert reason(data[: int(share * len(data))]) == "truncated"

    @pytest.mark.parametrize(
        ("data", "expected"),
        [(b"", "zero bytes"), (b"<html>404</html>", "not an image"), (bytes(9), "not an image")],
    )
    def test_what_is_no_image(self, data: bytes, expected: str) -> None:
        assert reason(data) == expected

    def test_formats_that_run_programs(self) -> None:
        assert reason(encode(two_colours(), "EPS")) == "not an image"

    def test_damage(self) -> None:
        data = bytearray(encode(Image.fromarray(noise(64, 64)), "PNG"))
        data[len(data) // 2] ^= 255
        assert reason(bytes(data)) == "damaged"

    def test_too_many_pixels_before_decoding_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encode(Image.new("1", (20_000, 10_000)), "PNG")  # 25 KB that would become 600 MB.
        assert reason(data) == "too many pixels"
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(images.ImageError, match=r"20000 x 10000, at most 178,956,970") as error:
            images.decode(data)
        assert error.value.reason == "too many pixels"

    @pytest.mark.parametrize("size", [(5000, 1), (1, 5000)])
    def test_hairlines(self, size: tuple[int, int]) -> None:
        assert reason(encode(Image.new("RGB", size), "PNG")) == "too thin"

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_values_of_which_nobody_knows_the_range(self, dtype: type) -> None:
        data = encode(Image.fromarray(np.ones((8, 8), dtype)), "TIFF")
        assert reason(data) == "unknown range of values"


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

    @pytest.mark.parametrize("quality", [60, 90])
    @pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 427), (300, 700)])
    def test_photographs_as_pillow_decodes_and_resamples_them(
        self, quality: int, height: int, width: int
    ) -> None:
        data = encode(Image.fromarray(photo_like(height, width)), "JPEG", quality=quality)
        self.assert_as_pillow(data)

    def test_drawings_as_pillow_decodes_and_resamples_them(self) -> None:
        source = open_source("open_clipart")
        for number in range(0, len(source), 200):
            self.assert_as_pillow(source[number].image)

    @staticmethod
    def assert_as_pillow(data: bytes) -> None:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        ratio = 256 / min(image.size)
        size = [256 if s == min(image.size) else int(s * ratio + 1e-9) for s in image.size]
        resized = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - 224) / 2) for side in size)
        expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
        found = images.evaluation_transform(images.decode(data), 224)
        assert np.abs(found - expected).max() <= 2  # Builds of the JPEG decoder may round.

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

    @pytest.mark.parametrize("side", [240, 300, 400, 448, 470, 530, 540, 900, 1080])
    def test_resampling_is_nearly_antialiased_bicubic(self, side: int) -> None:
        array = photo_like(side, side)
        expected, bilinear = (
            Image.fromarray(array).resize((224, 224), method)
            for method in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
        )
        found = images._resize_opencv(array, 224, 224)
        assert mean_difference(found, expected) < 1.15 * mean_difference(bilinear, expected)

    @pytest.mark.parametrize("side", [380, 448, 530, 600, 900])
    def test_shrinking_does_not_alias(self, side: int) -> None:
        """Stripes of one pixel fade to grey; without antialiasing they become broad ones."""
        stripes = np.zeros((side, side, 3), np.uint8)
        stripes[:, ::2] = 255
        assert images._resize_opencv(stripes, 224, 224).std() < 0.25 * stripes.std()

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
