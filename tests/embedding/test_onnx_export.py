"""ONNX files give the model's numbers in onnxruntime, from pictures and strings on."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from models.test_export import OTHERS, TOWERS, random_tower

from otter_jax.commands import export as command
from otter_jax.embedding import encoder, onnx_export
from otter_jax.models import convnext
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.export import export_dual_encoder
from otter_jax.models.projections import make_projection

CONVNEXT = (convnext.ConvNext, {"widths": (8, 16), "depths": (1, 1)})
TOWERS_HERE = TOWERS | OTHERS | {"convnext": CONVNEXT}
PIXELS, LENGTH = 32, 8


def write_model(folder: Path, tokenizer_folder: Path, image: str, text: str) -> Path:
    """A random model as `Encoder.save` writes it."""
    settings = {"image_size": PIXELS} if "image_size" in TOWERS_HERE[image][1] else {}
    towers = [
        random_tower(TOWERS_HERE[image][0], TOWERS_HERE[image][1] | settings),
        random_tower(*TOWERS_HERE[text]),
    ]
    projections = [make_projection("linear", each.width, 10, rngs=nnx.Rngs(0)) for each in towers]
    data = {"image_size": PIXELS, "fit": "crop", "max_tokens": LENGTH}
    export_dual_encoder(DualEncoder(*towers, *projections), folder, data)
    encoder.copy_tokenizer(tokenizer_folder, folder)
    return folder


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("image", "text"),
    [
        ("resnet", "bert"),
        ("clip vit", "clip text"),
        ("efficientnet", "distilbert"),
        ("convnext", "mpnet"),
    ],
)
def test_onnxruntime_gives_the_same_embeddings(
    tmp_path: Path, tokenizer_folder: Path, image: str, text: str
) -> None:
    pytest.importorskip("jax2onnx", reason="the extra [onnx] is not installed")
    import onnxruntime
    from transformers import AutoTokenizer

    model = encoder.load(write_model(tmp_path / "model", tokenizer_folder, image, text))
    out = tmp_path / "onnx"
    command.main([str(tmp_path / "model"), str(out), "--format=onnx"])
    pixels = json.loads((out / "preprocessor_config.json").read_text())
    photos = np.random.default_rng(0).integers(0, 255, (3, 40, 50, 3), dtype=np.uint8)
    seen = np.stack([model.transform(photo) for photo in photos]) / 255
    seen = (seen - pixels["image_mean"]) / pixels["image_std"]
    texts = ["a red circle", "a photo of a blue ring", "green"]
    tokens = AutoTokenizer.from_pretrained(out)(
        texts, padding="max_length", truncation=True, return_tensors="np"
    )
    given = {
        "image": {"pixel_values": np.moveaxis(seen, -1, 1).astype(np.float32)},
        "text": {name: tokens[name] for name in ("input_ids", "attention_mask")},
    }
    wanted = {"image": model.encode_image(photos), "text": model.encode_text(texts)}
    for name, arrays in given.items():
        session = onnxruntime.InferenceSession(out / f"{name}.onnx")
        assert [each.name for each in session.get_outputs()] == [f"{name}_embeds"]
        for count in (1, 3):
            (found,) = session.run(None, {key: array[:count] for key, array in arrays.items()})
            np.testing.assert_allclose(found, wanted[name][:count], atol=1e-5)
    described = json.loads((out / onnx_export.DESCRIPTION_FILE).read_text())
    assert described["logit_scale"] == pytest.approx(49.4, abs=0.1)
    assert (described["image_size"], described["max_tokens"]) == (PIXELS, LENGTH)


@pytest.mark.oracle
def test_a_file_that_gives_other_numbers_is_refused(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jax2onnx", reason="the extra [onnx] is not installed")
    model = encoder.load(write_model(tmp_path / "model", tokenizer_folder, "vit", "bert"))
    convert = onnx_export._convert

    def convert_wrongly(library, program):
        wrong = program._replace(function=lambda *arrays: program.function(*arrays) * 1.001)
        return convert(library, wrong)

    monkeypatch.setattr(onnx_export, "_convert", convert_wrongly)
    with pytest.raises(ValueError, match=r"image.onnx, of ViT, is off by .* in onnxruntime"):
        onnx_export.save_onnx(model, tmp_path / "onnx")


@pytest.mark.oracle
def test_a_tower_that_cannot_be_converted_is_named(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jax2onnx", reason="the extra [onnx] is not installed")
    model = encoder.load(write_model(tmp_path / "model", tokenizer_folder, "vit", "bert"))
    monkeypatch.setattr(onnx_export.objectives, "normalize", jax.numpy.linalg.inv)
    with pytest.raises(ValueError, match="the image tower, ViT, cannot be written as ONNX") as hit:
        onnx_export.save_onnx(model, tmp_path / "onnx")
    assert "\n" not in str(hit.value)


def test_the_extra_is_named_where_it_is_missing(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model", tokenizer_folder, "vit", "bert")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs jax2onnx; run: pip install -e \"\.\[onn"):
        command.main([str(folder), str(tmp_path / "onnx"), "--format=onnx"])
    assert not (tmp_path / "onnx").exists()
