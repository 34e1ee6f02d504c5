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
import functools
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))

import icons_step
from convolutional_towers import torch_resnet50
from objectives import torch_plan
from turns import Run, Side, serve, take_turns

from otter_jax.preset_files import read_preset

VOCABULARY, WIDTH = 30522, 768


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
        serve(functools.partial(MAKERS[options.serve], options.pairs, options.tokens))
        return
    tokens = {"otter_jax": options.tokens, "PyTorch": options.torch_tokens or options.tokens}
    sides = {
        name: Side(f"--serve={name}", f"--pairs={options.pairs}", f"--tokens={number}")
        for name, number in tokens.items()
    }
    take_turns(sides, options.rounds)
    for name, side in sides.items():
        print(f"{name:10} {min(side.seconds):7.2f} s a step {side.peak:7.2f} GiB")
    ours, theirs = sides.values()
    ratios = min(ours.seconds) / min(theirs.seconds), ours.peak / theirs.peak
    print("ratio      {:7.2f}          {:7.2f}".format(*ratios))


if __name__ == "__main__":
    main()
