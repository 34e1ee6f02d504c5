"""Writes small random checkpoints of further families, and what their own libraries compute.

    python tests/golden/towers/make_golden_families.py     (extra [oracle-sweep])

Each becomes a folder in families/, as the library saves it, with outputs.npz beside the weights.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models import save_for_hf

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.oracle import transformers_cases as tf
from tests.oracle.comparing import Reference, images, randomise

FOLDER = Path(__file__).parent / "families"

TEXT = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 16,
}  # fmt: skip
IMAGE = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
STAGES = {"hidden_sizes": [4, 6, 8], "depths": [1, 1, 2], "num_stages": 3}
VIT = {"embed_dim": 16, "num_heads": 2, "depth": 1, "img_size": 32, "num_classes": 0}


def of_timm(name: str, size: int, **arguments: object) -> Callable[[Path], Reference]:
    """Return what writes a model of timm's."""

    def write(folder: Path) -> Reference:
        model = timm.create_model(name, **arguments)
        randomise(model)
        model.eval()
        pixels = images(size)
        with torch.no_grad():
            features = model.forward_head(model.forward_features(pixels), pre_logits=True)
        save_for_hf(model, folder, safe_serialization=True)
        return Reference(image=(pixels.numpy(), features.numpy()))

    return write


def of_transformers(make: Callable, name: str, fields: dict) -> Callable[[Path], Reference]:
    """Return what writes a model of transformers'."""
    return make(name, fields).write


def families() -> dict[str, Callable[[Path], Reference]]:
    """Return what writes each family, by the name of its folder."""
    tf.VOCABULARY = 40
    tf.TEXT, tf.CLIP_TEXT, tf.IMAGE, tf.STAGES = (
        TEXT, {**TEXT, "eos_token_id": 39}, IMAGE, STAGES)  # fmt: skip
    deberta = {**tf.DEBERTA, "position_buckets": 6}
    narrow = {"channels": (8, 8, 8, 8), "layers": (1, 1, 1, 1), "num_classes": 0}
    thin = {"dims": (4, 6, 8, 8), "depths": (1, 1, 1, 1), "num_classes": 0}
    return {
        "electra": of_transformers(tf.text_case, "Electra", {"embedding_size": 8}),
        "albert": of_transformers(tf.text_case, "Albert", {"embedding_size": 8}),
        "modernbert": of_transformers(
            tf.text_case, "ModernBert", {**tf.MODERN, "local_attention": 4}
        ),
        "deberta": of_transformers(tf.text_case, "DebertaV2", deberta),
        "siglip_text": of_transformers(tf.text_case, "SiglipText", {}),
        "siglip_vision": of_transformers(tf.image_case, "SiglipVision", {}),
        "dinov2": of_transformers(tf.image_case, "Dinov2", {"use_swiglu_ffn": True}),
        "dinov2_registers": of_transformers(tf.image_case, "Dinov2WithRegisters", {}),
        "convnext": of_transformers(tf.image_case, "ConvNext", {}),
        "convnextv2": of_transformers(tf.image_case, "ConvNextV2", {}),
        "timm_siglip": of_timm("vit_base_patch16_siglip_224", 32, **VIT),
        "timm_gap": of_timm("vit_medium_patch16_reg4_gap_256", 32, **VIT),
        "timm_deit3": of_timm("deit3_small_patch16_224", 32, **VIT),
        "timm_resnet_d": of_timm("resnet18d", 40, stem_width=8, **narrow),
        "timm_resnet_t": of_timm("resnet14t", 40, stem_width=8, **narrow),
        "timm_convnext": of_timm("convnext_atto", 64, **thin),
    }


def main() -> None:
    """Write every family's folder."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, write in families().items():
        folder = FOLDER / name
        folder.mkdir(parents=True)
        reference = write(folder)
        inputs, outputs = (reference.image or reference.text)[:-1], (
            reference.image or reference.text)[-1]  # fmt: skip
        names = ("images",) if reference.image else ("tokens", "mask")
        np.savez_compressed(
            folder / "outputs.npz", features=outputs, **dict(zip(names, inputs, strict=True))
        )


if __name__ == "__main__":
    main()
