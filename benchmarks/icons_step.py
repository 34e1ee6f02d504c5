"""Images a second of the train step of configs/icons.py on a CPU, against PyTorch's in one run.

    pip install -e ".[oracle]"
    python benchmarks/icons_step.py [--rounds=5] [--steps=4]

Both sides take the same images as uint8 and the same features of texts, and do a whole step: image
tower in training mode, projection, InfoNCE of the batch without a look for equal names, gradients,
AdamW. Ours is the step that `otter-jax train` runs, metrics and guard included; PyTorch's is eager,
its tower Hugging Face's ResNet of the same shape, AdamW in its fused form. Each side has a process
of its own; they take turns, and the median of the rounds' ratios counts. On a machine with other
work PyTorch's threads wait for each other, and the ratio says nothing; `taskset -c 0` in front of
the command compares single cores.
"""

import argparse
import os
import sys
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parents[1]))

from turns import Run, Side, serve, take_turns

from configs import icons
from otter_jax import objectives, sharding
from otter_jax.commands.cpu_settings import all_cores, convolve_on_all_cores
from otter_jax.embedding.encoder import build_module
from otter_jax.models import dual_encoder
from otter_jax.runs.machine import give_back_freed_memory
from otter_jax.training.optimizers import make_optimizer, make_schedule
from otter_jax.training.state import initial_state, state_places
from otter_jax.training.step import Learner, StepSettings, make_train_step

STEPS = 1000  # Of the schedule; the rate does not matter here.


def make_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """Return images uint8 [B, H, W, 3] and features of texts float32 [B, d], at random."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, *(config.data.image_size,) * 2, 3)
    return {
        "image": rng.integers(0, 256, shape, np.uint8),
        "text_features": rng.standard_normal((config.batch_size, 384), np.float32),
    }


def our_step(config: ConfigDict, batch: dict[str, np.ndarray]) -> Run:
    """Return the step that a run of the config takes."""
    convolve_on_all_cores(os.environ, len(all_cores()))  # As the commands do.
    method, mesh = objectives.make_method(**config.objective), sharding.make_mesh()
    model, variables = dual_encoder.split(build_module(config))
    schedule = make_schedule(config, STEPS)
    optimizer = make_optimizer(config, schedule)
    state = initial_state(variables, optimizer, uses_teacher=method.uses_teacher)
    settings = StepSettings.of(config)
    learner = Learner(model, method, optimizer, schedule, settings, mesh)
    step = make_train_step(learner, state_places(mesh, state, fsdp=False))
    placed = sharding.put_batch(mesh, batch)
    step = step.lower(state, placed).compile()
    give_back_freed_memory()

    def run() -> None:
        nonlocal state
        state, metrics = step(state, placed)
        jax.block_until_ready((state, metrics))

    return run


def torch_step(config: ConfigDict, batch: dict[str, np.ndarray]) -> Run:
    """Return the same step in PyTorch."""
    import torch
    from torch.nn import functional
    from transformers import ResNetConfig, ResNetModel

    shape, optimizer_settings = config.model.image.overrides, config.optimizer
    torch.manual_seed(0)
    tower = ResNetModel(
        ResNetConfig(
            embedding_size=shape.stem_width,
            hidden_sizes=list(shape.stage_widths),
            depths=list(shape.depths),
            layer_type="basic",
        )
    ).train()
    image_projection = torch.nn.Linear(shape.stage_widths[-1], config.model.embed_dim)
    log_scale = torch.nn.Parameter(torch.tensor(3.0))
    modules = (tower, image_projection)
    parameters = [log_scale, *(each for module in modules for each in module.parameters())]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=optimizer_settings.learning_rate,
        weight_decay=optimizer_settings.weight_decay,
        fused=True,
    )
    images, texts = (torch.from_numpy(each) for each in batch.values())
    truth = torch.arange(len(images))

    def run() -> None:
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225
        image = functional.normalize(image_projection(tower(pixels).pooler_output.flatten(1)))
        text = functional.normalize(texts)
        logits = log_scale.exp() * image @ text.T
        entropy = functional.cross_entropy
        loss = (entropy(logits, truth) + entropy(logits.T, truth)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


MAKERS = {"otter_jax": our_step, "PyTorch": torch_step}


def make_side(name: str) -> Run:
    """Return a side's step."""
    config = icons.get_config()
    config.objective.known_positives = None  # The batch has no names.
    return MAKERS[name](config, make_batch(config))


def main() -> None:
    """Print images a second of both sides, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8, help="of each side in a round")
    parser.add_argument("--serve", choices=MAKERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(lambda: make_side(options.serve))
        return
    sides = {name: Side(f"--serve={name}") for name in MAKERS}
    take_turns(sides, options.rounds, options.steps)
    seconds = {name: np.array(side.seconds) for name, side in sides.items()}
    for name, found in seconds.items():
        rate = icons.get_config().batch_size / np.median(found)
        print(f"{name:10} {rate:8.0f} images a second")
    ratios = seconds["PyTorch"] / seconds["otter_jax"]
    print(f"otter_jax / PyTorch: {np.median(ratios):.2f}")


if __name__ == "__main__":
    main()
