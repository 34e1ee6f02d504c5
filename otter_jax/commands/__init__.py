"""The programs behind `otter-jax`, a file each; main.py chooses."""
