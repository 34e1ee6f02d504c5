"""Every file of configs/: complete, documented, and the presets differ in the method alone."""

import importlib
from pathlib import Path

import pytest
from flax import nnx

from otter_jax import config as config_lib
from otter_jax import objectives
from otter_jax.models import pretrained

FOLDER = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")
PRESETS = [name for name in NAMES if name.endswith("_rn50")]


@pytest.mark.parametrize("name", NAMES)
def test_config_is_complete_and_documented(name: str) -> None:
    module = importlib.import_module(f"configs.{name}")
    for part in ("Paper:", "Command:", "Hardware:", "Time:", "Expected:"):
        assert part in module.__doc__, part
    assert f"configs/{name}.py" in module.__doc__
    config = module.get_config()
    config_lib.check(config)
    objectives.make_options(**config.objective)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_differ_in_the_objective_alone(name: str) -> None:
    configs = [
        importlib.import_module(f"configs.{each}").get_config() for each in (name, "infonce_rn50")
    ]
    changed = config_lib.differences(*configs)
    assert all(line.startswith("objective.") for line in changed)
    assert bool(changed) == (name != "infonce_rn50")


def test_the_recipe_is_the_papers() -> None:
    config = importlib.import_module("configs.otter_rn50").get_config()
    found = config.optimizer
    assert (found.name, found.learning_rate, found.momentum) == ("sgd", 3e-3, 0.9)
    assert (config.batch_size, config.total_epochs, config.data.max_tokens) == (512, 10, 60)
    # 2,911,810 pairs make 56,870 steps (the released code drops each epoch's last batch).
    assert config_lib.total_steps(config, 2_911_810) == pytest.approx(56_870, abs=3)


def test_the_towers_exist_with_the_recipes_settings() -> None:
    model = importlib.import_module("configs.otter_rn50").get_config().model
    image, text = (
        nnx.eval_shape(
            lambda create=create, side=side: create(
                side.name, None, rngs=nnx.Rngs(0), **side.overrides
            )
        )
        for create, side in (
            (pretrained.create_image_tower, model.image),
            (pretrained.create_text_tower, model.text),
        )
    )
    assert (image.width, text.width, model.embed_dim) == (2048, 768, 768)
    assert image.mean[0] == pytest.approx(0.4815, abs=1e-4)
