"""The measure of how well wrong captions are found."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from studies.pair_trust import area_under_curve


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_area_counts_pairs_of_a_wrong_and_a_right_one(rows) -> None:
    alpha, wrong = np.array([a for a, _ in rows]) / 5, np.array([w for _, w in rows])
    if not 0 < wrong.sum() < len(wrong):
        return
    difference = alpha[~wrong][:, None] - alpha[wrong][None, :]
    brute = np.mean((difference > 0) + 0.5 * (difference == 0))
    assert abs(area_under_curve(alpha, wrong) - brute) < 1e-12
