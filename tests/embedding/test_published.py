"""Published models: what the package holds of them, and publishing one of our own."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from otter_jax.config import load_config
from otter_jax.embedding import published
from otter_jax.embedding.encoder import load
from otter_jax.train import train


@pytest.mark.parametrize("name", published.published_names())
def test_a_published_model_is_whole(name: str) -> None:
    config, arrays = published.read_published(name)
    assert arrays["image_projection.kernel"].shape == (1280, config.model.embed_dim)
    if config.model.image.frozen:
        assert set(arrays) == {"image_projection.kernel", "image_projection.bias", "log_scale",
                               "distillation_log_scale"}  # fmt: skip
    last = json.loads((published.FOLDER / name / "metrics.jsonl").read_text().splitlines()[-1])
    results = json.loads((published.FOLDER / name / "results.json").read_text())
    for each in config.evaluate.sets:
        assert results[each]
        for metric, value in results[each].items():
            assert last.get(f"eval/{each}/{metric}", value) == value
    assert sum(path.stat().st_size for path in (published.FOLDER / name).iterdir()) < 17e6


def test_what_is_published_is_what_was_trained(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    towers = {"model.image.frozen": True, "model.text.frozen": True}
    config = tiny_config(**towers, **{"total_steps": 2, "evaluate.sets": (),
                                      "data.augmentation": "none"})  # fmt: skip
    train(config, tmp_path / "run")
    encoder = load(tmp_path / "run")
    published.publish("ours", tmp_path / "run", encoder.variables, "a test")
    assert published.published_names() == ["ours"]
    settings, arrays = published.read_published("ours")
    assert settings.to_dict() == load_config(tmp_path / "run" / "config.json").to_dict()
    variables = encoder.variables
    blank = variables._replace(params=jax.tree.map(np.zeros_like, variables.params))
    restored = published.with_published(blank, arrays)
    jax.tree.map(np.testing.assert_array_equal, restored, variables)

    weights = tmp_path / "published" / "ours" / published.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"trained\.safetensors is damaged: install the package"):
        load("ours")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the first test that needs trained towers puts their run, for all of them."""
    return tmp_path_factory.mktemp("trained") / "run"


def test_trained_towers_come_back_with_their_statistics_in_half_precision(
    tiny_config: Callable, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "FOLDER", tmp_path / "published")
    train(tiny_config(**{"total_steps": 1, "evaluate.sets": ()}), trained)
    variables = load(trained).variables
    published.publish("ours", trained, variables, "a test")
    restored = published.with_published(
        jax.tree.map(np.zeros_like, variables), published.read_published("ours")[1]
    )
    jax.tree.map(np.testing.assert_array_equal, restored.batch_stats, variables.batch_stats)
    for ours, theirs in zip(
        jax.tree.leaves(restored.params), jax.tree.leaves(variables.params), strict=True
    ):
        assert ours.dtype == np.float32
        if ours.ndim < 2:
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(ours, theirs, rtol=2**-11, atol=6e-8)


def test_what_is_too_large_is_not_published(
    tiny_config: Callable, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_config(**{"total_steps": 1, "evaluate.sets": ()}), trained)  # Finished, if above.
    monkeypatch.setattr(published, "LARGEST", 1e3)
    with pytest.raises(ValueError, match=r"trained parts have \d+ MB, and a package takes 0;"):
        published.publish("ours", trained, load(trained).variables, "a test")
