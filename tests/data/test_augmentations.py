"""Adjustments of colour against torchvision's stored results; views by their properties."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax.data import augmentations, images
from otter_jax.data.resizing import resize_as

GOLDEN = Path(__file__).parents[1] / "golden" / "augmentations" / "torchvision.npz"
ADJUSTMENTS = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    """Coloured, and darker on the left than on the right, in any crop."""
    ramp = np.linspace(30, 180, width)[None, :, None] + np.array([0, 20, 40])
    return np.broadcast_to(ramp, (height, width, 3)).astype(np.uint8)


def noise(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_within(result: np.ndarray, expected: np.ndarray, levels: int) -> None:
    assert result.dtype == np.uint8 and result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).max() <= levels


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """What "moco" does to an image, in order: (function, its second argument)."""
    recorded: list[tuple[str, float]] = []

    def record(name: str) -> None:
        original: Callable = getattr(augmentations, name)

        def wrapper(image: np.ndarray, *amount: Any) -> np.ndarray:
            recorded.append((name, *amount))
            return original(image, *amount)

        monkeypatch.setattr(augmentations, name, wrapper)

    for name in (*ADJUSTMENTS, "gaussian_blur", "color_jitter", "greyscale"):
        record(name)
    return recorded


@pytest.mark.parametrize("name", [*ADJUSTMENTS, "gaussian_blur"])
def test_results_are_those_of_torchvision(name: str) -> None:
    golden = np.load(GOLDEN)
    for amount, expected in zip(golden[f"{name}/amounts"], golden[name], strict=True):
        assert_within(getattr(augmentations, name)(golden["image"], amount), expected, levels=1)


def test_grey_is_that_of_torchvision() -> None:
    golden = np.load(GOLDEN)
    assert_within(augmentations.greyscale(golden["image"]), golden["greyscale"], levels=1)


def test_amounts_that_change_nothing() -> None:
    image = noise()
    for name, amount in zip((*ADJUSTMENTS, "gaussian_blur"), (1, 1, 1, 0, 0.1), strict=True):
        np.testing.assert_array_equal(getattr(augmentations, name)(image, amount), image)
    assert_within(augmentations.adjust_hue(image, 1.0), image, levels=0)


def test_jitter_draws_every_order_and_the_whole_range(calls: list) -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        augmentations.color_jitter(noise(2, 2), rng)
    adjusted = [call for call in calls if call[0] in ADJUSTMENTS]
    orders = Counter(tuple(name for name, _ in adjusted[i : i + 4]) for i in range(0, 1600, 4))
    assert len(orders) == 24 and max(orders.values()) < 40
    for name in ADJUSTMENTS:
        amounts = np.array([amount for called, amount in adjusted if called == name])
        low, high = (-0.1, 0.1) if name == "adjust_hue" else (0.6, 1.4)
        expected = np.quantile([low, high], [0.1, 0.5, 0.9])
        assert amounts.min() >= low and amounts.max() <= high
        np.testing.assert_allclose(
            np.quantile(amounts, [0.1, 0.5, 0.9]), expected, atol=0.1 * (high - low)
        )


def test_moco_does_each_thing_as_often_as_it_should(calls: list) -> None:
    rng, runs = np.random.default_rng(0), 1000
    views = [augmentations.augment(gradient(), 16, rng, "moco") for _ in range(runs)]
    count = Counter(name for name, *_ in calls)
    # Saturation asks for grey as well, once in every jitter.
    grey = count["greyscale"] - count["adjust_saturation"]
    mirrored = sum(view[:, 0].mean() > view[:, -1].mean() for view in views)
    shares = np.array([count["color_jitter"], grey, count["gaussian_blur"], mirrored]) / runs
    np.testing.assert_allclose(shares, [0.8, 0.2, 0.5, 0.5], atol=0.05)
    sigmas = [amount for name, *rest in calls if name == "gaussian_blur" for amount in rest]
    assert 0.1 <= min(sigmas) < 0.2 and 1.9 < max(sigmas) <= 2.0


@pytest.mark.parametrize(("kind", "smallest"), [("light", 0.5), ("moco", 0.2)])
def test_crops_keep_the_share_that_they_should(kind: str, smallest: float, calls: list) -> None:
    places = np.arange(240, dtype=np.uint8)  # every pixel says where it is
    image = np.stack([*np.meshgrid(places, places), np.zeros((240, 240), np.uint8)], axis=-1)
    shares = []
    for seed in range(400):
        calls.clear()
        view = augmentations.augment(image, 120, np.random.default_rng(seed), kind)
        if not calls:  # neither colours nor blur were touched
            sides = np.ptp(view[..., :2].astype(float), axis=(0, 1)) / 239
            shares.append(sides.prod())
    assert smallest - 0.02 < min(shares) < smallest + 0.1 and 0.85 < max(shares) <= 1


@pytest.mark.parametrize(("flip", "share"), [(False, 0.0), (True, 0.5)])
def test_light_is_mirrored_only_if_asked(flip: bool, share: float) -> None:
    rng = np.random.default_rng(0)
    views = [augmentations.augment(gradient(), 8, rng, "light", flip=flip) for _ in range(400)]
    mirrored = np.mean([view[:, 0].mean() > view[:, -1].mean() for view in views])
    np.testing.assert_allclose(mirrored, share, atol=0.1 * flip)


@pytest.mark.parametrize("kind", ["none", "resize_random_crop", "random_resized_crop"])
def test_the_crops_of_images_are_unchanged(kind: str) -> None:
    for fit in ("crop", "pad"):
        result = augmentations.augment(noise(), 16, np.random.default_rng(3), kind, fit, flip=True)
        expected = images.training_transform(
            noise(), 16, np.random.default_rng(3), kind, fit, flip=True
        )
        np.testing.assert_array_equal(result, expected)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    size=st.integers(1, 40),
    kind=st.sampled_from(augmentations.AUGMENTATIONS),
    fit=st.sampled_from(["crop", "pad"]),
    seed=st.integers(0, 99),
)
def test_any_image_gives_the_size_and_the_same_twice(
    height: int, width: int, size: int, kind: str, fit: str, seed: int
) -> None:
    image = noise(height, width)
    original = image.copy()
    first, second = (
        augmentations.augment(image, size, np.random.default_rng(seed), kind, fit) for _ in range(2)
    )
    assert first.shape == (size, size, 3) and first.dtype == np.uint8
    assert first.flags.c_contiguous
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, original)


def test_without_randomness_the_weights_own_way_is_taken() -> None:
    image, rng = noise(), np.random.default_rng(0)
    resize = ("squash", 1.0, "bilinear")
    found = augmentations.augment(image, 16, rng, "none", resize=resize)
    np.testing.assert_array_equal(found, resize_as(image, 16, *resize))
    usual = augmentations.augment(image, 16, rng, "none")
    assert (found != usual).any()
    padded = augmentations.augment(image, 16, rng, "none", "pad", resize=resize)
    np.testing.assert_array_equal(padded, augmentations.augment(image, 16, rng, "none", "pad"))
    both = {augmentations.augment(image, 16, rng, "none", flip=True, resize=resize).tobytes()
            for _ in range(20)}  # fmt: skip
    assert both == {found.tobytes(), np.ascontiguousarray(found[:, ::-1]).tobytes()}


def test_unknown_augmentation() -> None:
    with pytest.raises(ValueError, match=r"unknown augmentation 'mocha'; one of none, .*, moco"):
        augmentations.augment(noise(), 16, np.random.default_rng(0), "mocha")
