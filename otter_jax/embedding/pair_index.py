"""The pairs of a run, as its model sees them: searched by text or picture, and by their trust."""

import dataclasses
import tempfile
import threading
from pathlib import Path

import numpy as np

from otter_jax import config as config_lib
from otter_jax.data.kept_pairs import read_keys, write_keys
from otter_jax.data.sources import Source
from otter_jax.embedding import trust
from otter_jax.embedding.encoder import Encoder
from otter_jax.embedding.features import FeatureStore
from otter_jax.embedding.given_images import AnyImage
from otter_jax.embedding.nearest_rows import nearest_rows
from otter_jax.embedding.pair_features import embed_pairs
from otter_jax.embedding.training_pairs import open_whole, split_held_out
from otter_jax.terminal import say


@dataclasses.dataclass(frozen=True)
class PairIndex:
    """Some pairs of a source, embedded.

    Attributes:
        source: the pairs.
        encoder: the model.
        numbers: int [n], which records of the source.
        keys: [n], what they are called.
        image: float32 [n, d], unit rows of their images.
        alpha: float32 [n], the probability that each caption is right; None for too few pairs.
    """

    source: Source
    encoder: Encoder
    numbers: np.ndarray
    keys: list[str]
    image: np.ndarray
    alpha: np.ndarray | None

    def caption(self, place: int) -> str:
        """Return the caption of the pair at a place of the index."""
        return self.source[int(self.numbers[place])].caption

    def picture(self, place: int) -> bytes:
        """Return the image's file of the pair at a place of the index."""
        return self.source[int(self.numbers[place])].image

    def search_text(self, text: str, count: int) -> list[tuple[int, float]]:
        """Return places and cosines of the images that fit a text best."""
        if not text.strip():
            raise ValueError("the text to look for is empty")
        return self._nearest(self.encoder.encode_text([text]), count)

    def search_image(self, image: AnyImage, count: int) -> list[tuple[int, float]]:
        """Return places and cosines of the images that are most like one."""
        return self._nearest(self.encoder.encode_image(image), count)

    def neighbors(self, place: int, count: int) -> list[tuple[int, float]]:
        """Return places and cosines of the images that are most like that of a pair."""
        found = self._nearest(self.image[place : place + 1], count + 1)
        return [each for each in found if each[0] != place][:count]

    def least_trusted(self, count: int) -> list[int]:
        """Return the places of the pairs that are trusted least, least first."""
        if self.alpha is None:
            raise ValueError(f"{len(self.keys)} pairs are too few to say which are wrong")
        return np.argsort(self.alpha, kind="stable")[:count].tolist()

    def _nearest(self, query: np.ndarray, count: int) -> list[tuple[int, float]]:
        count = min(count, len(self.image))
        similar, places = nearest_rows(query, self.image, count, self.encoder.mesh)
        return list(zip(places[0].tolist(), similar[0].tolist(), strict=True))


def index_pairs(workdir: Path, encoder: Encoder, limit: int, seed: int = 0) -> PairIndex:
    """Embed the pairs that a run was trained on, and estimate their trust.

    Args:
        workdir: of the run, whose features of frozen towers are used where there are any.
        encoder: its model.
        limit: most pairs; of more, that many are drawn.
        seed: of the draw.

    Raises:
        FileNotFoundError, ValueError: if the pairs cannot be read any more.
    """
    config = config_lib.load_config(workdir / "config.json")
    source = open_whole(config, workdir)
    if split := split_held_out(config, source):
        source = split.train
    numbers = np.random.default_rng(seed).permutation(len(source))[:limit]
    store = FeatureStore.of(workdir, encoder, config) if (workdir / "features").is_dir() else None
    with tempfile.TemporaryDirectory() as folder:
        pairs = embed_pairs(source, encoder, Path(folder), np.sort(numbers), store)
        try:
            alpha = trust.estimate(pairs.image, pairs.text, mesh=encoder.mesh).alpha
        except ValueError as error:  # Too few, or not finite: they can be searched all the same.
            say(str(error))
            alpha = None
        image = encoder.project_image(np.asarray(pairs.image, np.float32))
    return PairIndex(source, encoder, np.array(pairs.numbers), list(pairs.keys), image, alpha)


class DropList:
    """Which pairs somebody has dropped by hand: keep.txt has the keys of the others, one a line."""

    def __init__(self, path: Path, keys: list[str]):
        """Go on with what the file says, where there is one."""
        self._path, self._keys = path, keys
        self._lock = threading.Lock()  # Several visitors may drop at once.
        self._dropped: set[str] = set()
        if path.is_file():
            self._dropped = set(keys) - read_keys(path)

    def __len__(self) -> int:
        """Return how many pairs are dropped."""
        return len(self._dropped)

    def __contains__(self, key: str) -> bool:
        """Return whether a pair is dropped."""
        return key in self._dropped

    def drop(self, key: str) -> None:
        """Drop a pair, and write the file; a reader finds the old one or the new one, whole."""
        with self._lock:
            self._dropped.add(key)
            write_keys(self._path, (key for key in self._keys if key not in self._dropped))
