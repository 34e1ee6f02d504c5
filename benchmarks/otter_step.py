"""OTTER's whole train step on a CPU against PyTorch's: time in one run, and memory.

    pip install -e ".[oracle]"
    python benchmarks/otter_step.py [--pairs=16] [--tokens=60] [--rounds=5]
    python benchmarks/otter_step.py --tokens=16 --torch_tokens=60

The second compares what `data.token_buckets` makes of captions as most of CC3M's are, of 10 to 14
tokens, with what PyTorch pads them to. Both sides take the same step in float32, with random
weights: ResNet50 and BERT-base forward in training mode (batch statistics, no dropout), an EMA
teacher's forward, OTTER's targets by five Sinkhorn iterations, both losses, gradients of all
parameters, SGD with momentum, the teacher's average. Ours is the step that `otter-jax train` runs
with configs/otter_rn50.py, metrics and guard included. PyTorch's is eager, its towers Hugging
Face's, its updates in place and in their `foreach` forms.

Each side has a process of its own. They take turns, and the fastest step of each counts. Memory is
the most that the process ever had in RAM, compilation included, less what it had after imports. On
a machine with other work PyTorch's threads wait for each other, and the ratio says nothing.
"""

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))

import icons_step
from convolutional_towers import torch_resnet50
from objectives import torch_plan

from otter_jax.preset_files import read_preset

VOCABULARY, WIDTH = 30522, 768
Run = Callable[[], None]  # Takes one step.


def make_batch(pairs: int, tokens: int) -> dict[str, np.ndarray]:
    """Return images uint8 [B, 224, 224, 3], token numbers [B, L] and their mask, at random."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 15, pairs)  # Of most of CC3M's captions.
    return {
        "image": rng.integers(0, 256, (pairs, 224, 224, 3), np.uint8),
        "tokens": rng.integers(1000, VOCABULARY, (pairs, tokens), np.int32),
        "token_mask": np.arange(tokens) < lengths[:, None],
    }


def make_config(pairs: int) -> ConfigDict:
    """Return configs/otter_rn50.py with random towers and no dropout."""
    config = read_preset("otter_rn50")
    config.batch_size = pairs
    with config.unlocked():
        config.model.image.pretrained = config.model.text.pretrained = None
        config.model.text.overrides.update(
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, vocab_size=VOCABULARY
        )
    return config


def our_step(pairs: int, tokens: int) -> Run:
    """Return the step that a run of the preset takes."""
    return icons_step.our_step(make_config(pairs), make_batch(pairs, tokens))


def torch_step(pairs: int, tokens: int) -> Run:
    """Return the same step in PyTorch."""
    import torch
    from torch.nn import functional
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    image_tower, _ = torch_resnet50()
    student = torch.nn.ModuleDict(
        {
            "image": image_tower,
            "text": BertModel(shape, add_pooling_layer=False),
            "projection": torch.nn.Linear(2048, WIDTH),
        }
    ).train()
    student.log_scales = torch.nn.ParameterList(torch.tensor(3.9) for _ in range(2))
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    weights, averages = list(student.parameters()), list(teacher.parameters())
    optimizer = torch.optim.SGD(weights, lr=3e-3, momentum=0.9, foreach=True)
    images, token_numbers, mask = map(torch.from_numpy, make_batch(pairs, tokens).values())
    labels = torch.arange(pairs)

    def embed(model: torch.nn.ModuleDict) -> list:
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225
        image = model["image"](pixel_values=pixels).pooler_output.flatten(1)
        states = model["text"](token_numbers, mask).last_hidden_state
        shown = mask[..., None]
        text = (states * shown).sum(1) / shown.sum(1)
        return [functional.normalize(x) for x in (model["projection"](image), text)]

    def run() -> None:
        with torch.no_grad():
            torch._foreach_lerp_(averages, [each.detach() for each in weights], 0.001)
            image, text = embed(teacher)
            similarity = image @ image.T + text @ text.T + image @ text.T - 200 * torch.eye(pairs)
            plans = torch_plan(similarity), torch_plan(similarity.T)
        image, text = embed(student)
        contrastive, scale = (each.exp().clamp(1, 100) for each in student.log_scales)
        loss = 0.0
        for queries, keys, plan in ((image, text, plans[0]), (text, image, plans[1])):
            cosines = queries @ keys.T
            soft = functional.log_softmax(scale * cosines, dim=1)
            loss = loss + 0.5 * functional.cross_entropy(contrastive * cosines, labels)
            loss = loss + 0.5 * functional.kl_div(soft, plan, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


MAKERS = {"otter_jax": our_step, "PyTorch": torch_step}


def serve(side: str, pairs: int, tokens: int) -> None:
    """Take a step for each line that comes in; answer with its seconds and the peak in GiB."""
    import torch  # noqa: F401 - both sides have both libraries, and count neither.
    import transformers  # noqa: F401

    imported = memory("VmRSS")
    run = MAKERS[side](pairs, tokens)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, memory("VmHWM") - imported, flush=True)


def memory(name: str) -> float:
    """Return what the process has (VmRSS) or has had at most (VmHWM) in RAM, in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return int(line.split()[1]) / 2**20


class Side:
    """A side in its process."""

    def __init__(self, name: str, pairs: int, tokens: int) -> None:
        """Start it."""
        command = [sys.executable, __file__, f"--serve={name}", f"--pairs={pairs}"]
        self.process = subprocess.Popen(
            [*command, f"--tokens={tokens}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.best, self.peak = np.inf, 0.0

    def step(self) -> None:
        """Have it take a step, and note what it says."""
        print(file=self.process.stdin, flush=True)
        seconds, self.peak = map(float, self.process.stdout.readline().split())
        self.best = min(self.best, seconds)


def main() -> None:
    """Print time and memory of both sides, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16, help="of a batch")
    parser.add_argument("--tokens", type=int, default=60, help="of a row, padding included")
    parser.add_argument("--torch_tokens", type=int, help="PyTorch's, where they are others")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side")
    parser.add_argument("--serve", choices=MAKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.pairs, options.tokens)
        return
    ours = Side("otter_jax", options.pairs, options.tokens)
    theirs = Side("PyTorch", options.pairs, options.torch_tokens or options.tokens)
    for _ in range(options.rounds + 1):  # The first step warms up.
        ours.step()
        theirs.step()
    for name, side in (("otter_jax", ours), ("PyTorch", theirs)):
        print(f"{name:10} {side.best:7.2f} s a step {side.peak:7.2f} GiB")
    print(f"ratio      {ours.best / theirs.best:7.2f}          {ours.peak / theirs.peak:7.2f}")


if __name__ == "__main__":
    main()
