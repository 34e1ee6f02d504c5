"""python -m otter_jax COMMAND is otter-jax COMMAND."""

from otter_jax.commands.main import start

if __name__ == "__main__":
    start()
