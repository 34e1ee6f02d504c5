"""One checkpoint of another library against this package: agree, refused, wrong or a traceback.

A case writes a checkpoint with random weights into a folder, as its library does, and returns that
library's own numbers on fixed inputs. What this package makes of the folder is then judged.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

# Every case runs its own small programs once, so that compiling them is what takes the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from otter_jax.models import from_pretrained
from otter_jax.models.dual_encoder import DualEncoder

Outcome = Literal["agree", "refused", "wrong", "traceback", "not built"]
TOLERANCE = 1e-5  # Relative to the largest number.
LONGEST_REFUSAL = 300  # Characters of the message, less the folder's name.


class Reference(NamedTuple):
    """Inputs and the other library's outputs: features before any projection, or embeddings."""

    image: tuple[np.ndarray, np.ndarray] | None = None  # [N, 3, H, W] normalised, and [N, width].
    text: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # Tokens, mask, [N, width].
    projected: bool = False  # Whether the outputs come from behind the projections.


class Case(NamedTuple):
    """A checkpoint to try."""

    library: str
    name: str
    write: Callable[[Path], Reference]


class Verdict(NamedTuple):
    """What became of a case."""

    case: Case
    outcome: Outcome
    error: float = float("nan")  # The worst, relative.
    seconds: float = 0.0  # For the tower to be built or refused.
    message: str = ""


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw all weights so that each of them counts: norms, biases, statistics, tables, scales."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype)

    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in state.items():
            if not tensor.is_floating_point() or "inv_freq" in name or "attn_mask" in name:
                continue
            if name.endswith(("running_var", "gamma", "lambda1", "layer_scale_parameter")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 + 0.5)
            elif tensor.ndim >= 2 and not re.search("pos|token|probe|latent|embed", name):
                tensor.copy_(normal(tensor) * tensor[0].numel() ** -0.5)
            elif tensor.ndim == 0 or name in ("logit_scale", "logit_bias"):
                continue
            elif tensor.ndim == 1 and name.endswith("weight"):
                tensor.copy_(1 + 0.3 * normal(tensor))
            else:
                tensor.copy_(0.4 * normal(tensor))


def images(size: int | tuple[int, int], count: int = 2) -> torch.Tensor:
    """Return normalised images [count, 3, height, width]."""
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def texts(vocabulary: int, length: int, *, padding: int, last: int) -> tuple[np.ndarray, ...]:
    """Return two texts, int32 [2, length], of different lengths, each with an end, and the mask."""
    draw = np.random.default_rng(2)
    tokens = np.full((2, length), padding, np.int32)
    mask = np.zeros((2, length), bool)
    for row, used in enumerate((length, max(length // 2, 3))):
        tokens[row, :used] = draw.integers(5, vocabulary - 2, used)
        tokens[row, used - 1] = last
        mask[row, :used] = True
    return tokens, mask


def judge(case: Case) -> Verdict:
    """Write a case's checkpoint, read it, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            reference = case.write(Path(folder))
        except Exception as error:  # The other library's own trouble, such as a missing download.
            return Verdict(case, "not built", message=_line(error, folder))
        start = time.monotonic()
        try:
            model = from_pretrained(Path(folder))
            seconds = time.monotonic() - start
            error = max(_errors(model, reference))
        except ValueError as refusal:
            seconds, text = time.monotonic() - start, str(refusal).replace(folder, "")
            clear = len(text) <= LONGEST_REFUSAL and "\n" not in text
            outcome = "refused" if clear else "traceback"
            return Verdict(case, outcome, seconds=seconds, message=_line(refusal, folder))
        except Exception as failure:
            return Verdict(case, "traceback", message=_line(failure, folder))
    return Verdict(case, "agree" if error <= TOLERANCE else "wrong", error, seconds)


def _line(error: Exception, folder: str) -> str:
    text = " ".join(str(error).replace(folder, "FOLDER").split())
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _errors(model: object, reference: Reference) -> Iterator[float]:
    both = isinstance(model, DualEncoder)
    if reference.image is not None:
        pixels, wanted = reference.image
        tower = model.image if both else model
        found = tower(np.moveaxis(pixels, 1, -1)).pooled
        if reference.projected:
            found = model.image_projection(found)
        yield relative_error(found, wanted)
    if reference.text is not None:
        tokens, mask, wanted = reference.text
        tower = model.text if both else model
        found = tower(tokens, mask).pooled
        if reference.projected:
            found = model.text_projection(found)
        yield relative_error(found, wanted)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest difference over the largest number; infinity for other shapes or NaN."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        return float("inf")
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    return float(error) if np.isfinite(error) else float("inf")


def totals(verdicts: list[Verdict]) -> Mapping[str, Mapping[Outcome, int]]:
    """Return how many cases of each library had which outcome."""
    counts: dict[str, dict[Outcome, int]] = {}
    for verdict in verdicts:
        of_library = counts.setdefault(verdict.case.library, {})
        of_library[verdict.outcome] = of_library.get(verdict.outcome, 0) + 1
    return counts
