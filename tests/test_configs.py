"""Every file of configs/: complete, documented, and the presets differ in the method alone."""

import importlib

import pytest
from flax import nnx

from otter_jax import config as config_lib
from otter_jax import objectives
from otter_jax.embedding import encoder
from otter_jax.models import pretrained
from otter_jax.preset_files import preset_names
from otter_jax.training.data import views_of

NAMES = preset_names()
PRESETS = [
    "infonce_rn50",
    "kd_rn50",
    "label_smoothing_rn50",
    "otter_rn50",
    "self_distillation_rn50",
]
FROM_SCRATCH = ["clip_rn50", "declip_rn50", "declip_vitb32", "slip_vitb32"]


@pytest.mark.parametrize("name", NAMES)
def test_config_is_complete_and_documented(name: str) -> None:
    module = importlib.import_module(f"configs.{name}")
    for part in ("Paper:", "Command:", "Hardware:", "Time:", "Expected:"):
        assert part in module.__doc__, part
    assert f"configs/{name}.py" in module.__doc__
    config = module.get_config()
    config_lib.check(config)
    objectives.make_method(**config.objective)


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


@pytest.mark.parametrize("name", FROM_SCRATCH)
def test_presets_from_scratch_build(name: str) -> None:
    config = importlib.import_module(f"configs.{name}").get_config()
    options = objectives.make_method(**config.objective)
    module = nnx.eval_shape(lambda: encoder.build_module(config))
    assert module.embed_dim == config.model.embed_dim
    assert module.heads.simsiam == options.uses_simsiam == name.startswith("declip")
    assert module.heads.simclr == options.uses_simclr == name.startswith("slip")
    # The id behind the last one is the mask, which must not be taken for the end of a text.
    assert module.text.config.vocab_size == module.text.config.eos_token_id + 2
    views = views_of(config, options)
    wanted = {"clip_rn50": 1, "slip_vitb32": 3}.get(name, 2)
    assert views.images == wanted and views.masked_text == name.startswith("declip")


def test_clip_is_declip_with_nothing_on() -> None:
    configs = [
        importlib.import_module(f"configs.{name}").get_config()
        for name in ("clip_rn50", "declip_rn50")
    ]
    keys = [line.partition(":")[0] for line in config_lib.differences(*configs)]
    assert keys == [
        "data.augmentation", "objective.clip_weight",
        "objective.mvs", "objective.nns", "objective.ss",
    ]  # fmt: skip
