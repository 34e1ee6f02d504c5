"""The study's splits and wrong captions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from studies.collection import NUM_SPLITS, Collection, make_split, shuffled_captions


def random_collection(num_pairs: int = 300) -> Collection:
    rng = np.random.default_rng(0)
    normal = rng.normal
    return Collection(
        image=normal(size=(num_pairs, 40)).astype(np.float32),
        text=normal(size=(num_pairs, 384)).astype(np.float32),
        family=np.unique(rng.integers(0, num_pairs // 2, num_pairs), return_inverse=True)[1],
        folder=rng.integers(0, 12, num_pairs),
        class_image=normal(size=(50, 40)).astype(np.float32),
        class_text=normal(size=(20, 384)).astype(np.float32),
        labels=rng.integers(0, 20, (50, 1)),
    )


def test_no_family_is_on_two_sides_and_no_pair_is_tested_twice() -> None:
    collection = random_collection()
    splits = [make_split(collection, number) for number in range(NUM_SPLITS)]
    for split in splits:
        parts = (split.train, split.validation, split.test)
        assert sorted(np.concatenate(parts)) == list(range(300))
        families = [set(collection.family[part]) for part in parts]
        assert not families[0] & families[1] and not (families[0] | families[1]) & families[2]
        assert abs(len(split.test) - 30) < 8 and abs(len(split.validation) - 30) < 8
        images = np.concatenate([split.validation_images, split.test_images])
        assert sorted(images) == list(range(50))
    tested = np.concatenate([split.test for split in splits])
    assert len(np.unique(tested)) == len(tested)


@given(
    groups=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_wrong_captions_change_places_within_their_group(groups, share, seed) -> None:
    groups = np.array(groups)
    order, wrong = shuffled_captions(groups, share, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(groups)))
    np.testing.assert_array_equal(groups[order], groups)
    np.testing.assert_array_equal(wrong, order != np.arange(len(groups)))


def test_share_of_wrong_captions() -> None:
    groups = np.random.default_rng(0).integers(0, 150, 5000)
    for share in (0.0, 0.2, 0.6):
        for each in (groups, np.zeros(5000, int)):
            _, wrong = shuffled_captions(each, share, np.random.default_rng(1))
            assert abs(wrong.mean() - share) < 0.01
