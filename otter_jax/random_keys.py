"""Where every random number of a run comes from: one seed, a name, a step."""

import zlib

import jax


def named_key(seed: int, name: str, step: jax.Array | int = 0) -> jax.Array:
    """Return the key for one purpose at one step; nothing in a run draws from any other."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)
