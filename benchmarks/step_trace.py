"""Counts what one training step enters: files, functions and lines of otter_jax.

    python benchmarks/step_trace.py [--config=infonce_rn50] [--list]

The step is traced by JAX once, on a CPU, with small towers of the preset's kinds, matrices whole;
every function of the package that Python enters meanwhile is counted, where it is defined. So this
is what someone has to read who wants to know what a step computes.
"""

import argparse
import os
import sys
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from otter_jax import objectives, sharding
from otter_jax.embedding import encoder
from otter_jax.models import dual_encoder
from otter_jax.preset_files import read_preset
from otter_jax.training.optimizers import make_optimizer, make_schedule
from otter_jax.training.state import initial_state, state_places
from otter_jax.training.step import Learner, StepSettings, make_train_step

PACKAGE = Path(objectives.__file__).parents[1]
SMALL_TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
ROWS = 16


def main() -> None:
    """Print the counts, of the towers and of the rest, and with --list every function."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="infonce_rn50", help="a preset of one view")
    parser.add_argument("--list", action="store_true", help="name every function")
    options = parser.parse_args()
    entered = functions_entered(*make_step(read_preset(options.config)))
    for title, chosen in (
        ("in all", entered),
        ("without the towers", {f: v for f, v in entered.items() if f.parts[0] != "models"}),
    ):
        lines = sum(len((PACKAGE / file).read_text().splitlines()) for file in chosen)
        functions = sum(map(len, chosen.values()))
        print(
            f"{options.config}, {title}: {len(chosen)} files, {functions} functions, {lines} lines"
        )
    if options.list:
        for file, names in sorted(entered.items()):
            print(f"{file}: {', '.join(sorted(names))}")


def make_step(config: ConfigDict) -> tuple[Any, tuple[Any, dict[str, jax.Array]]]:
    """Return a config's train step with small towers, and arguments for it."""
    config.batch_size, config.model.embed_dim = ROWS, SMALL_TEXT["hidden_size"]
    with config.unlocked():
        for tower in (config.model.image, config.model.text):
            tower.pretrained = None
        config.model.text.overrides.update(SMALL_TEXT)
    method = objectives.make_method(**config.objective)
    model, variables = dual_encoder.split(encoder.build_module(config))
    schedule = make_schedule(config, 20)
    optimizer, mesh = make_optimizer(config, schedule), sharding.make_mesh()
    state = initial_state(variables, optimizer, uses_teacher=method.uses_teacher)
    learner = Learner(model, method, optimizer, schedule, StepSettings.of(config), mesh)
    batch = {
        "image": jnp.zeros((ROWS, 32, 32, 3), jnp.uint8),
        "tokens": jnp.ones((ROWS, 8), jnp.int32),
        "token_mask": jnp.ones((ROWS, 8), bool),
    }
    return make_train_step(learner, state_places(mesh, state, fsdp=False)), (state, batch)


def functions_entered(step: Any, arguments: tuple) -> dict[Path, set[str]]:
    """Return the names of the package's functions that lowering a step enters, by file."""
    entered: dict[Path, set[str]] = defaultdict(set)

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and not code.co_name.startswith("<"):
            file = Path(code.co_filename)
            if file.is_relative_to(PACKAGE):
                entered[file.relative_to(PACKAGE)].add(code.co_qualname)

    sys.setprofile(note)
    try:
        step.lower(*arguments)
    finally:
        sys.setprofile(None)
    return entered


if __name__ == "__main__":
    main()
