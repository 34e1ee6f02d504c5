"""Records become arrays: the same ones for the same seed, step and record, whatever the views."""

from pathlib import Path

import numpy as np
import pytest
from conftest import draw_shape, write_shard

from otter_jax.data import images, text_augmentations
from otter_jax.data.batches import Batch, batches
from otter_jax.data.masking import IGNORED, num_masked_slots
from otter_jax.data.pair_loader import PairLoader, Views, text_views
from otter_jax.data.records import count_reasons
from otter_jax.data.sources import Record, RecordError, open_source
from otter_jax.data.texts import Tokenizer

ALL_VIEWS = Views(
    images=3, augmentations=("light", "moco", "moco"), second_text=True, masked_text=True
)
RECORDS = np.arange(24)


def in_memory_loader(
    pairs: list[tuple[bytes, str]], tokenizer_folder: Path, views: Views
) -> PairLoader:
    source = [
        Record(f"{number:05d}", image, caption, {}, (caption,))
        for number, (image, caption) in enumerate(pairs)
    ]
    options = {"image_size": 8, "fit": "crop", "augmentation": "none", "flip": False, "seed": 0}
    return PairLoader(source, Tokenizer(tokenizer_folder, max_tokens=6), **options, views=views)


def assert_equal_batches(first: Batch, second: Batch) -> None:
    assert first.keys() == second.keys()
    for key, values in first.items():
        np.testing.assert_array_equal(values, second[key], err_msg=key)


def pair_loader(folder: Path, tokenizer_folder: Path, **changes) -> PairLoader:
    options = {
        "image_size": 32,
        "fit": "crop",
        "augmentation": "random_resized_crop",
        "flip": True,
        "seed": 0,
    }
    tokenizer = Tokenizer(tokenizer_folder, max_tokens=6)
    return PairLoader(open_source(f"webdataset:{folder}"), tokenizer, **(options | changes))


def test_pairs_are_decoded_and_tokenised(pairs_folder: Path, tokenizer_folder: Path) -> None:
    load = pair_loader(pairs_folder, tokenizer_folder)
    batch = load(0, np.array([0, 47]))
    assert batch["image"].shape == (2, 32, 32, 3) and batch["image"].dtype == np.uint8
    assert batch["tokens"].shape == (2, 6) and batch["tokens"].dtype == np.int32
    np.testing.assert_array_equal(batch["token_mask"].sum(1), [3, 3])


def test_augmentation_depends_on_step_and_record(
    pairs_folder: Path, tokenizer_folder: Path
) -> None:
    load = pair_loader(pairs_folder, tokenizer_folder)
    first = load(0, np.array([5, 6]))["image"]
    np.testing.assert_array_equal(first, load(0, np.array([5, 6]))["image"])
    np.testing.assert_array_equal(first[1], load(0, np.array([6]))["image"][0])
    assert (first != load(1, np.array([5, 6]))["image"]).any()


def test_unreadable_image_is_replaced_and_noted(
    tmp_path: Path, tokenizer_folder: Path, shape_pairs: list
) -> None:
    pairs = [shape_pairs[0], (b"not an image", "a red circle"), shape_pairs[7]]
    write_shard(tmp_path / "shard.tar", pairs)
    load = pair_loader(tmp_path, tokenizer_folder, augmentation="none", flip=False)
    batch = load(0, np.array([0, 1, 2]))
    np.testing.assert_array_equal(batch["image"][1], batch["image"][2])
    np.testing.assert_array_equal(batch["index"], [0, 2, 2])
    assert list(load.unreadable) == ["00001 (record 1)"]


def test_unusable_record_is_replaced_and_noted(tokenizer_folder: Path, shape_pairs: list) -> None:
    class Torn(list):
        """A source whose second record turns out to be unusable."""

        def __getitem__(self, number: int) -> Record:
            if number == 1:
                raise RecordError("missing image")
            return super().__getitem__(number)

    load = in_memory_loader(shape_pairs[:3], tokenizer_folder, Views(images=2))
    load.source = Torn(load.source)
    np.testing.assert_array_equal(load(0, np.array([0, 1, 2]))["index"], [0, 2, 2])
    assert load.unreadable == {"record 1": "missing image"}


def test_records_that_share_a_key_are_noted_apart(tmp_path: Path, tokenizer_folder: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, [(draw_shape("red", "bar"), "a red bar"), (b"broken", "x")])
    load = pair_loader(tmp_path, tokenizer_folder)
    np.testing.assert_array_equal(load(0, np.arange(4))["index"], [0, 2, 2, 0])
    assert list(load.unreadable) == ["00001 (record 1)", "00001 (record 3)"]
    assert count_reasons(load.unreadable.values()) == {"not an image": 2}


def test_one_of_several_captions_is_drawn_by_step_and_record(tokenizer_folder: Path) -> None:
    image, captions = draw_shape("red", "bar"), ("a red bar", "a photo of a bar", "red")
    load = in_memory_loader([(image, "")] * 30, tokenizer_folder, Views())
    single = load(3, np.arange(30))
    load.source = [Record(str(n), image, captions[0], {}, captions) for n in range(30)]
    batch = load(3, np.arange(30))
    lengths = batch["token_mask"].sum(1)
    assert set(lengths) == {1, 3, 5}
    np.testing.assert_array_equal(lengths[[7]], load(3, np.array([7]))["token_mask"].sum(1))
    assert (lengths != load(4, np.arange(30))["token_mask"].sum(1)).any()
    np.testing.assert_array_equal(batch["image"], single["image"])


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (Views(augmentations=("resize_random_crop",)), 2 * 37),
        (Views(images=2, augmentations=("resize_random_crop", "moco")), 166),
        (Views(images=2, augmentations=("none", "moco")), None),
    ],
)
def test_images_are_decoded_as_large_as_the_views_need(
    pairs_folder: Path, tokenizer_folder: Path, views: Views, expected: int | None
) -> None:
    assert pair_loader(pairs_folder, tokenizer_folder, views=views).at_least == expected


def test_a_source_without_images_ends_clearly(tmp_path: Path, tokenizer_folder: Path) -> None:
    write_shard(tmp_path / "shard.tar", [(b"nothing", "a"), (b"at all", "b")])
    with pytest.raises(ValueError, match="not one of 2 images in a row can be read"):
        pair_loader(tmp_path, tokenizer_folder)(0, np.array([0]))


def test_every_view_has_its_keys_types_and_shapes(
    pairs_folder: Path, tokenizer_folder: Path
) -> None:
    batch = pair_loader(pairs_folder, tokenizer_folder, views=ALL_VIEWS)(0, RECORDS[:5])
    image, tokens, slots = (5, 32, 32, 3), (5, 6), (5, num_masked_slots(6))
    assert {key: (values.shape, values.dtype) for key, values in batch.items()} == {
        "image": (image, np.uint8),
        "image2": (image, np.uint8),
        "image3": (image, np.uint8),
        "tokens": (tokens, np.int32),
        "token_mask": (tokens, bool),
        "tokens2": (tokens, np.int32),
        "token_mask2": (tokens, bool),
        "masked_tokens": (tokens, np.int32),
        "masked_positions": (slots, np.int32),
        "masked_labels": (slots, np.int32),
        "index": ((5,), np.int64),
    }


def test_views_differ_from_each_other(pairs_folder: Path, tokenizer_folder: Path) -> None:
    views = Views(images=3, second_text=True, masked_text=True)
    batch = pair_loader(pairs_folder, tokenizer_folder, views=views)(0, RECORDS)
    for first, second in (("image", "image2"), ("image", "image3"), ("image2", "image3")):
        assert (batch[first] != batch[second]).any(axis=(1, 2, 3)).all()
    assert (batch["tokens"] != batch["tokens2"]).any()
    assert (batch["tokens"] != batch["masked_tokens"]).any()


def test_views_have_the_augmentations_that_were_named(
    pairs_folder: Path, tokenizer_folder: Path
) -> None:
    views = Views(images=2, augmentations=("none", "moco"))
    batch = pair_loader(pairs_folder, tokenizer_folder, flip=False, views=views)(0, RECORDS)
    plain = pair_loader(pairs_folder, tokenizer_folder, flip=False, augmentation="none")(5, RECORDS)
    np.testing.assert_array_equal(batch["image"], plain["image"])
    grey = (np.ptp(batch["image2"], axis=-1) == 0).all(axis=(1, 2))
    assert 0 < grey.sum() < len(RECORDS)


def test_the_first_view_has_the_draws_it_always_had(
    pairs_folder: Path, tokenizer_folder: Path, shape_pairs: list
) -> None:
    batch = pair_loader(pairs_folder, tokenizer_folder, seed=7, views=Views(images=2))(3, RECORDS)
    for record in RECORDS:
        expected = images.training_transform(
            images.decode(shape_pairs[record][0]),
            32,
            np.random.default_rng((7, 3, record)),
            kind="random_resized_crop",
            flip=True,
        )
        np.testing.assert_array_equal(batch["image"][record], expected)


@pytest.mark.parametrize(
    "views",
    [
        Views(),
        Views(images=2),
        Views(second_text=True),
        Views(masked_text=True),
        Views(images=3, second_text=True),
    ],
)
def test_a_view_more_changes_no_other(
    pairs_folder: Path, tokenizer_folder: Path, views: Views
) -> None:
    everything = Views(images=3, second_text=True, masked_text=True)
    fewer = pair_loader(pairs_folder, tokenizer_folder, views=views)(2, RECORDS)
    all_of_them = pair_loader(pairs_folder, tokenizer_folder, views=everything)(2, RECORDS)
    assert fewer.keys() <= all_of_them.keys()
    assert_equal_batches(fewer, {key: all_of_them[key] for key in fewer})


def test_views_depend_on_seed_step_and_record_alone(
    pairs_folder: Path, tokenizer_folder: Path
) -> None:
    load = pair_loader(pairs_folder, tokenizer_folder, views=ALL_VIEWS)
    batch = load(4, RECORDS)
    turned = load(4, RECORDS[::-1])
    assert_equal_batches(batch, {key: values[::-1] for key, values in turned.items()})
    another = pair_loader(pairs_folder, tokenizer_folder, views=ALL_VIEWS)
    alone = [another(4, RECORDS[row : row + 1]) for row in range(24)]
    assert_equal_batches(batch, {key: np.concatenate([b[key] for b in alone]) for key in batch})

    other_step = load(5, RECORDS)
    other_seed = pair_loader(pairs_folder, tokenizer_folder, views=ALL_VIEWS, seed=1)(4, RECORDS)
    for key in ("image", "image2", "image3", "tokens2", "masked_tokens"):
        for other in (other_step, other_seed):
            assert (batch[key] != other[key]).any()


def test_a_resumed_run_sees_the_same_batches(pairs_folder: Path, tokenizer_folder: Path) -> None:
    def run(start_step: int, threads: int) -> list[Batch]:
        load = pair_loader(pairs_folder, tokenizer_folder, views=ALL_VIEWS)
        options = {"batch_size": 16, "seed": 0, "start_step": start_step, "threads": threads}
        stream = batches(load, 48, **options)
        return [next(stream) for _ in range(start_step, 6)]  # two epochs

    for whole, resumed in zip(run(0, threads=1)[3:], run(3, threads=2), strict=True):
        assert_equal_batches(whole, resumed)


def test_an_image_is_decoded_once_for_all_views(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = [], images.decode
    monkeypatch.setattr(
        images, "decode", lambda data, **how: decoded.append(data) or decode(data, **how)
    )
    image = draw_shape("pink", "ring")  # in no other test, whose threads may still be running
    in_memory_loader([(image, "a pink ring")], tokenizer_folder, ALL_VIEWS)(0, np.array([0]))
    assert decoded.count(image) == 1


def test_captions_without_words_or_letters(tokenizer_folder: Path, shape_pairs: list) -> None:
    captions = ["", " ", "circle", "🦦", "🦦 🦦 🦦", "...", "a red circle " * 800]
    pairs = [(shape_pairs[0][0], caption) for caption in captions]
    load = in_memory_loader(pairs, tokenizer_folder, Views(second_text=True, masked_text=True))
    for step in range(20):
        batch = load(step, np.arange(len(captions)))
        # The words that are left of a caption are as many as one at least, or as none.
        np.testing.assert_array_equal(
            batch["token_mask2"].any(1), [False, False, True, True, True, True, True]
        )
        # Unknown words are no token that could be recovered.
        used = (batch["masked_labels"] != IGNORED).any(1)
        np.testing.assert_array_equal(used[[0, 1, 3, 4, 5]], False)
        np.testing.assert_array_equal(
            batch["masked_tokens"][[0, 1, 3, 4, 5]], batch["tokens"][[0, 1, 3, 4, 5]]
        )


def test_masked_captions_hide_ordinary_tokens_alone(
    pairs_folder: Path, tokenizer_folder: Path
) -> None:
    load = pair_loader(pairs_folder, tokenizer_folder, views=Views(masked_text=True))
    tokenizer = load.tokenizer
    changed = 0
    for step in range(10):
        batch = load(step, RECORDS)
        ordinary = batch["token_mask"] & ~np.isin(batch["tokens"], tokenizer.special_ids)
        rows, slots = np.nonzero(batch["masked_labels"] != IGNORED)
        places = batch["masked_positions"][rows, slots]
        assert ordinary[rows, places].all()
        labels = batch["masked_labels"][rows, slots]
        np.testing.assert_array_equal(labels, batch["tokens"][rows, places])
        shown = batch["masked_tokens"][rows, places]
        assert np.isin(shown, [*tokenizer.ordinary_ids, tokenizer.mask_id]).all()
        changed += (shown == tokenizer.mask_id).sum()
    assert changed > 50


def test_text_views_serve_loaders_of_other_kinds(
    pairs_folder: Path, tokenizer_folder: Path, shape_pairs: list
) -> None:
    views = Views(second_text=True, masked_text=True)
    load = pair_loader(pairs_folder, tokenizer_folder, views=views)
    batch = load(3, RECORDS)
    captions = [shape_pairs[record][1] for record in RECORDS]
    tokens, token_mask = load.tokenizer(captions)
    texts = text_views(
        captions, tokens, token_mask, load.tokenizer, views, seed=0, step=3, records=RECORDS
    )
    assert len(texts) == 5
    assert_equal_batches(texts, {key: batch[key] for key in texts})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "views.images=0; it must be 1 to 3"),
        ({"images": 4}, "views.images=4; it must be 1 to 3"),
        ({"images": 2, "augmentations": ("moco",)}, r"names 1 for views\.images=2; name one for"),
        ({"augmentations": ("mocha",)}, "unknown augmentation 'mocha'; one of none,"),
    ],
)
def test_views_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Views(**options)


def test_an_unknown_augmentation_is_refused_before_the_first_batch(
    pairs_folder: Path, tokenizer_folder: Path
) -> None:
    with pytest.raises(ValueError, match="unknown augmentation 'blur'; one of none,"):
        pair_loader(pairs_folder, tokenizer_folder, augmentation="blur")


def test_a_missing_wordnet_is_noticed_before_the_first_batch(
    pairs_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    text_augmentations._read_wordnet.cache_clear()
    with pytest.raises(FileNotFoundError, match="no WordNet in"):
        pair_loader(pairs_folder, tokenizer_folder, views=Views(second_text=True))
