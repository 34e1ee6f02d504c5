"""Features of frozen towers, computed once and kept in the workdir.

Where a tower is frozen and nothing upstream of it varies, its features are the same at every step
and in every evaluation. They are stored under a name that holds all they depend on: the tower's
weights, the data and the transform; a file is never wrong, at worst unused.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from otter_jax.encoder import Encoder
from otter_jax.reporting import progress

Arrays = dict[str, np.ndarray]


def fingerprint(*parts: Any) -> str:
    """A short hash of strings, numbers, arrays and nested containers of arrays."""
    digest = hashlib.sha256()
    for part in parts:
        for leaf in jax.tree.leaves(part):
            is_array = isinstance(leaf, (np.ndarray, jax.Array))
            digest.update(np.asarray(leaf).tobytes() if is_array else repr(leaf).encode() + b"\0")
    return digest.hexdigest()[:16]


class FeatureStore:
    """Embeds images and texts; towers that are frozen run once for each collection."""

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        *,
        freeze_image: bool,
        freeze_text: bool,
        dtype: str = "float32",
    ):
        """Remembers which towers are frozen, and hashes them: shape, weights, compute type."""
        self.folder = folder
        self.freeze_image = freeze_image
        self.freeze_text = freeze_text
        self._memory: dict[str, Arrays] = {}
        frozen, stats = encoder.variables.frozen, encoder.variables.batch_stats
        module = encoder.model.bind(encoder.variables)
        image, text = (
            (type(t).__name__, repr(t.config), dtype) for t in (module.image, module.text)
        )
        transform = (encoder.image_size, encoder.fit)
        self._image_tower = fingerprint(image, frozen.get("image"), stats.get("image"), transform)
        self._text_tower = fingerprint(text, frozen.get("text"))

    def image_key(self, data: str) -> str:
        """The name under which a collection's image features are kept."""
        return fingerprint("image", self._image_tower, data)

    def get(self, key: str, compute: Callable[[], Arrays]) -> Arrays:
        """What was computed under this key, from memory, from disk, or now."""
        if key not in self._memory:
            path = self.folder / f"{key}.npz"
            if not path.is_file():
                self._write(path, compute())
            with np.load(path) as stored:
                self._memory[key] = dict(stored)
        return self._memory[key]

    def embed_images(
        self, encoder: Encoder, data: str, images: Callable[[], Iterable[np.ndarray]]
    ) -> np.ndarray:
        """Unit embeddings [N, d] of a collection.

        Args:
          encoder: with the variables of now.
          data: what identifies the collection.
          images: gives its transformed images; not called where their features are known.
        """
        if not self.freeze_image:
            return encoder.project_image(encoder.image_features(images()))
        key = self.image_key(data)
        stored = self.get(key, lambda: {"features": encoder.image_features(images())})
        return encoder.project_image(stored["features"])

    def embed_texts(self, encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
        """Unit embeddings [N, d] of texts."""
        if not self.freeze_text:
            return encoder.project_text(_run_text_tower(encoder, *encoder.tokenizer(texts)))
        return encoder.project_text(self.text_features(encoder, texts))

    def text_features(self, encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
        """The frozen text tower's features [N, width], kept under a name of the texts' tokens."""
        tokens = encoder.tokenizer(texts)
        key = fingerprint("text", self._text_tower, *tokens)
        return self.get(key, lambda: {"features": _run_text_tower(encoder, *tokens)})["features"]

    def _write(self, path: Path, arrays: Arrays) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{jax.process_index()}.partial")
        with partial.open("wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)


def _run_text_tower(encoder: Encoder, tokens: np.ndarray, token_mask: np.ndarray) -> np.ndarray:
    rows = zip(tokens, token_mask, strict=True)
    return encoder.token_features(progress(rows, len(tokens), "text features"))
