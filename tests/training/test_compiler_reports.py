"""What is read of XLA's own words, of a program compiled here and of what libtpu writes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from otter_jax import sharding
from otter_jax.training.compiler_reports import Collective, collectives, dumped, memory

# As libtpu writes an exchange that runs beside other work: once in each piece, on one channel.
ASYNCHRONOUS = """
  %ag.1 = (f32[8,16]{1,0:T(8,128)}, f32[64,16]{1,0}) all-gather-start(%x), channel_id=7
  %ag.2 = f32[64,16]{1,0:T(8,128)} all-gather(%x), channel_id=8, dimensions={0}
  %ag.3 = f32[64,16]{1,0:T(8,128)} all-gather(%x), channel_id=8, dimensions={0}
  %rs = bf16[8,2]{1,0} reduce-scatter(%y), channel_id=9
"""
REPORT = "Memory Space: default (color=0)\nTotal bytes: 1188854784 (1.11GiB)\n  cumulative_size;"


def test_collectives_of_a_compiled_program_are_found() -> None:
    mesh = sharding.make_mesh()
    rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=sharding.split_rows(mesh))
    whole = sharding.replicated(mesh)

    def gather_and_sum(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.with_sharding_constraint(rows, whole) * 2, rows.sum(axis=0)

    jitted = jax.jit(gather_and_sum, out_shardings=whole)
    found = collectives(jitted.lower(rows).compile().as_text())
    assert sorted(found, key=lambda each: each.kind) == [
        Collective("all-gather", 4 * 64 * 16),
        Collective("all-reduce", 4 * 16),
    ]


def test_an_exchange_in_pieces_is_counted_once() -> None:
    assert collectives(ASYNCHRONOUS) == [
        Collective("all-gather", 4 * (8 + 64) * 16),
        Collective("all-gather", 4 * 64 * 16),
        Collective("reduce-scatter", 2 * 8 * 2),
    ]


def test_memory_is_that_of_the_first_space() -> None:
    assert memory(REPORT) == 1188854784
    with pytest.raises(ValueError, match="does not say how many bytes"):
        memory("")


def test_dumped_is_the_steps_own(tmp_path: Path) -> None:
    assert dumped(tmp_path, "report.txt") is None
    (tmp_path / "module_1.jit_other.report.txt").write_text("other")
    assert dumped(tmp_path, "report.txt") is None
    (tmp_path / "module_2.jit_train_step.report.txt").write_text("step")
    assert dumped(tmp_path, "report.txt") == "step"
