"""The public model: images and texts of any form in, unit rows and probabilities out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import otter_jax
from otter_jax import encoder, sharding, train
from otter_jax.data import images as image_functions
from otter_jax.models import dual_encoder


@pytest.fixture
def model(tiny_config: Callable) -> encoder.Encoder:
    config = tiny_config()
    return encoder.make_encoder(
        config, *dual_encoder.split(encoder.build_module(config)), sharding.make_mesh()
    )


def photos(count: int, size: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, size=(count, size, size, 3), dtype=np.uint8)


def test_images_as_arrays_and_as_pil_agree(model: encoder.Encoder) -> None:
    arrays = photos(3)
    found = model.encode_image(arrays)
    assert found.shape == (3, 8) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(found, model.encode_image([Image.fromarray(x) for x in arrays]))


def test_transparent_and_grey_pil_images(model: encoder.Encoder) -> None:
    grey = Image.fromarray(photos(1)[0, :, :, 0])
    clear = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    white = Image.new("RGB", (40, 30), "white")
    found = model.encode_image([grey, clear, white])
    np.testing.assert_array_equal(found[1], found[2])  # Transparent is white, as in training.


def test_images_are_always_transformed(model: encoder.Encoder) -> None:
    # Of the model's own size too: the centre crop is part of the protocol.
    image = photos(1, size=model.image_size)[0]
    wanted = image_functions.evaluation_transform(image, model.image_size)
    np.testing.assert_array_equal(model.transform(image), wanted)
    assert (wanted != image).any()


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_what_is_no_image_is_refused(model: encoder.Encoder, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an image should be uint8 \[H, W, 3\]"):
        model.encode_image([image])


def test_a_file_name_or_a_lone_image_is_no_list_of_images(model: encoder.Encoder) -> None:
    with pytest.raises(ValueError, match=r"found 'cat.jpg'; files are opened with PIL"):
        model.encode_image(["cat.jpg"])
    with pytest.raises(ValueError, match="a list of images, found Image"):
        model.classify(Image.new("RGB", (8, 8)), ["a cat"])


def test_a_string_is_no_list_of_strings(model: encoder.Encoder) -> None:
    with pytest.raises(ValueError, match="found the string 'a cat'"):
        model.encode_text("a cat")
    with pytest.raises(ValueError, match="found the string 'cat'"):
        model.classify(photos(1), "cat")


def test_number_of_images_changes_nothing(model: encoder.Encoder) -> None:
    many = model.encode_image(photos(21))  # More than one batch, the last one padded.
    np.testing.assert_allclose(many[20:], model.encode_image(photos(21)[20:]), atol=1e-6)


def test_texts(model: encoder.Encoder) -> None:
    found = model.encode_text(["a red circle", "a blue square"])
    assert found.shape == (2, 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert model.encode_text([]).shape == (0, 8)


def test_probabilities_follow_the_similarities(model: encoder.Encoder) -> None:
    images, labels = photos(2), ["circle", "square", "ring"]
    found = model.classify(images, labels)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
    texts = model.encode_text([f"a photo of {label}." for label in labels])
    logits = np.exp(3.9) * model.encode_image(images) @ texts.T
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), rtol=1e-4)


def test_loaded_model_is_the_trained_one(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**{"total_steps": 2, "model.image.frozen": True})
    results = train.train(config, tmp_path)
    model = otter_jax.load(tmp_path)
    fresh = encoder.make_encoder(
        config, *dual_encoder.split(encoder.build_module(config)), sharding.make_mesh()
    )
    assert (model.encode_image(photos(1)) != fresh.encode_image(photos(1))).any()
    (pairs,) = config.evaluate.sets
    assert results[pairs]  # The same variables gave these.
    again = otter_jax.load(str(tmp_path))
    np.testing.assert_array_equal(model.encode_text(["a ring"]), again.encode_text(["a ring"]))


def test_loading_what_is_no_workdir(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a workdir"):
        otter_jax.load(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        _ = otter_jax.laod


def test_tokenizer_is_needed(tiny_config: Callable) -> None:
    with pytest.raises(ValueError, match=r"model\.text\.tokenizer"):
        encoder.make_tokenizer(tiny_config(**{"model.text.tokenizer": None}))
