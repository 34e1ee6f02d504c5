"""Charts keep what matters of a curve, and say the numbers that were given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.pictures import charts


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 50))
def test_thinning_keeps_ends_and_extremes(values: list[float], count: int) -> None:
    kept = charts.thin(np.array(values), count)
    assert (np.diff(kept) > 0).all() and len(kept) <= max(count + 2, 4)
    assert kept[0] == 0 and kept[-1] == len(values) - 1
    chosen = [values[place] for place in kept]
    assert min(chosen) == min(values) and max(chosen) == max(values)


def test_one_spike_among_a_hundred_thousand_steps_is_kept() -> None:
    values = np.ones(100_000)
    values[54_321] = 9.0
    assert 54_321 in charts.thin(values, 800)


def test_values_are_said_and_lie_where_the_ticks_say() -> None:
    chart = charts.make_chart("Loss", {"loss": {20: 1.0, 0: 3.0, 8: 2.0}})
    (line,) = chart.lines
    assert (line.first, line.last) == ("3 at step 0", "1 at step 20")
    assert (line.lowest, line.highest) == ("1 at step 20", "3 at step 0")
    assert "loss: 3 at step 0, 1 at step 20" in chart.in_words
    upward = {text: place for place, text in chart.upward}
    across = {text: place for place, text in chart.across}
    assert [(x, y) for x, y, _ in line.marks][1] == (across["8"], upward["2"])


def test_a_constant_a_share_and_one_step() -> None:
    chart = charts.make_chart("Hits", {"hit@1": {5: 0.25}}, share=True)
    assert chart.lines[0].last == "25.0 % at step 5"
    assert all(text.endswith("%") for _, text in chart.upward)
    assert np.isfinite([place for place, _ in chart.upward + chart.across]).all()


@pytest.mark.parametrize(("most", "share"), [(1.0, True), (1e6, False)])
@given(data=st.data())
def test_the_axis_of_a_constant_stays_within_what_it_can_be(
    data: st.DataObject, most: float, share: bool
) -> None:
    value = data.draw(st.just(0.0) | st.floats(1e-6, most))
    noise = data.draw(st.sampled_from([0.0, 1e-8]))  # As of sums in float32.
    chart = charts.make_chart("x", {"x": {1: value, 2: value * (1 - noise)}}, share=share)
    ticks = [float(text.removesuffix(" %")) for _, text in chart.upward]
    assert ticks == sorted(set(ticks))
    assert 0 <= ticks[0] <= value * (100 if share else 1) * (1 + 1e-5)
    assert value * (100 if share else 1) * (1 - 1e-5) <= ticks[-1] <= (100 if share else np.inf)
    assert all(charts.TOP <= y <= charts.BOTTOM for _, y, _ in chart.lines[0].marks)


def test_a_constant_below_zero_has_an_axis_around_it() -> None:
    upward = charts.make_chart("x", {"x": {1: -3.0}}).upward
    assert float(upward[0][1]) < -3 < float(upward[-1][1]) <= 0


def test_rounding_puts_no_axis_beyond_all_and_writes_no_minus_before_0() -> None:
    chart = charts.make_chart("x", {"x": {1: 1 + 2**-23}}, share=True)
    assert chart.upward[-1][1] == "100 %"
    assert charts.make_chart("x", {"x": {1: -0.0}}).lines[0].last == "0 at step 1"
