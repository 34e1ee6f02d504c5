"""Runs whose objective asks for each pair's trust: estimated once, kept, and carried by batches."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import write_shard
from ml_collections import ConfigDict

from otter_jax import train
from otter_jax.embedding import caption_repair, trust, trust_rounds
from otter_jax.training import loop, parts

CACHED = {"data.augmentation": "none", "model.image.frozen": True}


def stop_at_step(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Ends the next run, as a signal would, after the report of a step."""
    report = train.Reporter.step

    def stop(self: train.Reporter, step: int, metrics: dict) -> None:
        report(self, step, metrics)
        if step == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(train.Reporter, "step", stop)


def change_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the next run find other towers than its config names."""
    build_module = parts.build_module

    def build_other(config: ConfigDict) -> object:
        other = config.copy_and_resolve_references()
        other.seed += 1
        return build_module(other)

    monkeypatch.setattr(parts, "build_module", build_other)


def read(workdir: Path) -> dict[str, np.ndarray]:
    with np.load(workdir / trust.FILE) as stored:
        return dict(stored)


def test_estimated_once_and_resumed_bit_for_bit(
    tiny_config: Callable[..., ConfigDict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    config = tiny_config(**{"objective.alpha": "estimated", "model.text.frozen": True}, **CACHED)
    train.train(config, tmp_path / "whole")
    found = read(tmp_path / "whole")
    share = round(100 * float(found["share_wrong"]))
    said = capsys.readouterr().out
    assert f"estimated share of wrong pairs: {share} %; of only 48" in said
    assert "the image tower's random weights" in said and "config.model.text.pretrained" in said
    assert found["records"].tolist() == list(range(48))
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        stop_at_step(context, 4)
        train.train(config, tmp_path / "run")
    with monkeypatch.context() as context, pytest.raises(ValueError, match="with other towers"):
        change_weights(context)
        train.train(config, tmp_path / "run")
    with monkeypatch.context() as context:
        context.delattr(trust_rounds, "estimate_in_rounds")
        train.train(config, tmp_path / "run")
    for name in ("metrics.jsonl", "results.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path / "run"), found)


@pytest.mark.parametrize("cached", [True, False])
def test_batches_carry_the_trust_of_their_records(
    tiny_config: Callable[..., ConfigDict],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape_pairs: list,
    cached: bool,
) -> None:
    """Of record 40, which cannot be read, there is none; its place is taken by the next one."""
    write_shard(tmp_path / "0.tar", [*shape_pairs[:40], (b"broken", "x"), *shape_pairs[41:]])
    config = tiny_config(
        **(CACHED if cached else {}),
        **{"data.train": f"webdataset:{tmp_path / '0.tar'}", "data.max_bad_share": 0.1},
        **{"objective.name": "infonce", "objective.pair_weight": "estimated"},
    )
    seen = []
    take_step = loop.take_step

    def note(run: loop.Training, number: int, state: object, batch: dict) -> object:
        records = [each["index"] for each in loop.batch_records(run, number)]
        seen.append((np.asarray(batch["trust"]), records))
        return take_step(run, number, state, batch)

    monkeypatch.setattr(loop, "take_step", note)
    train.train(config, tmp_path / "run")
    found = read(tmp_path / "run")
    assert found["records"].tolist() == [number for number in range(48) if number != 40]
    alpha = dict(zip(found["records"].tolist(), found["alpha"], strict=True))
    assert len(seen) == 6
    for carried, records in seen:
        assert carried.dtype == np.float32
        assert carried.tolist() == [alpha[record] for record in records]
    assert not list(tmp_path.glob("run/pair_features_*"))
    # A run that goes on without its file estimates the same: by the towers before training.
    for name in ("results.json", trust.FILE):
        (tmp_path / "run" / name).unlink()
    train.train(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path / "run"), found)


def test_too_few_pairs_are_refused_before_anything_is_written(
    tiny_config: Callable[..., ConfigDict], tmp_path: Path, shape_pairs: list
) -> None:
    write_shard(tmp_path / "0.tar", shape_pairs[:30])
    config = tiny_config(
        **{"objective.alpha": "estimated", "data.train": f"webdataset:{tmp_path / '0.tar'}"}
    )
    with pytest.raises(ValueError, match=r"at least 31 different pairs.*found 30$"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for key, value in (("reference", 30), ("neighbors", 0)):
        with pytest.raises(ValueError, match=f"config.trust.{key}={value}"):
            train.train(tiny_config(**{f"trust.{key}": value}), tmp_path / "run")


def test_distrusted_pairs_are_trained_on_captions_of_their_neighbours(
    tiny_config: Callable[..., ConfigDict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = np.tile(np.float32([1, 1, 0]), 16)
    seen, asked = [], {}

    def estimate(image: np.ndarray, text: np.ndarray, **options: object) -> trust.Trust:
        asked.update(options, texts=np.array(text))
        return trust.Trust(alpha, 1 / 3, alpha, alpha)

    def note(run: loop.Training, number: int, state: object, batch: dict) -> object:
        records = [each["index"] for each in loop.batch_records(run, number)]
        seen.append((records, np.asarray(batch["trust"]), np.asarray(batch["text_features"])))
        return take_step(run, number, state, batch)

    take_step = loop.take_step
    monkeypatch.setattr(loop, "take_step", note)
    monkeypatch.setattr(trust_rounds, "estimate_in_rounds", estimate)
    config = tiny_config(
        **CACHED,
        **{"model.text.frozen": True, "objective.pair_weight": "estimated"},
        **{"trust.rounds": 2, "trust.folds": 4, "trust.captions": 3},
    )
    train.train(config, tmp_path / "run")
    assert (asked["rounds"], asked["folds"], "captions" in asked) == (2, 4, False)
    for records, carried, texts in seen:
        right = alpha[records] == 1
        np.testing.assert_allclose(carried, np.where(right, 1, caption_repair.REPAIRED_WEIGHT))
        before = asked["texts"][records]
        np.testing.assert_allclose(texts[right], before[right], rtol=1e-5, atol=1e-6)
        assert (np.abs(texts[~right] - before[~right]).max(axis=1) > 1e-3).all()


def test_repair_needs_trust_and_features_that_are_computed_once(
    tiny_config: Callable[..., ConfigDict], tmp_path: Path
) -> None:
    frozen = CACHED | {"model.text.frozen": True, "trust.captions": 5}
    weighted = {"objective.pair_weight": "estimated"}
    for changes, message in (
        (frozen, r"trust\.captions=5: set config\.objective\.pair_weight='estimated' too"),
        (
            frozen | weighted | {"model.text.frozen": False},
            r"set model\.image\.frozen, model\.text",
        ),
        (frozen | weighted | {"data.flip": True}, r"trust\.captions=5 mixes the features"),
        (frozen | weighted | {"trust.captions": -1}, r"trust\.captions=-1: it must not be neg"),
        (weighted | {"trust.rounds": 1, "trust.folds": 9}, "9 folds needs at least 54 .* found 48"),
        (weighted | {"trust.folds": 1}, r"trust\.folds=1: there must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            train.train(tiny_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
