"""Modules whose arrays have shapes but no values: to be filled, counted or compared."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


class _OneKey(nnx.RngStream):
    """Gives the same key every time.

    To count keys, as flax does, takes seconds for a large tower while it is traced: each count is
    asked for its sharding, which it does not have, and JAX explains so at the length of all that
    was traced before.
    """

    def __call__(self) -> jax.Array:
        return self.key[...]


def without_values(make: Callable[[nnx.Rngs], Module]) -> Module:
    """Return the module that `make` gives of random keys; nothing is drawn."""

    def of_one_key() -> Module:
        rngs = nnx.Rngs()
        rngs.default = _OneKey(0, tag="default")
        return make(rngs)

    return nnx.eval_shape(of_one_key)
