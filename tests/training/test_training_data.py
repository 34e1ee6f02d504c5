"""What batches hold where a tower is frozen: the other's input, and features that are known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from otter_jax import objectives, sharding
from otter_jax.data.sources import open_source
from otter_jax.training.data import TrainingData, open_training_data
from otter_jax.training.parts import Parts, build_parts


def open_data(config: object, workdir: Path) -> tuple[Parts, TrainingData]:
    method = objectives.make_method(**config.objective)
    parts = build_parts(config, workdir, sharding.make_mesh(), method)
    return parts, open_training_data(parts, open_source(config.data.train))


@pytest.mark.parametrize("augmentation", ["none", "random_resized_crop"])
def test_a_frozen_text_towers_features_are_known(
    tiny_config: Callable, tmp_path: Path, augmentation: str
) -> None:
    changes = {"model.text.frozen": True, "objective.name": "infonce", "evaluate.sets": (),
               "data.augmentation": augmentation}  # fmt: skip
    parts, known = open_data(tiny_config(**changes), tmp_path / "known")
    _, plain = open_data(tiny_config(**changes, **{"data.cache_features": False}), tmp_path / "p")
    records = np.array([5, 40, 7, 5])
    batch, expected = known.load(3, records), plain.load(3, records)
    assert set(batch) == {"image", "index", "text_features"}
    np.testing.assert_array_equal(batch["image"], expected["image"])
    np.testing.assert_array_equal(batch["index"], records)
    rows = zip(expected["tokens"], expected["token_mask"], strict=True)
    features = parts.place_encoder().token_features(rows)
    np.testing.assert_allclose(batch["text_features"], features, rtol=1e-5, atol=1e-6)


def test_captions_that_are_drawn_are_read_at_every_step(
    tiny_config: Callable, tmp_path: Path, shape_pairs: list
) -> None:
    for number, (image, caption) in enumerate(shape_pairs[:16]):
        (tmp_path / f"{number}.png").write_bytes(image)
        (tmp_path / f"{number}.txt").write_text(f"{caption}\nnot {caption}")
    config = tiny_config(**{"model.text.frozen": True, "objective.name": "infonce",
                            "evaluate.sets": (), "data.train": f"folder:{tmp_path}"})  # fmt: skip
    _, data = open_data(config, tmp_path / "run")
    assert "text_features" not in data.load(0, np.arange(4))
