"""Writes torchvision.npz, the results that tests/data/test_augmentations.py compares with.

Needs torch and torchvision (0.28 was used): `python tests/golden/augmentations/make_golden.py`.
"""

from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import functional

FACTORS = (0.0, 0.6, 0.85, 1.0, 1.4)
TURNS = (-0.5, -0.1, -0.03, 0.0, 0.07, 0.1)
SIGMAS = (0.1, 0.5, 1.0, 2.0)
KERNEL_SIZE = 23  # that of SimCLR and MoCo v2 for images of 224 pixels


def picture() -> np.ndarray:
    """16 x 16 pixels, uint8 [height, width, 3]: half noise, half smooth colours, some grey."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, 16)
    pixels[8:] = np.stack(np.broadcast_arrays(ramp, ramp[::-1], ramp[8:, None]), axis=-1)
    pixels[0, :8] = np.linspace(0, 255, 8)[:, None]
    return pixels


def main() -> None:
    """Write the picture and, under the name of each function, its results for all amounts."""
    image = picture()
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    amounts = {
        "adjust_brightness": FACTORS,
        "adjust_contrast": FACTORS,
        "adjust_saturation": FACTORS,
        "adjust_hue": TURNS,
        "gaussian_blur": SIGMAS,
    }
    arrays = {"image": image}
    for name, values in amounts.items():
        extra = (KERNEL_SIZE,) if name == "gaussian_blur" else ()
        results = [getattr(functional, name)(tensor, *extra, value) for value in values]
        arrays[f"{name}/amounts"] = np.array(values)
        arrays[name] = torch.stack(results).permute(0, 2, 3, 1).numpy()
    grey = functional.rgb_to_grayscale(tensor, num_output_channels=3)
    arrays["greyscale"] = grey.permute(1, 2, 0).numpy()
    np.savez_compressed(Path(__file__).with_name("torchvision.npz"), **arrays)


if __name__ == "__main__":
    main()
