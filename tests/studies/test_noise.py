"""Noise of the field's kinds, and its published files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studies import noise

LABELS = st.lists(st.lists(st.sampled_from("abcde"), max_size=3), min_size=1, max_size=40)


def five_each(images: int) -> noise.Captions:
    text = tuple(f"caption {n} of image {i}" for i in range(images) for n in range(5))
    return noise.Captions(text, np.repeat(np.arange(images), 5))


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@given(labels=LABELS, share=st.floats(0, 1), seed=st.integers(0, 99))
def test_what_stands_for_a_caption_shares_a_label_with_it(labels, share, seed) -> None:
    image_of = np.arange(len(labels)) // 2
    source = noise.sharing_a_label(labels, image_of, share, np.random.default_rng(seed))
    changed = np.flatnonzero(source != np.arange(len(labels)))
    assert len(changed) <= round(share * len(labels))
    assert all(set(labels[i]) & set(labels[source[i]]) for i in changed)
    assert (image_of[source] != image_of)[changed].all()


def test_all_that_share_a_label_are_drawn_equally_often() -> None:
    labels = [["cat"], ["cat", "cat"], ["dog"], ["cat"], ["cat"]]
    rng, image_of = generator(), np.arange(5)
    drawn = [noise.sharing_a_label(labels, image_of, 1.0, rng) for _ in range(900)]
    counts = np.bincount([each[1] for each in drawn], minlength=5)
    assert counts[1] == counts[2] == 0 and counts[[0, 3, 4]].min() > 240
    assert all(each[2] == 2 for each in drawn)  # There is no other dog.


def test_random_noise_has_its_share_and_keeps_every_caption() -> None:
    captions = five_each(100)
    found = noise.make(noise.Noise("random", 0.4), captions, (), generator())
    assert sorted(found.caption) == list(range(500))
    # A few get another caption of the same image, which is right.
    assert found.wrong(captions).mean() == pytest.approx(0.4, abs=0.02)


def test_a_number_a_caption_as_l2rm_publishes_it(tmp_path: Path) -> None:
    captions, path = five_each(6), tmp_path / "f30k_precomp_0.2.npy"
    index = np.repeat(np.arange(6), 5)
    index[[3, 17]] = index[[17, 3]]
    np.save(path, index)
    found = noise.make(noise.Noise.parse(str(path)), captions, (), generator())
    np.testing.assert_array_equal(found.image, index)
    assert np.flatnonzero(found.wrong(captions)).tolist() == [3, 17]


def test_a_number_an_image_as_decl_publishes_it(tmp_path: Path) -> None:
    captions, path = five_each(4), tmp_path / "0.5.npy"
    np.save(path, np.array([0, 3, 2, 1]))
    found = noise.make(noise.Noise.parse(str(path)), captions, (), generator())
    assert found.image.tolist() == [0] * 5 + [3] * 5 + [2] * 5 + [1] * 5
    assert np.flatnonzero(found.wrong(captions)).tolist() == [*range(5, 10), *range(15, 20)]


def test_captions_as_npc_publishes_them(tmp_path: Path) -> None:
    captions, path = five_each(3), tmp_path / "0.2_noise_train_caps.txt"
    lines = [f"{text.upper()} ." for text in captions.text]  # Spelt in another way.
    lines[2], lines[14] = lines[14], lines[2]
    path.write_text("".join(f"{line}\n" for line in lines))
    found = noise.make(noise.Noise.parse(str(path)), captions, (), generator())
    np.testing.assert_array_equal(found.image, captions.image_of)
    assert (found.caption[2], found.caption[14], found.caption[7]) == (14, 2, 7)
    assert np.flatnonzero(found.wrong(captions)).tolist() == [2, 14]


def test_images_come_into_the_order_of_scan(tmp_path: Path) -> None:
    captions, path = five_each(3), tmp_path / "train_caps.txt"
    lines = [captions.text[number] for number in (12, 10, 11, 14, 13, *range(5), *range(5, 10))]
    path.write_text("".join(f"{line} .\n" for line in lines))
    images, numbers = noise.in_order(path, captions)
    assert images.tolist() == [2, 0, 1] and numbers[:6].tolist() == [12, 10, 11, 14, 13, 0]
    twins = captions._replace(text=captions.text[:5] * 2 + captions.text[10:])
    path.write_text("".join(f"{line}\n" for line in twins.text))
    assert sorted(noise.in_order(path, twins)[0]) == [0, 1, 2]
    path.write_text("".join(f"{line}\n" for line in [*lines[:-1], "caption 0 of image 0"]))
    with pytest.raises(
        ValueError, match=r"train_caps.txt:15: 'caption 0 of image 0' is no caption"
    ):
        noise.in_order(path, captions)
    path.write_text("".join(f"{line}\n" for line in lines[:-1]))
    with pytest.raises(ValueError, match="14 lines are no multiple of 3 images"):
        noise.in_order(path, captions)
    path.write_text("")
    with pytest.raises(ValueError, match=r"train_caps.txt is empty; it should have the captions"):
        noise.in_order(path, captions)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.arange(7), "7 numbers, where there are 4 images with 20 captions"),
        (np.array([0, 1, 2, 4]), "numbers from 0 to 4, of 4 images"),
        (np.array([0.0, 1.0, 2.0, 3.0]), "expected int"),
        (np.array({"0": 1}, dtype=object), "pickles are not read"),  # As NPC's memory banks are.
    ],
)
def test_other_files_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        noise.read_index(tmp_path / "x.npy", five_each(4))


def test_damaged_files_are_refused_whatever_their_header_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(4))
    whole = path.read_bytes()
    for damaged in (
        whole.replace(b"(4,)", b"(9999999999999,)", 1),
        whole.replace(b"(4,)", b"(4,('", 1),
        whole[:-3],
        whole[:20],
        b"PK\x03\x04" + whole,
        b"",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"no whole \.npy file of numbers"):
            noise.read_index(path, five_each(4))


@pytest.mark.parametrize("text", ["rnadom:0.4", "random", "random:1.4", "noun:x", ":0.4"])
def test_unknown_noise_is_refused_with_what_is_known(text: str) -> None:
    with pytest.raises(ValueError, match="random:SHARE, category:SHARE, noun:SHARE"):
        noise.Noise.parse(text)
