"""Slices by grid and by Cloud TPU's names."""

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_jax.training.topologies import GENERATIONS, TpuSlice, parse_topology


@pytest.mark.parametrize(
    ("text", "wanted", "chips"),
    [
        ("v5e:4x4", "v5e:4x4", 16),
        ("v5litepod-16", "v5e:4x4", 16),
        ("v4-32", "v4:2x2x4", 16),  # Cloud counts a v4's two cores.
        ("v5p-128", "v5p:4x4x4", 64),
        ("v6e-256", "v6e:16x16", 256),
        ("v4:4x4x8", "v4:4x4x8", 128),
        ("h100:2x8", "h100:2x8", 16),
        ("a100-40:1x4", "a100-40:1x4", 4),
    ],
)
def test_both_kinds_of_names_are_known(text: str, wanted: str, chips: int) -> None:
    topology = parse_topology(text)
    assert (str(topology), topology.chips) == (wanted, chips)


@pytest.mark.parametrize("name", GENERATIONS)
def test_a_grid_has_as_many_chips_as_its_name_says(name: str) -> None:
    generation = GENERATIONS[name]
    for chips, grid in generation.grids.items():
        assert TpuSlice(name, grid).chips == chips
        cloud = parse_topology(f"{generation.cloud_name}-{chips * generation.cores}")
        assert str(cloud) == f"{name}:{grid}" == str(parse_topology(f"{name}:{grid}"))
    assert min(generation.chip.peak) > 100


def test_gpus_of_several_machines_are_as_fast_as_their_network() -> None:
    one, two = parse_topology("h100:1x8"), parse_topology("h100:2x8")
    assert two.chip.link < one.chip.link / 5
    assert two.description()["topology"] == "1x2x8"


@given(
    st.one_of(
        st.text(),
        st.sampled_from(["v5e", "v9:2x2", "v4:4x4", "v4-33", "v5e:0x4", "h100:8", "h100:0x8"]),
    )
)
def test_other_names_are_refused_with_those_that_there_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"choose a grid of chips \(v4:2x2x1.*up to v4-1024, v5"):
        parse_topology(text)


@pytest.mark.parametrize(("name", "extra"), [("v5e:4x4", "plan"), ("h100:1x8", "plan-gpu")])
def test_a_missing_compiler_is_named(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'otter_jax\[{extra}\]'"):
        parse_topology(name).devices()
