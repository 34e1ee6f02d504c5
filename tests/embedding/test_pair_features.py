"""Features of pairs in files, against those of the encoder in memory."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import write_shard
from ml_collections import ConfigDict
from PIL import Image

from otter_jax import sharding
from otter_jax.data.records import Record, RecordError, Source, read_records
from otter_jax.data.sources import open_source
from otter_jax.embedding.encoder import Encoder, build_module, make_encoder
from otter_jax.embedding.features import FeatureStore
from otter_jax.embedding.image_collections import compute_features, from_source, named_records
from otter_jax.embedding.pair_features import embed_pairs
from otter_jax.models import dual_encoder


@pytest.fixture
def encoder(tiny_config: Callable[..., ConfigDict]) -> Encoder:
    config = tiny_config()
    model, variables = dual_encoder.split(build_module(config))
    mesh = sharding.make_mesh()
    return make_encoder(config, model, sharding.put_state(mesh, variables), mesh)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("part", [7, 256])
def test_pairs_that_can_be_read(
    encoder: Encoder,
    shape_pairs: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: int,
) -> None:
    monkeypatch.setattr("otter_jax.embedding.pair_features.PART", part)
    write_shard(tmp_path / "0.tar", [*shape_pairs[:11], (b"broken", "x"), *shape_pairs[12:30]])
    source = open_source(f"webdataset:{tmp_path / '0.tar'}")
    found = embed_pairs(source, encoder, tmp_path)
    readable = [number for number in range(30) if number != 11]
    assert found.numbers.tolist() == readable
    pictures = [np.asarray(Image.open(io.BytesIO(shape_pairs[n][0])).convert("RGB"))
                for n in readable]  # fmt: skip
    expected = encoder.image_features([encoder.transform(each) for each in pictures])
    np.testing.assert_allclose(found.image, unit(expected), atol=1e-3)
    texts = encoder.text_features([shape_pairs[number][1] for number in readable])
    np.testing.assert_allclose(found.text, unit(texts), atol=1e-3)
    assert found.image.dtype == found.text.dtype == np.float16
    some = embed_pairs(source, encoder, tmp_path, [3, 11, 20])
    assert some.numbers.tolist() == [3, 20] and list(some.keys) == ["00003", "00020"]
    np.testing.assert_allclose(some.text, unit(texts)[[3, 19]], atol=1e-3)


class Batched:
    """A source that reads records many at a time alone, and notes which."""

    def __init__(self, source: Source) -> None:
        self.inner, self.read = source, []
        self.name, self.fingerprint = source.name, source.fingerprint

    def __len__(self) -> int:
        return len(self.inner)

    def read_many(self, numbers: Sequence[int]) -> list[Record | RecordError]:
        self.read.append(list(numbers))
        return read_records(self.inner, numbers)


def test_records_are_read_many_at_a_time(
    encoder: Encoder,
    shape_pairs: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("otter_jax.embedding.image_collections.READ_AT_A_TIME", 8)
    write_shard(tmp_path / "0.tar", [*shape_pairs[:4], (b"broken", "x"), *shape_pairs[5:24]])
    single = open_source(f"webdataset:{tmp_path / '0.tar'}")
    source, wanted = Batched(single), list(range(1, 24, 2))
    found = embed_pairs(source, encoder, tmp_path, wanted)
    assert source.read == [wanted[:8], wanted[8:]]
    images = np.array(found.image)  # Its file is written again.
    expected = embed_pairs(single, encoder, tmp_path, wanted)
    np.testing.assert_array_equal(images, expected.image)
    assert found.keys == expected.keys


def test_what_is_counted_is_embedded(
    encoder: Encoder,
    shape_pairs: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    """A set of a single batch takes as long as its batch, not as long as gathering it."""
    now = 0.0
    monkeypatch.setattr("otter_jax.terminal.time.perf_counter", lambda: now)

    def slowly(embed: Callable) -> Callable:
        def embed_slowly(*arguments) -> np.ndarray:
            nonlocal now
            now += 5.0
            return embed(*arguments)

        return embed_slowly

    for name in ("image_features", "text_features"):
        monkeypatch.setattr(Encoder, name, slowly(getattr(Encoder, name)))
    write_shard(tmp_path / "0.tar", shape_pairs[:10])
    embed_pairs(open_source(f"webdataset:{tmp_path / '0.tar'}"), encoder, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(", and")[0] for line in said] == [
        "images of pairs: 10 in 5 s (2.0 a second)",
        "captions of pairs: 10 in 5 s (2.0 a second)",
    ]


def test_equal_captions_are_embedded_once(
    encoder: Encoder, shape_pairs: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("otter_jax.embedding.pair_features.PART", 4)
    captions = ["red", "a bar", "red", "blue", "a bar", "red", "red", "green", "red", "blue"]
    pairs = [(image, text) for (image, _), text in zip(shape_pairs, captions, strict=False)]
    write_shard(tmp_path / "0.tar", pairs)
    expected = unit(encoder.text_features(captions))
    embedded: list[str] = []

    def note(own: Encoder, texts: Sequence[str]) -> np.ndarray:
        embedded.extend(texts)
        return text_features(own, texts)

    text_features = Encoder.text_features
    monkeypatch.setattr(Encoder, "text_features", note)
    found = embed_pairs(open_source(f"webdataset:{tmp_path / '0.tar'}"), encoder, tmp_path)
    assert embedded == ["red", "a bar", "blue", "green"]
    np.testing.assert_allclose(found.text, expected, atol=1e-3)


def test_nothing_that_can_be_read(encoder: Encoder, tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", [(b"broken", "x")] * 3)
    source = open_source(f"webdataset:{tmp_path / '0.tar'}")
    with pytest.raises(ValueError, match="not one of 3 images can be read"):
        embed_pairs(source, encoder, tmp_path)


def test_features_that_exist_are_not_computed_again(
    encoder: Encoder, shape_pairs: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "0.tar", [*shape_pairs[:6], (b"broken", "x"), *shape_pairs[6:10]])
    source = open_source(f"webdataset:{tmp_path / '0.tar'}")
    store = FeatureStore(tmp_path / "features", encoder, freeze_image=True, freeze_text=True)
    assert store.known_images(source.fingerprint) is None
    computed = embed_pairs(source, encoder, tmp_path, store=store)
    images, text, numbers, keys = (np.array(each) for each in computed)
    names = [name for name, _ in named_records(source)]
    compute_features(from_source(source, names), encoder, store, "some")
    monkeypatch.setattr(Encoder, "image_features", lambda *arguments: pytest.fail("again"))
    found = embed_pairs(source, encoder, tmp_path, store=store)
    np.testing.assert_array_equal(found.image, images)
    np.testing.assert_array_equal(found.text, text)
    assert list(found.numbers) == list(numbers) and list(found.keys) == list(keys)
    some = embed_pairs(source, encoder, tmp_path, [2, 6, 8], store)
    assert list(some.numbers) == [2, 8]
    np.testing.assert_array_equal(some.image, images[[2, 7]])
