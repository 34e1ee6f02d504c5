"""Exported folders in others' hands: their numbers from pictures and strings are ours."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from models.test_export import TOWERS, dual_encoder, random_tower
from PIL import Image, ImageFilter

from otter_jax.embedding import encoder
from otter_jax.models.export import export_dual_encoder, export_tower

pytestmark = pytest.mark.oracle

TOLERANCE = 1e-4
TEXTS = ["a red circle", "a photo of a blue ring", "green"]
HUGGING_FACE_RESIZE = ("shortest_floor", 1.0, "bicubic")
OPEN_CLIP_RESIZE = ("shortest", 1.0, "bicubic")
# Of all remainders at the crop, taller and wider than the model's 24 pixels, up and down.
SIZES = ((40, 50), (41, 53), (90, 37), (24, 24), (25, 60), (300, 211), (20, 23), (47, 31))


def write_clip(
    folder: Path, tokenizer_folder: Path, resize: tuple[str, float, str] | None
) -> encoder.Encoder:
    """A CLIP as `Encoder.save` writes it, with a way to its images."""
    model = dual_encoder("clip vit", "clip text", "linear_no_bias")
    model.image.config = dataclasses.replace(model.image.config, resize=resize)
    model.log_scale.set_value(np.float32(2.0))
    data = {"image_size": 24, "fit": "crop", "max_tokens": 8, "scale_bounds": (None, None)}
    first = folder.with_name("first")
    export_dual_encoder(model, first, data)
    encoder.copy_tokenizer(tokenizer_folder, first)
    written = encoder.load(first)
    written.save(folder)
    return written


def photos(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Image.Image]:
    """Pictures of noise that is a little blurred, as a camera's is."""
    draw = np.random.default_rng(0)
    noise = [draw.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    return [Image.fromarray(each).filter(ImageFilter.GaussianBlur(1)) for each in noise]


def unit(rows: object) -> np.ndarray:
    """Rows of length 1, of a tensor or of transformers' output."""
    rows = np.asarray(getattr(rows, "pooler_output", rows))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_clip_processor_and_model(tmp_path: Path, tokenizer_folder: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ours = write_clip(tmp_path / "out", tokenizer_folder, HUGGING_FACE_RESIZE)
    network = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out", backend="pil")
    given = processor(text=TEXTS, images=photos(), return_tensors="pt", padding=True)
    with torch.no_grad():
        images = network.get_image_features(given["pixel_values"])
        texts = network.get_text_features(given["input_ids"], given["attention_mask"])
    np.testing.assert_allclose(unit(images), ours.encode_image(photos()), atol=TOLERANCE)
    np.testing.assert_allclose(unit(texts), ours.encode_text(TEXTS), atol=TOLERANCE)


@pytest.mark.parametrize(("backend", "tolerance"), [("pil", TOLERANCE), ("torchvision", 5e-3)])
def test_zero_shot_pipeline(
    tmp_path: Path, tokenizer_folder: Path, backend: str, tolerance: float
) -> None:
    """The processor of Pillow gives our numbers; that of tensors rounds bytes otherwise."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    if backend == "torchvision":
        pytest.importorskip("torchvision", reason="the extra [oracle-sweep]")
    ours = write_clip(tmp_path / "out", tokenizer_folder, HUGGING_FACE_RESIZE)
    pipe = transformers.pipeline(
        "zero-shot-image-classification",
        model=str(tmp_path / "out"),
        image_processor=transformers.AutoImageProcessor.from_pretrained(
            tmp_path / "out", backend=backend
        ),
    )
    wanted = ours.classify(photos(), TEXTS, "{}")
    for found, row in zip(
        pipe(photos(), candidate_labels=TEXTS, hypothesis_template="{}"), wanted, strict=True
    ):
        scores = {each["label"]: each["score"] for each in found}
        np.testing.assert_allclose([scores[text] for text in TEXTS], row, atol=tolerance)


def test_open_clip_reads_the_folder(tmp_path: Path, tokenizer_folder: Path) -> None:
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip", reason="the extra [oracle-sweep]")
    ours = write_clip(tmp_path / "out", tokenizer_folder, OPEN_CLIP_RESIZE)
    name = f"local-dir:{tmp_path / 'out'}"
    network, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    pixels = torch.stack([transform(picture) for picture in photos()])
    with torch.no_grad():
        images, texts = network.eval().encode_image(pixels), network.encode_text(tokenizer(TEXTS))
    np.testing.assert_allclose(unit(images), ours.encode_image(photos()), atol=TOLERANCE)
    np.testing.assert_allclose(unit(texts), ours.encode_text(TEXTS), atol=TOLERANCE)


@pytest.mark.parametrize("name", ["bert", "mpnet", "roberta"])
def test_sentence_transformers_reads_a_text_tower(
    tmp_path: Path, tokenizer_folder: Path, name: str
) -> None:
    library = pytest.importorskip("sentence_transformers", reason="the extra [oracle-sweep]")
    tower = random_tower(*TOWERS[name])
    export_tower(tower, tmp_path)
    tokenizer = encoder.Tokenizer(tokenizer_folder, 8)
    tokenizer.save(tmp_path)
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    ours = np.asarray(nnx.jit(lambda tower, *text: tower(*text).pooled)(tower, *tokenizer(TEXTS)))
    np.testing.assert_allclose(theirs, ours, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("image", ["clip vit", "resnet"])
def test_reading_a_folder_here_says_nothing(
    tmp_path: Path, tokenizer_folder: Path, capfd: pytest.CaptureFixture, image: str
) -> None:
    model = dual_encoder(image, "clip text", "linear_no_bias")
    export_dual_encoder(model, tmp_path, {"image_size": 24, "fit": "crop", "max_tokens": 8})
    encoder.Tokenizer(tokenizer_folder, 8).save(tmp_path)
    capfd.readouterr()
    encoder.load(tmp_path)
    assert capfd.readouterr() == ("", "")
