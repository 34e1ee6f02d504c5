"""Features of towers, computed once for each state of their weights and kept in the workdir.

Where a tower is frozen and nothing upstream of it varies, its features are the same at every step
and in every evaluation. They are stored under a name that holds all they depend on: the tower's
weights, the data and the transform; a file is never wrong, at worst unused. Names do not tell what
was never stored from what was stored of another state, so nothing is said of either. Features of a
tower that is trained are good for one evaluation: its sets share them in memory, and only where a
finished model is evaluated are they worth a file.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from otter_jax import sharding
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.kept_parts import (
    KeptParts,
    StoredArrays,
    count_rows,
    join,
    read_arrays,
    write_arrays,
)
from otter_jax.models.dual_encoder import Variables
from otter_jax.models.two_towers import Kind
from otter_jax.terminal import heard, progress

# Gives, of what was computed before, the parts that follow.
ComputeParts = Callable[[Sequence[StoredArrays]], Iterable[StoredArrays]]
FEATURES_FORMAT = 2  # Of the arrays of a file: of files of another format nothing is read.
MEMORY_LIMIT = 2**31  # Bytes of features held at once; beyond, they are read again from their file.


def fingerprint(*parts: Any) -> str:
    """Return a short hash of strings, numbers, arrays and nested containers of arrays."""
    digest = hashlib.sha256()
    for part in parts:
        for leaf in jax.tree.leaves(part):
            if isinstance(leaf, jax.Array):
                leaf = sharding.whole(leaf)
            is_array = isinstance(leaf, np.ndarray)
            digest.update(leaf.tobytes() if is_array else repr(leaf).encode() + b"\0")
    return digest.hexdigest()[:16]


def rows_at_once(encoder: Encoder) -> int:
    """Return how many rows go through a tower at a time: all devices have as many."""
    devices = encoder.mesh.devices.size
    return -(-encoder.batch_size // devices) * devices


def in_parts(items: Iterable[Any], encoder: Encoder, size: int = 1) -> Iterator[list[Any]]:
    """Yield about `size` items at a time, in whole batches of a tower.

    So their features are those of one call to the last bit, and `progress` can count them.
    """
    batch, items = rows_at_once(encoder), heard(items)
    while part := list(islice(items, -(-size // batch) * batch)):
        yield part


class FeatureStore:
    """Embeds images and texts; a tower runs once for each collection and state of its weights."""

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        *,
        freeze_image: bool,
        freeze_text: bool,
        dtype: str = "float32",
        keep_trained: bool = False,
    ):
        """Hash the towers: shape, weights, compute type.

        Args:
            folder: where features are kept.
            encoder: with the variables of now.
            freeze_image: whether the image tower stays as it is.
            freeze_text: whether the text tower stays as it is.
            dtype: the towers' compute type.
            keep_trained: whether to keep features of towers that are not frozen too, since they are
                not trained any more.
        """
        self.folder = folder
        self.freeze_image = freeze_image
        self.freeze_text = freeze_text
        self.keep_trained = keep_trained
        self._memory: dict[str, StoredArrays] = {}
        self._trained: tuple[Variables | None, dict[str, str]] = (None, {})
        self._passing: set[str] = set()
        frozen, stats = encoder.variables.frozen, encoder.variables.batch_stats
        module = encoder.model.bind(encoder.variables)
        image, text = (
            (type(t).__name__, repr(t.config), dtype) for t in (module.image, module.text)
        )
        transform = (encoder.image_size, encoder.fit, *(encoder.resize or ()))
        self._image_tower = fingerprint(image, frozen.get("image"), stats.get("image"), transform)
        self._text_tower = fingerprint(text, frozen.get("text"))

    @classmethod
    def of(
        cls, workdir: Path, encoder: Encoder, config: ConfigDict, *, keep_trained: bool = False
    ) -> "FeatureStore":
        """Return that of a run: its features/, and its towers as its config has them."""
        return cls(
            workdir / "features",
            encoder,
            freeze_image=config.model.image.frozen,
            freeze_text=config.model.text.frozen,
            dtype=config.model.dtype,
            keep_trained=keep_trained,
        )

    def image_key(self, data: str) -> str:
        """Return the name under which a collection's image features are kept."""
        return fingerprint("image", FEATURES_FORMAT, self._image_tower, data)

    def get(
        self, key: str, compute: Callable[[], StoredArrays], *, keep: bool = True
    ) -> StoredArrays:
        """Return what is kept under this key, in memory or on disk, or compute it now.

        Args:
            key: a name that holds all that the arrays depend on.
            compute: gives them where they are not known.
            keep: whether they are worth a file.
        """
        return self.get_in_parts(key, lambda _: [compute()], keep=keep)

    def get_in_parts(self, key: str, compute: ComputeParts, *, keep: bool = True) -> StoredArrays:
        """Return what is kept under this key, or compute it now, and keep it as it comes.

        Of several processes none keeps parts, since all must go on from the same one.

        Args:
            key: a name that holds all that the arrays depend on.
            compute: gives the parts that follow those it is given.
            keep: whether they are worth a file.
        """
        if key in self._memory:
            return self._memory[key]
        path = self.folder / f"{key}.npz"
        arrays = read_arrays(path)
        if arrays is None and not keep:
            arrays = join(list(compute([])))
        elif arrays is None:
            arrays = self._compute_and_write(path, compute)
        held = [*self._memory.values(), arrays]
        if not keep or sum(a.nbytes for each in held for a in each.values()) <= MEMORY_LIMIT:
            self._memory[key] = arrays
        return arrays

    def _compute_and_write(self, path: Path, compute: ComputeParts) -> StoredArrays:
        if jax.process_count() > 1:
            arrays = join(list(compute([])))
            write_arrays(path, arrays)
            return arrays
        with KeptParts(path.with_suffix("")) as parts:
            for part in compute(tuple(parts.known)):
                parts.add(part)
            arrays = parts.whole()
            write_arrays(path, arrays)
            parts.remove()
        return arrays

    def known_images(self, data: str) -> StoredArrays | None:
        """Return what is kept of a collection's images by a frozen tower; None if nothing is."""
        if not self.freeze_image:
            return None
        key = self.image_key(data)
        return self._memory.get(key) or read_arrays(self.folder / f"{key}.npz")

    def images(self, encoder: Encoder, data: str, compute: ComputeParts) -> StoredArrays:
        """Return a collection's `features`, and what else `compute` gives.

        Args:
            encoder: with the variables of now.
            data: what identifies the collection.
            compute: not called where the features are known.
        """
        if self.freeze_image:
            return self.get_in_parts(self.image_key(data), compute)
        return self._get_trained(fingerprint("image", self._now(encoder, "image"), data), compute)

    def embed_images(
        self, encoder: Encoder, data: str, images: Callable[[], Iterable[np.ndarray]]
    ) -> np.ndarray:
        """Return unit embeddings [N, d] of transformed images; arguments as in `images`."""

        def compute(known: Sequence[StoredArrays]) -> Iterator[StoredArrays]:
            rest = islice(images(), count_rows(join(known)), None)
            return ({"features": rows} for rows in self.run_tower(encoder, "image", rest))

        return encoder.project_image(self.images(encoder, data, compute)["features"])

    def embed_texts(
        self, encoder: Encoder, texts: Sequence[str], name: str = "texts"
    ) -> np.ndarray:
        """Return unit embeddings [N, d] of texts, which are called `name` on the screen."""
        return encoder.project_text(self.text_features(encoder, texts, name))

    def text_features(
        self, encoder: Encoder, texts: Sequence[str], name: str = "texts"
    ) -> np.ndarray:
        """Return the text tower's features [N, width], kept under a name of the texts' tokens."""
        tokens = encoder.tokenizer(texts)

        def compute(known: Sequence[StoredArrays]) -> Iterator[StoredArrays]:
            done = count_rows(join(known))
            rows = zip(*(each[done:] for each in tokens), strict=True)
            parts = self.run_tower(encoder, "text", rows)
            return (
                {"features": part} for part in progress(parts, len(texts) - done, name, count=len)
            )

        if self.freeze_text:
            key = fingerprint("text", self._text_tower, *tokens)
            return self.get_in_parts(key, compute)["features"]
        key = fingerprint("text", self._now(encoder, "text"), *tokens)
        return self._get_trained(key, compute)["features"]

    def run_tower(self, encoder: Encoder, kind: Kind, rows: Iterator[Any]) -> Iterator[np.ndarray]:
        """Yield what a tower makes of as many rows as it takes at a time, until there are no more.

        So rows are batched as they would be in one call: features are the same to the last bit.
        Rows are taken a batch ahead of the features that are handed over. The last are empty.

        Args:
            encoder: with the variables of now.
            kind: which tower.
            rows: transformed images, or pairs of tokens and mask.
        """
        is_image = kind == "image"
        run = encoder.image_batches if is_image else encoder.token_batches
        yield from run(heard(rows))
        yield np.zeros((0, encoder.image_width if is_image else encoder.text_width), np.float32)

    def _get_trained(self, key: str, compute: ComputeParts) -> StoredArrays:
        self._passing.add(key)
        return self.get_in_parts(key, compute, keep=self.keep_trained)

    def _now(self, encoder: Encoder, tower: str) -> str:
        """Hash a trained tower as it is now, and let go of the features of what it was."""
        variables = encoder.variables
        if self._trained[0] is not variables:
            for key in self._passing:
                self._memory.pop(key, None)
            self._passing, self._trained = set(), (variables, {})
        known = self._trained[1]
        if tower not in known:
            shape = self._image_tower if tower == "image" else self._text_tower
            parts = variables.params.get(tower), variables.batch_stats.get(tower)
            known[tower] = fingerprint(shape, *parts)
        return known[tower]
