"""Writes the reference data of the ViT and CLIP tests with transformers, timm and open_clip.

Needs torch, transformers, timm, open_clip and safetensors:

    python tests/golden/towers/make_golden_transformers.py

The tests read the files it writes and need none of these. They also import it for the inputs, and
the comparisons marked `oracle` call its functions; hence these packages are imported inside the
functions only. Weights are stored in half precision, which every reader has to cope with anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent
IMAGE_SIZE, PATCH_SIZE = 12, 4
OTHER_IMAGE_SIZE = 20
END_OF_TEXT = 96

TRANSFORMER = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "intermediate_size": 40,
}
VIT = {
    **TRANSFORMER,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "layer_norm_eps": 3e-4,
}
CLIP_VISION = {**VIT, "hidden_act": "quick_gelu", "layer_norm_eps": 2e-3}
CLIP_TEXT = {
    **TRANSFORMER,
    "vocab_size": END_OF_TEXT + 1,
    "max_position_embeddings": 13,
    "hidden_act": "gelu",
    "layer_norm_eps": 5e-4,
    "bos_token_id": END_OF_TEXT - 1,
    "eos_token_id": END_OF_TEXT,
}


def image_batch(count: int = 3, size: int = IMAGE_SIZE) -> np.ndarray:
    """Return float32 [count, size, size, 3] from a normal distribution."""
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)


def text_batch() -> tuple[np.ndarray, np.ndarray]:
    """Return tokens int32 [4, 11] and their mask: texts of 11, 7, 3 and 2 tokens."""
    mask = np.arange(11) < np.array([[11], [7], [3], [2]])
    tokens = np.random.default_rng(0).integers(1, END_OF_TEXT - 1, mask.shape)
    tokens[:, 0] = END_OF_TEXT - 1
    tokens[np.arange(4), mask.sum(1) - 1] = END_OF_TEXT
    return np.where(mask, tokens, 0).astype(np.int32), mask


def randomized(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every weight a value that shows when it is misplaced, in evaluation mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        is_norm = value.ndim == 1 and name.endswith("weight")
        scale = 1.5 * value.shape[-1] ** -0.5 if value.ndim == 2 else 0.3
        value.data = (noise * scale + is_norm).half().float()
    return network.eval()


def hugging_face_vit(**overrides: Any) -> torch.nn.Module:
    """Return a random ViT of transformers."""
    from transformers import ViTConfig, ViTModel

    return randomized(ViTModel(ViTConfig(**{**VIT, **overrides})))


def hugging_face_clip(vision: Mapping[str, Any], text: Mapping[str, Any]) -> torch.nn.Module:
    """Return a random CLIP of transformers; arguments beside `CLIP_VISION` and `CLIP_TEXT`."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        vision_config={**CLIP_VISION, **vision},
        text_config={**CLIP_TEXT, **text},
        projection_dim=20,
    )
    return randomized(CLIPModel(config))


def timm_vit(**overrides: Any) -> torch.nn.Module:
    """Return a random ViT of timm."""
    from timm.models.vision_transformer import VisionTransformer

    settings = {
        "img_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 6,
        "mlp_ratio": 40 / 48,
        "num_classes": 5,
    }
    return randomized(VisionTransformer(**{**settings, **overrides}))


def open_clip_model() -> torch.nn.Module:
    """Return a random CLIP of open_clip, with OpenAI's names."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(
        layers=2, width=48, head_width=8, patch_size=PATCH_SIZE, image_size=IMAGE_SIZE, mlp_ratio=2
    )
    text = CLIPTextCfg(
        context_length=11, vocab_size=END_OF_TEXT + 1, width=32, heads=4, layers=2, mlp_ratio=2
    )
    return randomized(CLIP(20, vision, text, quick_gelu=True))


def channels_first(images: np.ndarray) -> torch.Tensor:
    """[B, H, W, 3] -> [B, 3, H, W]."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2)


def outputs_and_gradients(
    network: torch.nn.Module, run: Callable[[], Any], pooled_of: Callable[[Any], torch.Tensor]
) -> dict[str, np.ndarray]:
    """Return a network's pooled and last states, and what its gradients come to.

    The scalar that is differentiated is the sum of the pooled features' cubes. Of the gradient of
    the parameter NAME, `gradient/NAME` is its norm and its product with `wave`.
    """
    network.zero_grad()
    output = run()
    pooled = pooled_of(output)
    pooled.pow(3).sum().backward()
    results = {
        "pooled": pooled.detach().numpy(),
        "sequence": output.last_hidden_state.detach().numpy(),
    }
    named = network.state_dict(keep_vars=True)
    for name, parameter in named.items():
        if getattr(parameter, "grad", None) is not None:
            results[f"gradient/{name}"] = summary(parameter.grad.numpy())
    return results


def summary(gradient: np.ndarray) -> np.ndarray:
    """Return a gradient's norm and its product with a wave of as many elements, float64 [2]."""
    flat = np.asarray(gradient, np.float64).ravel()
    return np.array([np.linalg.norm(flat), flat @ np.cos(0.7 * np.arange(flat.size))])


def hugging_face_image_outputs(
    network: torch.nn.Module, images: np.ndarray
) -> dict[str, np.ndarray]:
    """Return a transformers ViT's or CLIP vision model's outputs; see `outputs_and_gradients`."""
    is_clip = hasattr(network, "post_layernorm")
    return outputs_and_gradients(
        network,
        lambda: network(channels_first(images)),
        lambda output: output.pooler_output if is_clip else output.last_hidden_state[:, 0],
    )


def hugging_face_text_outputs(
    network: torch.nn.Module, tokens: np.ndarray, mask: np.ndarray
) -> dict[str, np.ndarray]:
    """Return a transformers CLIP text model's outputs; see `outputs_and_gradients`."""
    import torch

    ids, attended = torch.from_numpy(tokens).long(), torch.from_numpy(mask).long()
    return outputs_and_gradients(
        network,
        lambda: network(input_ids=ids, attention_mask=attended),
        lambda output: output.pooler_output,
    )


def write_hugging_face() -> None:
    """Write the ViT and the CLIP of transformers and their outputs."""
    vit, clip = hugging_face_vit(), hugging_face_clip({}, {})
    np.savez(FOLDER / "small_vit.npz", **hugging_face_image_outputs(vit, image_batch()))
    vision = hugging_face_image_outputs(clip.vision_model, image_batch())
    np.savez(FOLDER / "small_clip_vision.npz", **vision)
    text = hugging_face_text_outputs(clip.text_model, *text_batch())
    np.savez(FOLDER / "small_clip_text.npz", **text)
    vit.half().save_pretrained(FOLDER / "small_vit")
    clip.half().save_pretrained(FOLDER / "small_clip")


def write_timm() -> None:
    """Write timm's ViT, its outputs, and those of a copy made for larger images."""
    import torch
    from timm.layers import resample_abs_pos_embed

    network, larger = timm_vit(), timm_vit(img_size=OTHER_IMAGE_SIZE)
    weights = network.state_dict()
    save_half(weights, "small_timm_vit")
    grid = [OTHER_IMAGE_SIZE // PATCH_SIZE] * 2
    larger.load_state_dict(
        {**weights, "pos_embed": resample_abs_pos_embed(weights["pos_embed"], grid)}
    )
    with torch.no_grad():
        sequence = network.forward_features(channels_first(image_batch()))
        other = larger.forward_features(channels_first(image_batch(size=OTHER_IMAGE_SIZE)))
        np.savez(
            FOLDER / "small_timm_vit.npz",
            pooled=network.forward_head(sequence, pre_logits=True),
            sequence=sequence,
            pooled_at_other_size=larger.forward_head(other, pre_logits=True),
        )


def write_open_clip() -> None:
    """Write open_clip's CLIP and the projected features of images and texts."""
    import torch

    network = open_clip_model()
    tokens, _ = text_batch()
    save_half(network.state_dict(), "small_open_clip")
    with torch.no_grad():
        np.savez(
            FOLDER / "small_open_clip.npz",
            image=network.encode_image(channels_first(image_batch())),
            text=network.encode_text(torch.from_numpy(tokens).long()),
        )


def save_half(weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Write a state dict in half precision."""
    from safetensors.torch import save_file

    halves = {key: value.half().contiguous() for key, value in weights.items()}
    save_file(halves, FOLDER / f"{name}.safetensors")


def write_positions() -> None:
    """Write a table of position embeddings, and PyTorch's resampling of it."""
    import torch

    table = np.random.default_rng(0).normal(size=(1 + 49, 6)).astype(np.float32)
    grid = torch.from_numpy(table[1:]).reshape(1, 7, 7, 6).permute(0, 3, 1, 2)
    resampled = {
        f"grid_{size}": torch.nn.functional.interpolate(
            grid, (size, size), mode="bicubic", antialias=True
        )
        .permute(0, 2, 3, 1)
        .reshape(-1, 6)
        for size in (3, 4, 10, 16)
    }
    np.savez(FOLDER / "positions.npz", table=table, **resampled)


if __name__ == "__main__":
    write_hugging_face()
    write_timm()
    write_open_clip()
    write_positions()
