"""Which pairs of a batch are shown."""

import numpy as np

from otter_jax.pictures import gallery


def test_linked_pairs_stand_beside_each_other() -> None:
    target = np.full((12, 12), 0.001)
    for group in ([2, 5, 7, 9], [1, 3, 4, 8]):
        for row in group:
            target[row, [other for other in group if other != row]] = 0.3
    target[2, [5, 7, 9]] = [0.4, 0.35, 0.25]
    target[1, [3, 4, 8]] = [0.31, 0.31, 0.31]
    chosen = gallery.linked_groups(target, 8)
    assert set(chosen[:4]) == {1, 3, 4, 8} and set(chosen[4:]) == {2, 5, 7, 9}


def test_every_pair_at_most_once_and_never_too_many() -> None:
    target = np.random.default_rng(0).dirichlet(np.ones(10), size=10)
    for count in (3, 10, 40):
        chosen = gallery.linked_groups(target, count)
        assert len(chosen) == min(count, 10) == len(set(chosen.tolist()))


def test_small_batches_are_shown_whole() -> None:
    assert sorted(gallery.linked_groups(np.full((2, 2), 0.5), 20)) == [0, 1]


def test_file_names() -> None:
    assert gallery.file_name("webdataset:/a/{0..3}.tar") == "webdataset__a__0__3__tar"
