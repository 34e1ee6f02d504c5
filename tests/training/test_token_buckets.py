"""Batches are cut to what their captions need, and what is learned stays the same."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training.test_step import batch_of, vit_config

from otter_jax import sharding, train
from otter_jax.data.batches import Batch
from otter_jax.embedding.encoder import build_module
from otter_jax.models import dual_encoder
from otter_jax.training import token_buckets

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
    st.lists(st.integers(1, 12), unique=True).map(sorted),
)
def test_all_views_have_the_first_length_that_holds_them(
    used: list[tuple[int, int]], lengths: list[int]
) -> None:
    masks = [np.arange(9) < np.array(view)[:, None] for view in zip(*used, strict=True)]
    tokens = [np.where(mask, 1 + np.arange(9), 0) for mask in masks]
    batch = {"token_mask": masks[0], "token_mask2": masks[1], "tokens2": tokens[1]}
    batch |= {"tokens": tokens[0], "masked_tokens": tokens[0], "image": np.zeros((len(used), 12))}
    (found,) = token_buckets.in_buckets(iter([batch]), lengths, sharding.make_mesh())
    needed = max(map(max, used))
    length = min([each for each in lengths if each >= needed] + [9])
    for name in token_buckets.PADDED:
        np.testing.assert_array_equal(found[name], batch[name][:, :length])
        assert batch[name].sum() == found[name].sum()
    assert found["image"] is batch["image"]


def losses(workdir: Path) -> np.ndarray:
    lines = map(json.loads, (workdir / "metrics.jsonl").open())
    return np.array([line["train/loss"] for line in lines if "train/loss" in line])


def test_a_run_learns_the_same_and_says_what_it_compiles(
    tiny_config: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    changes = {"total_steps": 4, "log_every_steps": 1, "evaluate.sets": (), "batch_size": 8}
    changes |= {"model.image.frozen": True, "objective.name": "infonce"}  # Compiles sooner.
    config = tiny_config(**changes)
    with config.unlocked():
        config.model.text.overrides.update(WITHOUT_DROPOUT)
    train.train(config, tmp_path / "whole")
    capsys.readouterr()
    config.data.token_buckets = (3,)
    longest, found = token_buckets.longest_text, []

    def at_times_longer(batch: Batch) -> int:
        found.append(longest(batch))
        return found[-1] + len(found) % 2

    monkeypatch.setattr(token_buckets, "longest_text", at_times_longer)
    train.train(config, tmp_path / "cut")
    assert set(found) == {3}  # "red ring.", cut at its end or not at all.
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(tmp_path / "whole"), rtol=1e-6)
    assert capsys.readouterr().out.count("GFLOP a step") == 2  # One for each length.


def test_further_views_are_the_same(tiny_config: Callable) -> None:
    """Those of DeCLIP: two wordings, and masked tokens that are to be recovered."""
    config = vit_config(tiny_config, **{"objective.name": "declip"})
    with config.unlocked():
        config.model.text.overrides.update(WITHOUT_DROPOUT)
    model, variables = dual_encoder.split(build_module(config))
    whole = batch_of(rows=4, config=config)
    keep = np.arange(whole["tokens"].shape[1]) < 3
    whole |= {key: whole[key] * keep for key in token_buckets.PADDED}
    (cut,) = token_buckets.in_buckets(iter([whole]), (4,), sharding.make_mesh())
    assert cut["tokens"].shape == (4, 4)
    views = jax.jit(lambda batch: model.views(variables, batch)[0])
    wanted, found = views(whole), views(cut)
    assert {"text", "text2", "mlm_logits"} <= set(found)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6 * np.abs(array).max())


def test_a_tower_that_looks_at_padding_is_not_cut(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**{"model.text.name": "clip_text", "data.token_buckets": (4,)})
    with config.unlocked():
        config.model.text.overrides.update(causal=False, pooling="first")
    with pytest.raises(ValueError, match=r"token_buckets=.*clip_text looks at padding"):
        train.train(config, tmp_path)
