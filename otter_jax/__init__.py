"""otter_jax trains zero-shot image classifiers from few, noisy image-text pairs.

model = otter_jax.load("runs/quickstart")
model.classify(images, ["a cat", "a dog"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otter_jax.embedding.encoder import load

__all__ = ["load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the heavy parts when they are first asked for."""
    if name == "load":
        from otter_jax.embedding.encoder import load

        return load
    raise AttributeError(f"module 'otter_jax' has no attribute {name!r}")
