"""Groups of parameters: each learns as if its rate were everybody's; bad groups are refused."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_jax import config as config_lib
from otter_jax.data.batches import Batch
from otter_jax.training.optimizers import (
    describe_groups,
    labels_of,
    layers_above,
    make_optimizer,
    make_schedule,
)
from otter_jax.training.step import at_step

STEPS = 4
IMAGE = {"pattern": "^image", "learning_rate": 1e-4, "weight_decay": 0.3, "warmup_steps": 2}
SCALES = {"pattern": "log_scale$", "learning_rate": 0.5, "schedule": "constant"}


def params_of(seed: int = 0) -> Batch:
    rows = np.random.default_rng(seed)
    shapes = {"image": (3, 2), "image_projection": (2, 2), "text": (4,), "log_scale": ()}
    return {
        name: {"kernel": jnp.asarray(rows.normal(size=shape), jnp.float32)} if shape else
        jnp.asarray(rows.normal(), jnp.float32)
        for name, shape in shapes.items()
    }  # fmt: skip


def trained(config) -> list[Batch]:
    """The parameters after each of some steps down the same gradients."""
    optimizer = make_optimizer(config, make_schedule(config, STEPS), STEPS)
    params, history = params_of(), []
    state = optimizer.init(params)
    for step in range(STEPS):
        updates, state = optimizer.update(params_of(step + 1), at_step(state, step), params)
        params = jax.tree.map(jnp.add, params, updates)
        history.append(params)
    return history


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_group_learns_as_under_an_optimizer_of_its_own(
    tiny_config: Callable, name: str
) -> None:
    common = {"optimizer.name": name, "optimizer.weight_decay": 0.1, "optimizer.learning_rate": 0.1}
    grouped = trained(tiny_config(**common, **{"optimizer.groups": (IMAGE, SCALES)}))
    alone = {f"optimizer.{key}": value for key, value in IMAGE.items() if key != "pattern"}
    for others, names in (({}, ["text"]), (alone, ["image", "image_projection"])):
        wanted = trained(tiny_config(**common | others))
        for found, expected in zip(grouped, wanted, strict=True):
            for each in names:
                np.testing.assert_allclose(
                    found[each]["kernel"], expected[each]["kernel"], rtol=1e-7, atol=1e-7
                )
    # A constant rate: SGD's last step without momentum of the schedule is 0.5 throughout.
    if name == "sgd":
        velocity, value = 0.0, float(params_of()["log_scale"])
        for step in range(STEPS):
            velocity = 0.9 * velocity + float(params_of(step + 1)["log_scale"])
            value -= 0.5 * velocity
        np.testing.assert_allclose(grouped[-1]["log_scale"], value, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_without_groups_the_optimizer_and_its_state_are_as_before(
    tiny_config: Callable, name: str
) -> None:
    config = tiny_config(**{"optimizer.name": name})
    state = make_optimizer(config, make_schedule(config, STEPS)).init(params_of())
    names = {
        jax.tree_util.keystr(path, simple=True, separator=".").split("image")[0]
        for path, _ in jax.tree.leaves_with_path(state)
    }
    wanted = {"sgd": {"2.0.trace.", "2.1.count"}, "adamw": {"1.mu.", "1.nu.", "1.count", "3.count"}}
    assert {each for each in names if "log" not in each and "text" not in each} == wanted[name]


@given(
    depth=st.integers(1, 12),
    tower=st.sampled_from(["blocks.{}.fc1.kernel", "layers.{}.attention.query.kernel"]),
)
@settings(max_examples=20, deadline=None)
def test_layers_count_from_the_highest_of_the_group(depth: int, tower: str) -> None:
    names = ["word_embeddings.embedding", *(tower.format(n) for n in range(depth)), "final_norm.b"]
    names = [f"text.{each}" for each in names] + ["text_projection.kernel", "log_scale"]
    above = layers_above(names)
    assert [above[each] for each in names] == [*range(depth + 1, 0, -1), 0, 0, 0]
    assert layers_above(names[: depth + 1])[names[depth]] == 0  # Without what lies above it.


def test_layers_of_convolutional_towers() -> None:
    names = ["conv1.kernel", "layer1.0.conv.kernel", "layer1.1.conv.kernel", "layer2.0.bn.scale"]
    assert list(layers_above([f"image.{each}" for each in names]).values()) == [3, 2, 1, 0]
    names = ["stem.bias", "stages.0.blocks.1.scale", "stages.1.downsample.bias", "pooled_norm.bias"]
    assert list(layers_above([f"image.{each}" for each in names]).values()) == [3, 2, 1, 0]


def test_layer_decay_slows_lower_layers(tiny_config: Callable) -> None:
    group = {"pattern": "^text", "learning_rate": 1.0, "layer_decay": 0.5}
    config = tiny_config(**{"optimizer.momentum": 0.0, "optimizer.groups": (group,)})
    ones = jnp.ones((2, 2))
    layers = {number: {"kernel": ones} for number in range(2)}
    text = {"word_embeddings": {"embedding": ones}, "layers": layers}
    params = {"text": text, "text_projection": {"kernel": ones}, "image": {"kernel": ones}}
    optimizer = make_optimizer(config, make_schedule(config, STEPS), STEPS)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    found = [float(each.ravel()[0]) for each in jax.tree.leaves(updates)]
    np.testing.assert_allclose(found, [-3e-3, -0.25, -0.5, -0.125, -1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (({"pattern": "^imag"}, {"pattern": "projection"}), "both match image_projection"),
        (({"pattern": "nothing"},), "no trained parameter has 'nothing' in its name"),
    ],
)
def test_idle_and_overlapping_groups_are_refused(
    tiny_config: Callable, groups: tuple, words: str
) -> None:
    config = tiny_config(**{"optimizer.groups": groups})
    with pytest.raises(ValueError, match=words):
        labels_of(config_lib.groups_of(config), params_of())


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "a", "learning_rate": -1.0}, "must not be negative"),
        ({"pattern": "a", "layer_decay": 1.5}, r"must lie in \(0, 1\]"),
        ({"pattern": "a", "lr": 1.0}, "unexpected keyword argument 'lr'; a group has a pattern"),
        ({"learning_rate": 1.0}, "missing 1 required positional argument: 'pattern'"),
        ("^image", "must be a mapping"),
    ],
)
def test_what_is_no_group_is_refused_with_the_config(
    tiny_config: Callable, group: object, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        config_lib.check(tiny_config(**{"optimizer.groups": (group,)}))


def test_the_table_has_all_parameters(tiny_config: Callable) -> None:
    config = tiny_config(**{"optimizer.groups": (IMAGE, SCALES)})
    header, *rows = describe_groups(config, params_of())
    assert header.split()[:2] == ["group", "parameters"]
    assert [row.split() for row in rows] == [
        ["^image", "10", "0.0001", "0.3", "1"],
        ["log_scale$", "1", "0.5", "0", "1"],
        ["rest", "4", "0.003", "0", "1"],
    ]
