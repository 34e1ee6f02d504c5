"""Programs that turn published collections into the tar shards `otter_jax.data.sources` reads."""
