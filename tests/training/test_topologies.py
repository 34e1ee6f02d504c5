"""Slices by grid and by Cloud TPU's names."""

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.training.topologies import GENERATIONS, Topology, parse_topology


@pytest.mark.parametrize(
    ("text", "wanted", "chips"),
    [
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v4-32", "v4:2x2x4", 16),  # Cloud counts a v4's two cores.
        ("v5p-128", "v5p:4x4x4", 64),
        ("v6e-256", "v6e:16x16", 256),
        ("v4:4x4x8", "v4:4x4x8", 128),
    ],
)
def test_both_kinds_of_names_are_known(text: str, wanted: str, chips: int) -> None:
    topology = parse_topology(text)
    assert (str(topology), topology.chips) == (wanted, chips)


@pytest.mark.parametrize("name", GENERATIONS)
def test_a_grid_has_as_many_chips_as_its_name_says(name: str) -> None:
    generation = GENERATIONS[name]
    for chips, grid in generation.grids.items():
        assert Topology(name, grid).chips == chips
        cloud = parse_topology(f"{generation.cloud_name}-{chips * generation.cores}")
        assert cloud == parse_topology(f"{name}:{grid}") == Topology(name, grid)
    assert min(generation.peak) > 100


@given(st.one_of(st.text(), st.sampled_from(["v5e", "v9:2x2", "v4:4x4", "v4-33", "v5e:0x4"])))
def test_other_names_are_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"choose a grid of chips \(v4:2x2x1.*up to v4-1024, v5"):
        parse_topology(text)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'otter_jax\[plan\]'"):
        parse_topology("v5e:4x4").devices()
