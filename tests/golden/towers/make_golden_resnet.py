"""Writes the reference data of the ResNet tests with PyTorch.

Needs torch, transformers, timm and open_clip:

    python tests/golden/towers/make_golden_resnet.py

The tests read the files it writes and need none of these. They also import it, for the images, and
the comparison marked `oracle` calls its reference functions; hence torch is imported inside the
functions only.
"""

import copy
import functools
import itertools
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


def small_timm_resnet(block: str, seed: int) -> "torch.nn.Module":
    """Return timm's ResNet of "basic" or "bottleneck" blocks, narrow, random."""
    import torch
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    torch.manual_seed(seed)
    kinds = {"basic": BasicBlock, "bottleneck": Bottleneck}
    shape = {"layers": (1, 2, 1, 1), "channels": (5, 7, 6, 9), "num_classes": 4}
    network = ResNet(kinds[block], **shape)
    SHARED["randomize"](network)
    return network.eval()


def small_hugging_face_resnet(seed: int = 0, **fields: Any) -> "torch.nn.Module":
    """Return Hugging Face's ResNet, narrow, three stages, random."""
    import torch
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(seed)
    shape = {"embedding_size": 10, "hidden_sizes": [24, 40, 28], "depths": [1, 2, 1]}
    network = ResNetModel(ResNetConfig(**(shape | fields)))
    SHARED["randomize"](network)
    return network.eval()


def small_clip_resnet(seed: int) -> "torch.nn.Module":
    """Return open_clip's modified ResNet, narrow, random."""
    import torch
    from open_clip.modified_resnet import ModifiedResNet

    torch.manual_seed(seed)
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


def distance_from_kinks(
    network: "torch.nn.Module", outputs: Callable[..., Any], images: np.ndarray
) -> float:
    """Return how near to zero the input of a ReLU comes in training, at least."""
    import torch

    nearest = []

    def look(module: "torch.nn.Module", inputs: tuple["torch.Tensor"]) -> None:
        nearest.append(inputs[0].abs().min().item())

    twin = copy.deepcopy(network).train()
    for module in twin.modules():
        if isinstance(module, torch.nn.ReLU):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        outputs(twin, to_torch(images))
    return min(nearest)


def write(
    name: str, make: Callable[[int], "torch.nn.Module"], outputs: Callable, image_size: int
) -> None:
    """Write a network's state dict, or folder, and its reference outputs.

    The seed is the first whose network stays clear of the ReLU's kink in all its activations; on
    it, float32's rounding would decide whether a gradient passes.
    """
    import torch

    images = synthetic_images(3, image_size)
    networks = (make(seed) for seed in itertools.count())
    network = next(each for each in networks if distance_from_kinks(each, outputs, images) > 2e-5)
    if hasattr(network, "save_pretrained"):
        network.save_pretrained(FOLDER / name)
    else:
        torch.save(network.state_dict(), FOLDER / f"{name}.pth")
    np.savez_compressed(FOLDER / f"{name}.npz", **reference(network, outputs, images))


if __name__ == "__main__":
    for kind in ("basic", "bottleneck"):
        make_timm = functools.partial(small_timm_resnet, kind)
        write(f"small_resnet_{kind}", make_timm, timm_outputs, 49 if kind == "basic" else 50)
    write("small_resnet", small_hugging_face_resnet, hugging_face_outputs, 49)
    write("small_clip_resnet", small_clip_resnet, clip_outputs, IMAGE_SIZE)
