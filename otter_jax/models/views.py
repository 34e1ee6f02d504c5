"""Several views of every pair through a dual encoder, for the objectives that compare them.

DeCLIP and SLIP show the towers further augmentations of an image, another wording of its caption
and the caption with tokens hidden. Methods with one view of a pair never come here.
"""

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from otter_jax.models.layers import split_key

if TYPE_CHECKING:
    from otter_jax.models.dual_encoder import DualEncoder

IMAGE_VIEWS = ("image", "image2", "image3")
FURTHER_VIEWS = {
    *("image2", "image2_features", "image3", "image3_features"),
    *("tokens2", "text2_features", "masked_tokens"),
}

Batch = Mapping[str, jax.Array]


def all_views(
    module: "DualEncoder", batch: Batch, train: bool, dropout_key: jax.Array | None
) -> dict[str, jax.Array]:
    """Return what the towers and heads make of every view in a batch, by name.

    Args:
        module: the towers and heads.
        batch: `image` and `tokens` with `token_mask`, and any of `image2`, `image3`, `tokens2` with
            `token_mask2`, `masked_tokens`; or, in a view's place, the tower's features of it.
        train: as in `DualEncoder.__call__`.
        dropout_key: one for all rows, or one for each.

    Returns:
        Always `image` and `text`, embeddings [N, embed_dim]; the text is that of `masked_tokens`
        where the batch has them, which then also give `mlm_logits` [N, K, vocabulary] at the
        `masked_positions`. `image2` and `text2` are the second views' embeddings, `p1`, `p2`, `z1`,
        `z2` SimSiam's predictions from and projections of both image views, `simclr1` and `simclr2`
        SimCLR's projections of the second and the third.
    """
    image_key, text_key = split_key(dropout_key, 2)
    outputs, features = {}, {}
    for number, view in enumerate(IMAGE_VIEWS):
        if view in batch or f"{view}_features" in batch:
            features[view] = _image_features(module, batch, view, train, _key(image_key, number))
    if module.heads.simclr:
        for view, name in (("image2", "simclr1"), ("image3", "simclr2")):
            outputs[name] = module.simclr(features.pop(view), train)
    for view, of_view in features.items():
        outputs[view] = module.image_projection(of_view)
    if module.heads.simsiam:
        for view, number in (("image", 1), ("image2", 2)):
            outputs[f"p{number}"], outputs[f"z{number}"] = module.simsiam(outputs[view], train)
    if "masked_tokens" in batch:
        outputs |= _masked_text(module, batch, train, text_key)
    else:
        outputs["text"] = module.text_projection(_text_features(module, batch, "", train, text_key))
    if "tokens2" in batch:
        second = _text_features(module, batch, "2", train, _key(text_key, 1))
        outputs["text2"] = module.text_projection(second)
    return outputs


def _masked_text(
    module: "DualEncoder", batch: Batch, train: bool, key: jax.Array | None
) -> dict[str, jax.Array]:
    """Return the embedding and the missing tokens, both from one pass of the masked tokens."""
    output = module.read_text(
        batch["masked_tokens"],
        batch["token_mask"],
        train=train and not module.text_trainable.frozen,
        dropout_key=key,
    )
    result = {"text": module.text_projection(output.pooled)}
    if module.heads.tokens:
        positions = batch["masked_positions"][:, :, None]
        states = jnp.take_along_axis(output.sequence, positions, axis=1)
        predict = getattr(module, "tokens", None) or module.text.predict_tokens
        result["mlm_logits"] = predict(states)
    return result


def _image_features(
    module: "DualEncoder", batch: Batch, view: str, train: bool, key: jax.Array | None
) -> jax.Array:
    if (known := batch.get(f"{view}_features")) is not None:
        return known
    train = train and not module.image_trainable.frozen
    return module.image_features(batch[view], train=train, dropout_key=key)


def _text_features(
    module: "DualEncoder", batch: Batch, number: str, train: bool, key: jax.Array | None
) -> jax.Array:
    if (known := batch.get(f"text{number}_features")) is not None:
        return known
    tokens, mask = batch[f"tokens{number}"], batch[f"token_mask{number}"]
    train = train and not module.text_trainable.frozen
    return module.text_features(tokens, mask, train=train, dropout_key=key)


def _key(key: jax.Array | None, number: int) -> jax.Array | None:
    """Return the dropout key of a further view; the first one keeps the key."""
    if key is None or number == 0:
        return key
    fold = functools.partial(jax.random.fold_in, data=number)
    return jax.vmap(fold)(key) if key.ndim else fold(key)
