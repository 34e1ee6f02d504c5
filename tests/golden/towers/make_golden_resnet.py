"""Writes the reference data of the ResNet tests with PyTorch.

Needs torch, transformers, timm and open_clip:

    python tests/golden/towers/make_golden_resnet.py

The tests read the files it writes and need none of these. They also import it, for the images, and
the comparison marked `oracle` calls its reference functions; hence torch is imported inside the
functions only.
"""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent
SHARED = runpy.run_path(str(FOLDER / "make_golden.py"))
synthetic_images = SHARED["synthetic_images"]
IMAGE_SIZE = 64  # What the attention pool of the small CLIP network is made for.


def small_timm_resnet(block: str) -> "torch.nn.Module":
    """Return timm's ResNet of "basic" or "bottleneck" blocks, narrow, random."""
    import torch
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    torch.manual_seed(0)
    kinds = {"basic": BasicBlock, "bottleneck": Bottleneck}
    shape = {"layers": (1, 2, 1, 1), "channels": (5, 7, 6, 9), "num_classes": 4}
    network = ResNet(kinds[block], **shape)
    SHARED["randomize"](network)
    return network.eval()


def small_hugging_face_resnet(**fields: Any) -> "torch.nn.Module":
    """Return Hugging Face's ResNet, narrow, three stages, random."""
    import torch
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    shape = {"embedding_size": 10, "hidden_sizes": [24, 40, 28], "depths": [1, 2, 1]}
    network = ResNetModel(ResNetConfig(**(shape | fields)))
    SHARED["randomize"](network)
    return network.eval()


def small_clip_resnet() -> "torch.nn.Module":
    """Return open_clip's modified ResNet, narrow, random."""
    import torch
    from open_clip.modified_resnet import ModifiedResNet

    torch.manual_seed(0)
    network = ModifiedResNet((1, 2, 1, 1), output_dim=20, heads=4, image_size=IMAGE_SIZE, width=2)
    SHARED["randomize"](network)
    return network.eval()


def timm_outputs(network: "torch.nn.Module", images: "torch.Tensor") -> tuple["torch.Tensor", ...]:
    """Return the pooled features [B, width] and the grid [B, width, rows, columns]."""
    grid = network.forward_features(images)
    return network.forward_head(grid, pre_logits=True), grid


def hugging_face_outputs(
    network: "torch.nn.Module", images: "torch.Tensor"
) -> tuple["torch.Tensor", ...]:
    """Return the pooled features [B, width] and the grid [B, width, rows, columns]."""
    outputs = network(pixel_values=images)
    return outputs.pooler_output.flatten(1), outputs.last_hidden_state


def clip_outputs(network: "torch.nn.Module", images: "torch.Tensor") -> tuple["torch.Tensor", ...]:
    """Return the pooled features [B, width] and the grid [B, channels, rows, columns]."""
    grid = network.layer4(network.layer3(network.layer2(network.layer1(network.stem(images)))))
    return network.attnpool(grid), grid


def to_torch(images: np.ndarray) -> "torch.Tensor":
    """Turn [B, H, W, 3] into PyTorch's order of axes."""
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2)


def reference(
    network: "torch.nn.Module",
    outputs: Callable[..., tuple["torch.Tensor", ...]],
    images: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return what the network gives, and what one training step does to it.

    Keys are `pooled` and `sequence` [B, cells, channels] in evaluation, `trained` (pooled features
    with batch norm on the batch's statistics), and under `after/<name>` the running statistics
    and the gradients (of the sum of the squares of `trained`) under the parameters' own names.
    """
    import torch

    with torch.no_grad():
        pooled, grid = outputs(network.eval(), to_torch(images))
    trained, _ = outputs(network.train(), to_torch(images))
    (trained**2).sum().backward()
    after = {name: value.grad for name, value in network.named_parameters()}
    after |= {name: value for name, value in network.named_buffers() if "running" in name}
    network.eval()
    return {
        "pooled": pooled.numpy(),
        "sequence": grid.flatten(2).transpose(1, 2).numpy(),
        "trained": trained.detach().numpy(),
    } | {f"after/{name}": value.numpy() for name, value in after.items() if value is not None}


def write(name: str, network: "torch.nn.Module", outputs: Callable, image_size: int) -> None:
    """Write a network's state dict, or folder, and its reference outputs."""
    import torch

    if hasattr(network, "save_pretrained"):
        network.save_pretrained(FOLDER / name)
    else:
        torch.save(network.state_dict(), FOLDER / f"{name}.pth")
    found = reference(network, outputs, synthetic_images(3, image_size))
    np.savez_compressed(FOLDER / f"{name}.npz", **found)


if __name__ == "__main__":
    write("small_resnet_basic", small_timm_resnet("basic"), timm_outputs, 49)
    write("small_resnet_bottleneck", small_timm_resnet("bottleneck"), timm_outputs, 50)
    write("small_resnet", small_hugging_face_resnet(), hugging_face_outputs, 49)
    write("small_clip_resnet", small_clip_resnet(), clip_outputs, IMAGE_SIZE)
