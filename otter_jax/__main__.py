"""python -m otter_jax COMMAND is otter-jax COMMAND."""

from otter_jax.commands.main import main

if __name__ == "__main__":
    main()
