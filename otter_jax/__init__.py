"""otter_jax trains zero-shot image classifiers from few, noisy image-text pairs.

model = otter_jax.load("runs/quickstart")
model.classify(images, ["a cat", "a dog"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from otter_jax.embedding.encoder import load
    from otter_jax.models.pretrained import list_towers

__all__ = ["list_towers", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the heavy parts when they are first asked for."""
    if name == "load":
        from otter_jax.embedding.encoder import load

        return load
    if name == "list_towers":
        from otter_jax.models.pretrained import list_towers

        return list_towers
    raise AttributeError(f"module 'otter_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what is public, also before it is loaded."""
    return [*__all__, "__version__"]
