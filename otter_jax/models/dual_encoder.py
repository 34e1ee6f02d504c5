"""Two towers, two projections and two log-scales: the network that every method here trains.

Methods that look at several views of a pair have heads beside them, see `heads.py` and `views.py`.

The module library stays in this folder. `split` takes a module apart once, into its definition and
plain nested dicts of arrays; `FunctionalModel` puts it together again inside jitted functions. So
the step, the losses, the sharding and the checkpoints handle plain pytrees only.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from otter_jax.models import lora as low_rank
from otter_jax.models import views
from otter_jax.models.heads import SimCLRHead, SimSiamHead, TokenHead
from otter_jax.models.layers import BatchNorm, TowerOutput, split_key
from otter_jax.models.projections import output_width

INITIAL_SCALE = math.exp(3.9)  # 49.4 (OTTER's released code).

Arrays = dict[Any, Any]  # Nested dict of arrays.


class Variables(NamedTuple):
    """A model's arrays: what is trained, what is not, and batch norm's running statistics."""

    params: Arrays
    frozen: Arrays
    batch_stats: Arrays


@dataclasses.dataclass(frozen=True)
class TrainableParts:
    """Which parts of a tower, and of the projection behind it, training changes.

    Attributes:
        frozen: the tower keeps its parameters and batch statistics and always runs in evaluation
            mode, so that its features never change; its projection still learns.
        trainable: regular expression; only parameters whose dotted path in the tower it occurs in
            ("layers.3.attention.query.kernel") are trained, and those of the projection after the
            tower only if it occurs in "projection.kernel" and the like. None trains all.
        keep_batch_stats: batch norm works with its running statistics, and keeps them, in training
            too. Otherwise they move even where no parameter of the tower is trained.
        lora: low-rank updates of the tower's linear layers. They are trained, and so is the
            projection, or what `trainable` says besides; the layers themselves are not.

    Raises:
        ValueError: if `frozen` stands beside `trainable` or `lora`, or the pattern is no regular
            one.
    """

    frozen: bool = False
    trainable: str | None = None
    keep_batch_stats: bool = False
    lora: low_rank.Lora | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.frozen and self.lora is not None:
            raise ValueError("a tower is frozen, or has trained low-rank updates, but not both")
        if self.frozen and self.trainable is not None:
            raise ValueError(
                f"a tower is frozen, or trainable in part ({self.trainable!r}), but not both"
            )
        try:
            re.compile(self.trainable or "")
        except re.error as error:
            raise ValueError(
                f"trainable={self.trainable!r} is no regular expression: {error}"
            ) from None

    def trains(self, path: str) -> bool:
        """Return whether the parameter at a path in the tower, or "projection...", is trained."""
        if self.lora is not None and path.endswith(low_rank.PARAMETERS):
            return True
        if self.frozen or (self.lora is not None and self.trainable is None):
            return path.startswith("projection.")
        return self.trainable is None or re.search(self.trainable, path) is not None


@dataclasses.dataclass(frozen=True)
class Heads:
    """Which heads stand beside the towers in training.

    Attributes:
        simsiam: on the image embeddings.
        simclr: on the image tower's features.
        tokens: on the text tower's states, unless the tower has a head for them itself.
    """

    simsiam: bool = False
    simclr: bool = False
    tokens: bool = False


class DualEncoder(nnx.Module):
    """An image tower and a text tower that meet in one embedding space."""

    def __init__(
        self,
        image: nnx.Module,
        text: nnx.Module,
        image_projection: nnx.Module,
        text_projection: nnx.Module,
        *,
        image_trainable: TrainableParts = TrainableParts(),
        text_trainable: TrainableParts = TrainableParts(),
        initial_scale: float = INITIAL_SCALE,
        initial_bias: float | None = None,
        heads: Heads = Heads(),
        rngs: nnx.Rngs | None = None,
    ):
        """Join towers that have `width` features each and the projections behind them.

        Both learnable scales (1 / temperature) start at `initial_scale`; with an `initial_bias`
        there is a learnable bias of the logits too, as the sigmoid loss needs it. `heads` are drawn
        from `rngs`.

        Raises:
            ValueError: if the two sides' embeddings differ in size, or a pattern of trainable
                parameters occurs in no path.
        """
        self.image, self.text = image, text
        self.image_projection, self.text_projection = image_projection, text_projection
        self.image_trainable, self.text_trainable = image_trainable, text_trainable
        self.log_scale = nnx.Param(jnp.float32(math.log(initial_scale)))
        self.distillation_log_scale = nnx.Param(jnp.float32(math.log(initial_scale)))
        if initial_bias is not None:
            self.logit_bias = nnx.Param(jnp.float32(initial_bias))
        widths = [
            output_width(image_projection, image.width),
            output_width(text_projection, text.width),
        ]
        if widths[0] != widths[1]:
            raise ValueError(
                f"the image side's embeddings have {widths[0]} numbers and the text side's "
                f"{widths[1]}; projections must lead to the same"
            )
        self.embed_dim = widths[0]
        self.heads = heads
        if heads.simsiam:
            self.simsiam = SimSiamHead(self.embed_dim, rngs=rngs)
        if heads.simclr:
            self.simclr = SimCLRHead(image.width, rngs=rngs)
        if heads.tokens and getattr(text, "mlm_head", None) is None:
            self.tokens = TokenHead(text.width, text.config.vocab_size, rngs=rngs)
        for kind, parts in (("image", image_trainable), ("text", text_trainable)):
            if parts.lora is not None:
                low_rank.add(getattr(self, kind), parts.lora, rngs=rngs or nnx.Rngs(0))
            _refuse_idle_pattern(self, kind, parts)
            if parts.keep_batch_stats:
                _keep_batch_stats(getattr(self, kind))

    def image_features(
        self, images: jax.Array, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Map uint8 images [N, H, W, 3] to the tower's features, float32 [N, width]."""
        low_rank.set_dropout_key(self.image, dropout_key if train else None)
        mean, std = jnp.asarray(self.image.mean), jnp.asarray(self.image.std)
        images = (images.astype(jnp.float32) / 255.0 - mean) / std
        return self.image(images, train=train, dropout_key=dropout_key).pooled

    def text_features(
        self,
        tokens: jax.Array,
        token_mask: jax.Array,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Map int32 tokens [N, L] and their mask to the tower's features, float32 [N, width]."""
        return self.read_text(tokens, token_mask, train=train, dropout_key=dropout_key).pooled

    def read_text(
        self,
        tokens: jax.Array,
        token_mask: jax.Array,
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> TowerOutput:
        """Return all that the text tower makes of int32 tokens [N, L] and their bool mask."""
        low_rank.set_dropout_key(self.text, dropout_key if train else None)
        return self.text(tokens, token_mask, train=train, dropout_key=dropout_key)

    def __call__(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return a batch's image and text embeddings, [N, embed_dim] each, not yet normalised.

        Where the batch brings `image_features` or `text_features`, computed once because nothing
        upstream of them varies, the tower is skipped.
        """
        image_key, text_key = split_key(dropout_key, 2)
        if (image := batch.get("image_features")) is None:
            train_image = train and not self.image_trainable.frozen
            image = self.image_features(batch["image"], train=train_image, dropout_key=image_key)
        if (text := batch.get("text_features")) is None:
            tokens, mask = batch["tokens"], batch["token_mask"]
            train_text = train and not self.text_trainable.frozen
            text = self.text_features(tokens, mask, train=train_text, dropout_key=text_key)
        return self.image_projection(image), self.text_projection(text)

    def views(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Return what the towers and heads make of every view in a batch, by name.

        Of a batch with one view of each pair these are the embeddings of `__call__`, as `image` and
        `text`; of others, what `views.all_views` says.
        """
        if self.heads != Heads() or views.FURTHER_VIEWS & set(batch):
            return views.all_views(self, batch, train, dropout_key)
        image, text = self(batch, train=train, dropout_key=dropout_key)
        return {"image": image, "text": text}


def parameter_name(path: tuple) -> str:
    """Return the name of an array at a path of JAX's, such as "text.layers.3.query.kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def path_in_tower(path: tuple) -> tuple[str, str] | None:
    """Return whose a parameter is, and its path there, such as ("image", "projection.kernel")."""
    kind, _, part = str(path[0]).partition("_")
    if kind not in ("image", "text"):
        return None
    return kind, ".".join(map(str, ([part] if part else []) + list(path[1:])))


def _is_trained(module: DualEncoder, path: tuple) -> bool:
    owned = path_in_tower(path)
    return owned is None or getattr(module, f"{owned[0]}_trainable").trains(owned[1])


def _refuse_idle_pattern(module: DualEncoder, kind: str, parts: TrainableParts) -> None:
    if parts.trainable is None:
        return
    paths = nnx.to_flat_state(nnx.state(module, nnx.Param)).paths
    names = [owned[1] for path in paths if (owned := path_in_tower(path)) and owned[0] == kind]
    if not any(map(parts.trains, names)):
        some = ", ".join(names[:: max(1, len(names) // 6)])
        raise ValueError(
            f"the {kind} tower has no parameter with {parts.trainable!r} in its path; "
            f"it has {len(names)}, among them: {some}"
        )


def _keep_batch_stats(tower: nnx.Module) -> None:
    for _, layer in nnx.iter_modules(tower):
        if isinstance(layer, BatchNorm):
            layer.keep_statistics = True


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """A dual encoder as pure functions of its variables."""

    definition: nnx.GraphDef

    def bind(self, variables: Variables) -> DualEncoder:
        """Return the module with these arrays; cheap, also under jit."""
        # copy=True: batch norm updates its statistics, which must not reach the arguments.
        return nnx.merge(self.definition, *variables, copy=True)

    def embed(
        self,
        variables: Variables,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, jax.Array], Arrays]:
        """Return both sides' embeddings, [N, embed_dim], and the batch statistics afterwards."""
        module = self.bind(variables)
        embeddings = module(batch, train=train, dropout_key=dropout_key)
        return embeddings, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def views(
        self,
        variables: Variables,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> tuple[dict[str, jax.Array], Arrays]:
        """Return what `DualEncoder.views` returns, and the batch statistics afterwards."""
        module = self.bind(variables)
        outputs = module.views(batch, train=train, dropout_key=dropout_key)
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def split(module: DualEncoder) -> tuple[FunctionalModel, Variables]:
    """Take a module apart: its definition, and its arrays by what becomes of them."""

    def is_trained(path: tuple, value: Any) -> bool:
        return isinstance(value, nnx.Param) and _is_trained(module, path)

    definition, *states = nnx.split(module, is_trained, nnx.Param, nnx.BatchStat)
    return FunctionalModel(definition), Variables(*map(nnx.to_pure_dict, states))


def split_shapes(make: Callable[[], DualEncoder]) -> tuple[FunctionalModel, Variables]:
    """Return what `split` does, of a module that is never made: shapes for arrays."""
    return split(nnx.eval_shape(make))


def count(arrays: Arrays) -> int:
    """Return how many scalars a nested dict of arrays holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(arrays))
