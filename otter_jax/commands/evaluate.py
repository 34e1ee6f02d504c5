"""Measures a run's model: otter-jax evaluate --config=CONFIG [--config.KEY=VALUE]."""

from collections.abc import Sequence

from otter_jax.commands import train


def main(arguments: Sequence[str]) -> None:
    """Evaluate what the command line says."""
    train.main(["--mode=evaluate", *arguments])
