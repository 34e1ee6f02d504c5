"""Frozen towers run once; what is kept is named by all that it depends on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from otter_jax import sharding
from otter_jax.data.images import ImageError
from otter_jax.embedding import encoder, features
from otter_jax.embedding.image_collections import ImageCollection, compute_features
from otter_jax.models import dual_encoder


def make_store(
    config: ConfigDict, folder: Path, keep_trained: bool = False
) -> tuple[encoder.Encoder, features.FeatureStore]:
    model, variables = dual_encoder.split(encoder.build_module(config))
    made = encoder.make_encoder(config, model, variables, sharding.make_mesh())
    store = features.FeatureStore(
        folder,
        made,
        freeze_image=config.model.image.frozen,
        freeze_text=config.model.text.frozen,
        keep_trained=keep_trained,
    )
    return made, store


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, size=(count, 32, 32, 3), dtype=np.uint8)


def refuse() -> None:
    raise AssertionError("computed again")


def test_frozen_tower_runs_once(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**{"model.image.frozen": True})
    made, store = make_store(config, tmp_path)
    first = store.embed_images(made, "some", lambda: iter(pictures()))
    wanted = made.project_image(made.image_features(pictures()))
    np.testing.assert_allclose(first, wanted, atol=1e-6)
    np.testing.assert_array_equal(first, store.embed_images(made, "some", refuse))
    _, later = make_store(config, tmp_path)  # Another start of the run.
    np.testing.assert_array_equal(first, later.embed_images(made, "some", refuse))
    with pytest.raises(AssertionError, match="computed again"):
        later.embed_images(made, "others", refuse)


def test_what_was_never_stored_is_no_reason_for_a_remark(
    tiny_config: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tiny_config(**{"model.text.frozen": True})
    made, store = make_store(config, tmp_path)
    store.embed_texts(made, ["a red bar"], "training captions")
    capsys.readouterr()
    _, later = make_store(config, tmp_path, keep_trained=True)  # An evaluation, of other texts.
    later.embed_texts(made, ["two", "a blue disc, and a bar"], "classes")
    later.embed_images(made, "evaluation set", lambda: iter(pictures()))
    said = capsys.readouterr()
    assert "features in" not in said.out and "anew" not in said.out + said.err
    assert len(list(tmp_path.iterdir())) == 3


def test_trained_tower_runs_once_an_evaluation(tiny_config: Callable, tmp_path: Path) -> None:
    made, store = make_store(tiny_config(), tmp_path)
    first = store.embed_images(made, "some", lambda: iter(pictures()))
    np.testing.assert_array_equal(first, store.embed_images(made, "some", refuse))
    assert not list(tmp_path.iterdir())
    params = jax.tree.map(lambda array: 1.5 * array, made.variables.params)
    later = made.replace(made.variables._replace(params=params))
    with pytest.raises(AssertionError, match="computed again"):
        store.embed_images(later, "some", refuse)
    assert not store._memory  # What the weights of before gave is let go.


def test_finished_towers_are_kept_like_frozen_ones(tiny_config: Callable, tmp_path: Path) -> None:
    made, store = make_store(tiny_config(), tmp_path, keep_trained=True)
    first = store.embed_images(made, "some", lambda: iter(pictures()))
    texts = store.embed_texts(made, ["a red bar"])
    later, store = make_store(tiny_config(), tmp_path, keep_trained=True)
    np.testing.assert_array_equal(first, store.embed_images(later, "some", refuse))
    np.testing.assert_array_equal(texts, store.embed_texts(later, ["a red bar"]))
    assert len(list(tmp_path.iterdir())) == 2
    other, store = make_store(tiny_config(seed=1), tmp_path, keep_trained=True)
    with pytest.raises(AssertionError, match="computed again"):
        store.embed_images(other, "some", refuse)


def test_what_does_not_fit_in_memory_is_read_again(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MEMORY_LIMIT", 100)
    _, store = make_store(tiny_config(), tmp_path)
    for rows in (20, 80):
        store.get(f"{rows}", lambda rows=rows: {"x": np.zeros(rows, np.uint8)})
    store.get("third", lambda: {"x": np.ones(1, np.uint8)})
    assert list(store._memory) == ["20", "80"]
    np.testing.assert_array_equal(store.get("third", refuse)["x"], [1])


def test_two_that_write_the_same_file_do_not_collide(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, save = [make_store(tiny_config(), tmp_path)[1] for _ in range(2)], np.savez

    def while_another_does(file: object, **arrays: np.ndarray) -> None:
        monkeypatch.setattr(features.np, "savez", save)
        stores[1].get("same", lambda: arrays)
        save(file, **arrays)

    monkeypatch.setattr(features.np, "savez", while_another_does)
    found = stores[0].get("same", lambda: {"x": np.arange(3)})
    np.testing.assert_array_equal(found["x"], np.arange(3))
    assert [path.name for path in tmp_path.iterdir()] == ["same.npz"]


def test_a_write_that_fails_leaves_nothing(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: object, **arrays: np.ndarray) -> None:
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(features.np, "savez", fail)
    _, store = make_store(tiny_config(), tmp_path)
    with pytest.raises(OSError, match="No space left"):
        store.get("key", lambda: {"x": np.ones(1)})
    assert not list(tmp_path.iterdir())


def test_other_weights_or_sizes_have_other_names(tiny_config: Callable, tmp_path: Path) -> None:
    keys = set()
    for changes in ({}, {"seed": 1}, {"data.image_size": 48}, {"data.fit": "pad"}):
        config = tiny_config(**{"model.image.frozen": True}, **changes)
        keys.add(make_store(config, tmp_path)[1].image_key("some"))
    assert len(keys) == 4


def test_fingerprint_sees_every_part() -> None:
    arrays = {"a": np.arange(3), "b": {"c": np.ones(2)}}
    same = features.fingerprint(arrays, "x", 1)
    assert same == features.fingerprint(arrays, "x", 1)
    others = [features.fingerprint({"a": np.arange(3), "b": {"c": np.zeros(2)}}, "x", 1),
              features.fingerprint(arrays, "y", 1), features.fingerprint(arrays, "x", 2),
              features.fingerprint(arrays, "x1")]  # fmt: skip
    assert same not in others


def test_stopped_and_resumed_a_file_has_the_same_bytes(
    tiny_config: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that cannot be read lie at the ends of batches and in their midst."""
    config = tiny_config(**{"model.image.frozen": True, "evaluate.batch_size": 8})
    made, _ = make_store(config, tmp_path)
    broken, shown = {0, 3, 9, 10, 26, 29}, pictures(30)

    def decode(number: int) -> np.ndarray:
        if number in broken:
            raise ImageError(f"broken {number}")
        return shown[number]

    collection = ImageCollection([str(n) for n in range(30)], decode, "some", transformed=True)

    def compute(folder: Path) -> bytes:
        store = features.FeatureStore(folder, made, freeze_image=True, freeze_text=True)
        found = compute_features(collection, made, store, "some")
        assert found.unreadable == {str(n): f"broken {n}" for n in broken}
        assert found.numbers.tolist() == [n for n in range(30) if n not in broken]
        (path,) = folder.iterdir()
        return path.read_bytes()

    whole, run = compute(tmp_path / "whole"), features.FeatureStore.run_tower
    for stop in (1, 2, 3):
        read: list[int] = []

        def interrupted(
            self: features.FeatureStore, *arguments: object, stop: int = stop
        ) -> Iterator[np.ndarray]:
            for number, rows in enumerate(run(self, *arguments)):
                yield rows
                if number + 1 == stop:
                    raise KeyboardInterrupt

        def counted(
            self: features.FeatureStore, *arguments: object, read: list = read
        ) -> Iterator[np.ndarray]:
            for rows in run(self, *arguments):
                read.append(len(rows))
                yield rows

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(features.FeatureStore, "run_tower", interrupted)
            compute(tmp_path / f"{stop}")
        with monkeypatch.context() as patch:
            patch.setattr(features.FeatureStore, "run_tower", counted)
            assert compute(tmp_path / f"{stop}") == whole
        assert sum(read) == 24 - 8 * stop  # What was computed before is not computed again.
