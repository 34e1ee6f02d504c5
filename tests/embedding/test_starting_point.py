"""A config that leaves things open takes them from the checkpoint of two towers it starts from."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import otter_jax
from otter_jax import config as config_lib
from otter_jax.embedding.encoder import build_module
from otter_jax.embedding.starting_point import complete
from otter_jax.models import dual_encoder
from otter_jax.models.export import export_tower
from otter_jax.preset_files import read_preset


def preset_of(folder: Path, **changes: object):
    config = read_preset("finetune_clip")
    config.update_from_flattened_dict({"model.pretrained": str(folder)} | changes)
    return config


def test_the_preset_takes_everything_from_the_checkpoint(two_towers: Path) -> None:
    config = complete(preset_of(two_towers))
    config_lib.check(config)
    assert (config.model.embed_dim, config.data.image_size, config.data.max_tokens) == (8, 32, 16)
    assert config.objective.initial_scale == pytest.approx(12.0)
    assert complete(config) == config  # A config that is kept in a workdir is complete.
    _, wanted = dual_encoder.split(otter_jax.models.from_pretrained(two_towers))
    _, found = dual_encoder.split(build_module(config))
    for name in ("image", "text", "image_projection", "text_projection"):
        jax.tree.map(np.testing.assert_array_equal, found.params[name], wanted.params[name])


def test_what_is_set_stays(two_towers: Path) -> None:
    changes = {"data.image_size": 40, "data.max_tokens": 8, "objective.initial_scale": 3.0}
    config = complete(preset_of(two_towers, **changes))
    assert (config.data.image_size, config.data.max_tokens) == (40, 8)
    assert config.objective.initial_scale == 3.0
    assert build_module(config).image.config.image_size == 40  # Its positions are resampled.


def test_a_lone_tower_and_nothing_at_all_are_refused(two_towers: Path, tmp_path: Path) -> None:
    export_tower(otter_jax.models.from_pretrained(two_towers, tower="text"), tmp_path / "text")
    with pytest.raises(ValueError, match=r"config.model.pretrained: .* one tower \(Bert\)"):
        complete(preset_of(tmp_path / "text"))
    with pytest.raises(FileNotFoundError, match=r"config.model.pretrained: .* no pretrained weig"):
        complete(preset_of(tmp_path / "none"))


def test_what_is_unset_without_a_checkpoint_is_refused(tiny_config: Callable) -> None:
    config = tiny_config()
    config.data.image_size = None
    with pytest.raises(ValueError, match=r"config.data.image_size is unset"):
        complete(config)
