"""Published collections as what `otter_jax.data.sources` reads: tar shards, TFDS data sets."""
