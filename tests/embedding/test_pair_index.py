"""Training pairs are found by text and picture, doubted by trust, and dropped by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from otter_jax import config as config_lib
from otter_jax import sharding
from otter_jax.data.held_out import hold_out
from otter_jax.data.kept_pairs import keep_listed
from otter_jax.data.sources import open_source
from otter_jax.embedding import encoder, pair_index
from otter_jax.embedding.pair_index import DropList, PairIndex
from otter_jax.models import dual_encoder


@pytest.fixture(scope="module")
def kept() -> dict[str, PairIndex]:
    return {}


@pytest.fixture
def pairs(tiny_config: Callable, tmp_path: Path, kept: dict) -> PairIndex:
    """All 48 drawings, embedded once by a model that has learned nothing."""
    if not kept:
        config = tiny_config()
        (tmp_path / "config.json").write_text(json.dumps(config_lib.as_dict(config)))
        model = encoder.make_encoder(
            config, *dual_encoder.split(encoder.build_module(config)), sharding.make_mesh()
        )
        kept["pairs"] = pair_index.index_pairs(tmp_path, model, limit=100)
    return kept["pairs"]


def test_every_pair_is_its_own_nearest(pairs: PairIndex) -> None:
    assert len(pairs.keys) == len(pairs.numbers) == len(pairs.image) == 48
    for place in (0, 17, 47):
        (found, cosine), *_ = pairs.search_image(pairs.picture(place), 3)
        assert cosine == pytest.approx(1.0, abs=1e-3)  # Features are kept in half precision.
        np.testing.assert_allclose(pairs.image[found], pairs.image[place], atol=1e-3)
        around = [each for each, _ in pairs.neighbors(place, 5)]
        assert len(around) == 5 and place not in around


def test_texts_find_images_by_their_cosines(pairs: PairIndex) -> None:
    cosines = pairs.image @ pairs.encoder.encode_text(["a red circle"])[0]
    found = pairs.search_text("a red circle", 4)
    np.testing.assert_allclose([each for _, each in found], np.sort(cosines)[::-1][:4], atol=1e-5)
    assert len(pairs.search_text("a red circle", 100)) == 48
    with pytest.raises(ValueError, match="is empty"):
        pairs.search_text(" ", 4)


def test_least_trusted_come_first(pairs: PairIndex) -> None:
    order = pairs.least_trusted(10)
    assert len(order) == 10 and (np.diff(pairs.alpha[order]) >= 0).all()
    assert pairs.alpha[order[0]] == pairs.alpha.min()


def test_what_is_dropped_stays_dropped(tmp_path: Path) -> None:
    path = tmp_path / "keep.txt"
    DropList(path, ["a", "b", "c", "d"]).drop("b")
    again = DropList(path, ["a", "b", "c", "d"])
    again.drop("d")
    assert path.read_text() == "a\nc\n" and len(again) == 2
    assert "b" in again and "a" not in again
    assert [each.name for each in tmp_path.iterdir()] == ["keep.txt"]


def test_only_pairs_that_a_run_was_trained_on_are_in_its_index(
    tiny_config: Callable, pairs: PairIndex, tmp_path: Path
) -> None:
    listed = pairs.keys[:40]
    (tmp_path / "listed.txt").write_text("".join(f"{key}\n" for key in listed))
    changes = {"data.keep": str(tmp_path / "listed.txt"), "data.held_out": 0.2}
    config = tiny_config(**changes)
    (tmp_path / "config.json").write_text(json.dumps(config_lib.as_dict(config)))
    found = pair_index.index_pairs(tmp_path, pairs.encoder, limit=100)
    trained = hold_out(keep_listed(open_source(config.data.train), changes["data.keep"]), 0.2, 0)
    assert found.source.fingerprint == trained.train.fingerprint
    assert set(found.keys) < set(listed) and len(found.keys) == len(trained.train)


def test_a_run_whose_pairs_are_gone_says_so(tiny_config: Callable, tmp_path: Path) -> None:
    config = tiny_config(**{"data.train": f"webdataset:{tmp_path / 'gone'}"})
    (tmp_path / "config.json").write_text(json.dumps(config_lib.as_dict(config)))
    shutil.rmtree(tmp_path / "gone", ignore_errors=True)
    with pytest.raises(FileNotFoundError, match="gone"):
        pair_index.index_pairs(tmp_path, None, limit=10)
