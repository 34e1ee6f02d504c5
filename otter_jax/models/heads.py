"""Heads that only training needs: on top of the image embedding, the image tower, the text tower.

SimSiam's projector and predictor (Chen and He 2020) and the head for masked tokens as DeCLIP's
released code has them, and SimCLR's projection (Chen et al. 2020) as SLIP has it.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from otter_jax.models.layers import BatchNorm

SIMSIAM_WIDTH, SIMSIAM_BOTTLENECK = 1024, 512
SIMCLR_HIDDEN, SIMCLR_WIDTH = 4096, 256


class HeadPerceptron(nnx.Module):
    """Linear layers with batch norm and ReLU between them, in float32."""

    def __init__(self, widths: Sequence[int], *, norm_output: bool, rngs: nnx.Rngs) -> None:
        """Draw the layers from widths[0] to widths[-1].

        Args:
            widths: numbers before the first and after each layer.
            norm_output: batch norm behind the last layer too.
            rngs: source of the initial weights.
        """
        sizes = list(itertools.pairwise(widths))
        self.layers = nnx.List([nnx.Linear(*size, rngs=rngs) for size in sizes])
        normed = sizes if norm_output else sizes[:-1]
        self.norms = nnx.List([BatchNorm(width, momentum=0.9) for _, width in normed])

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Map [N, widths[0]] to [N, widths[-1]]."""
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index < len(self.norms):
                x = self.norms[index](x, train)
            if index < len(self.layers) - 1:
                x = jax.nn.relu(x)
        return x


class SimSiamHead(nnx.Module):
    """A projector of three layers and a predictor of two, on image embeddings."""

    def __init__(self, embed_dim: int, *, rngs: nnx.Rngs) -> None:
        """Build both for embeddings of `embed_dim` numbers."""
        width = SIMSIAM_WIDTH
        self.projector = HeadPerceptron(
            [embed_dim, width, width, width], norm_output=True, rngs=rngs
        )
        self.predictor = HeadPerceptron(
            [width, SIMSIAM_BOTTLENECK, width], norm_output=False, rngs=rngs
        )

    def __call__(self, embeddings: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Map [N, embed_dim] to predictions and projections, [N, 1024] each."""
        projections = self.projector(embeddings, train)
        return self.predictor(projections, train), projections


class SimCLRHead(nnx.Module):
    """A projection of three layers, on the image tower's features."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        """Build it for features of `width` numbers."""
        widths = [width, SIMCLR_HIDDEN, SIMCLR_HIDDEN, SIMCLR_WIDTH]
        self.projection = HeadPerceptron(widths, norm_output=False, rngs=rngs)

    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        """Map [N, width] to [N, 256]."""
        return self.projection(features, train)


class TokenHead(nnx.Module):
    """One linear layer from a text tower's states to the scores of all tokens."""

    def __init__(self, width: int, vocabulary_size: int, *, rngs: nnx.Rngs) -> None:
        """Build it for states of `width` numbers."""
        initialise = jax.nn.initializers.normal(width**-0.5)
        self.decoder = nnx.Linear(width, vocabulary_size, kernel_init=initialise, rngs=rngs)

    def __call__(self, states: jax.Array) -> jax.Array:
        """Map [..., width] to float32 [..., vocabulary_size]."""
        return self.decoder(states.astype(jnp.float32))
