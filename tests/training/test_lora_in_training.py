"""Low-rank updates in the train step: the same on one device, on eight, split and in parts."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from training.test_step import assert_close, trained, vit_config

from otter_jax import sharding

LORA = {
    f"model.{tower}.lora.{name}": value
    for tower in ("image", "text")
    for name, value in {"rank": 4, "dropout": 0.3}.items()
}


def test_eight_devices_with_split_state_and_micro_batches_equal_one(
    tiny_config: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
    changes = {"objective.name": "otter", "optimizer.learning_rate": 3e-3} | LORA
    metrics, state = trained(vit_config(tiny_config, **changes), 1)
    split = vit_config(tiny_config, **changes, fsdp=True, micro_batch=8)
    split_metrics, split_state = trained(split, 8)
    np.testing.assert_allclose(split_metrics["loss"], metrics["loss"], rtol=1e-5)
    assert_close(split_state.variables, state.variables, rtol=1e-3, atol=1e-4)
    # The teacher shares what is frozen: it has its own updates and no more.
    assert jax.tree.structure(state.teacher) == jax.tree.structure(state.variables.params)
    assert sum(x.size for x in jax.tree.leaves(state.teacher)) < 0.5 * sum(
        x.size for x in jax.tree.leaves(state.variables.frozen)
    )
