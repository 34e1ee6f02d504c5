"""Two towers, two projections and two log-scales: the network that every method here trains.

Methods that look at several views of a pair have heads beside them, see `heads.py`.

The module library stays in this folder. `split` takes a module apart once, into its definition and
plain nested dicts of arrays; `FunctionalModel` puts it together again inside jitted functions. So
the step, the losses, the sharding and the checkpoints handle plain pytrees only.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

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
class Lock:
    """What of a tower training leaves alone.

    Attributes:
        frozen: the tower keeps its parameters and batch statistics and always runs in evaluation
            mode, so that its features never change; its projection still learns.
        trainable: regular expression; only parameters whose dotted path in the tower it occurs in
            ("layers.3.attention.query.kernel") are trained, and those of the projection after the
            tower only if it occurs in "projection.kernel" and the like. None trains all.
        keep_batch_stats: batch norm works with its running statistics, and keeps them, in training
            too. Otherwise they move even where no parameter of the tower is trained.

    Raises:
        ValueError: if `frozen` and `trainable` are both given, or the pattern is no regular one.
    """

    frozen: bool = False
    trainable: str | None = None
    keep_batch_stats: bool = False

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
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
        """Return whether the parameter at a path ("projection.kernel" for the projection's) is trained."""
        if self.frozen:
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
        image_lock: Lock = Lock(),
        text_lock: Lock = Lock(),
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
            ValueError: if the two sides' embeddings differ in size, or a lock's pattern occurs in
                no parameter's path.
        """
        self.image, self.text = image, text
        self.image_projection, self.text_projection = image_projection, text_projection
        self.image_lock, self.text_lock = image_lock, text_lock
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
        for kind, lock in (("image", image_lock), ("text", text_lock)):
            _refuse_idle_pattern(self, kind, lock)
            if lock.keep_batch_stats:
                _keep_batch_stats(getattr(self, kind))

    def image_features(
        self, images: jax.Array, *, train: bool = False, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Return uint8 [N, H, W, 3] -> tower features [N, width], float32."""
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
        """Return int32 [N, L] tokens and their mask -> tower features [N, width], float32."""
        return self.text(tokens, token_mask, train=train, dropout_key=dropout_key).pooled

    def views(
        self,
        batch: Mapping[str, jax.Array],
        *,
        train: bool = False,
        dropout_key: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Return what the towers and heads make of every view in a batch, by name.

        Always `image` and `text`, embeddings [N, embed_dim] as `__call__` gives them; the text is
        that of `masked_tokens` where the batch has them, which then also give `mlm_logits` [N, K,
        vocabulary] at the `masked_positions`. `image2` and `text2` are the second views'
        embeddings, `p1`, `p2`, `z1`, `z2` SimSiam's predictions from and projections of both image
        views, `simclr1` and `simclr2` SimCLR's projections of the second and the third.

        `dropout_key` is one for all, or one for each row.
        """
        image_key, text_key = split_key(dropout_key, 2)
        outputs, features = {}, {}
        for number, view in enumerate(("image", "image2", "image3")):
            if view in batch or f"{view}_features" in batch:
                key = _view_key(image_key, number)
                features[view] = self._view_of_image(batch, view, train, key)
        if self.heads.simclr:
            for view, name in (("image2", "simclr1"), ("image3", "simclr2")):
                outputs[name] = self.simclr(features.pop(view), train)
        for view, of_view in features.items():
            outputs[view] = self.image_projection(of_view)
        if self.heads.simsiam:
            for view, number in (("image", 1), ("image2", 2)):
                outputs[f"p{number}"], outputs[f"z{number}"] = self.simsiam(outputs[view], train)
        if "masked_tokens" in batch:
            outputs |= self._masked_text(batch, train, text_key)
        else:
            outputs["text"] = self.text_projection(
                self._view_of_text(batch, "text", train, text_key)
            )
        if "tokens2" in batch:
            second = self._view_of_text(batch, "text2", train, _view_key(text_key, 1))
            outputs["text2"] = self.text_projection(second)
        return outputs

    def _masked_text(
        self, batch: Mapping[str, jax.Array], train: bool, key: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Return one pass of the masked tokens for both: the embedding and the missing tokens."""
        output: TowerOutput = self.text(
            batch["masked_tokens"],
            batch["token_mask"],
            train=train and not self.text_lock.frozen,
            dropout_key=key,
        )
        result = {"text": self.text_projection(output.pooled)}
        if self.heads.tokens:
            positions = batch["masked_positions"][:, :, None]
            states = jnp.take_along_axis(output.sequence, positions, axis=1)
            predict = getattr(self, "tokens", None) or self.text.predict_tokens
            result["mlm_logits"] = predict(states)
        return result

    def _view_of_image(
        self, batch: Mapping[str, jax.Array], view: str, train: bool, key: jax.Array | None
    ) -> jax.Array:
        if (known := batch.get(f"{view}_features")) is not None:
            return known
        train = train and not self.image_lock.frozen
        return self.image_features(batch[view], train=train, dropout_key=key)

    def _view_of_text(
        self, batch: Mapping[str, jax.Array], view: str, train: bool, key: jax.Array | None
    ) -> jax.Array:
        if (known := batch.get(f"{view}_features")) is not None:
            return known
        number, train = view.removeprefix("text"), train and not self.text_lock.frozen
        tokens, mask = batch[f"tokens{number}"], batch[f"token_mask{number}"]
        return self.text_features(tokens, mask, train=train, dropout_key=key)

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
        image = self._view_of_image(batch, "image", train, image_key)
        text = self._view_of_text(batch, "text", train, text_key)
        return self.image_projection(image), self.text_projection(text)


def _view_key(key: jax.Array | None, number: int) -> jax.Array | None:
    """Return the dropout key of a further view; the first one keeps the key."""
    if key is None or number == 0:
        return key
    fold = functools.partial(jax.random.fold_in, data=number)
    return jax.vmap(fold)(key) if key.ndim else fold(key)


def _lock_path(path: tuple) -> tuple[str, str] | None:
    """Return whose a parameter is, and its path for the lock: ("image", "projection.kernel")."""
    kind, _, part = str(path[0]).partition("_")
    if kind not in ("image", "text"):
        return None
    return kind, ".".join(map(str, ([part] if part else []) + list(path[1:])))


def _is_trained(module: DualEncoder, path: tuple) -> bool:
    owned = _lock_path(path)
    return owned is None or getattr(module, f"{owned[0]}_lock").trains(owned[1])


def _refuse_idle_pattern(module: DualEncoder, kind: str, lock: Lock) -> None:
    if lock.trainable is None:
        return
    paths = nnx.to_flat_state(nnx.state(module, nnx.Param)).paths
    names = [owned[1] for path in paths if (owned := _lock_path(path)) and owned[0] == kind]
    if not any(map(lock.trains, names)):
        some = ", ".join(names[:: max(1, len(names) // 6)])
        raise ValueError(
            f"the {kind} tower has no parameter with {lock.trainable!r} in its path; "
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
        """Return embeddings of both sides, [N, embed_dim] each, and the batch statistics afterwards."""
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
    """Return number of scalars in a nested dict of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(arrays))
