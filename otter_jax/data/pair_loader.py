"""From records to the arrays of a batch: decoding, augmentation, tokenising.

What a record becomes at a step depends on (seed, step, record) alone.
"""

import numpy as np

from otter_jax.data import images
from otter_jax.data.batches import Batch
from otter_jax.data.sources import Source
from otter_jax.data.texts import Tokenizer


class PairLoader:
    """Decodes, augments and tokenises the records of a batch."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        fit: str,
        augmentation: str,
        flip: bool,
        seed: int,
    ):
        """See otter_jax/config.py, `data`, for what the arguments mean."""
        self.source = source
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.fit = fit
        self.augmentation = augmentation
        self.flip = flip
        self.seed = seed
        self.unreadable: dict[str, str] = {}  # Key of a record -> why its image cannot be read.

    def __call__(self, step: int, records: np.ndarray) -> Batch:
        """The arrays of some records; which augmentation they get depends on seed, step, record.

        A record whose image cannot be read is replaced by the next one that can, and noted;
        `index` says which records were really used.
        """
        pairs = [self._pair(step, int(record)) for record in records]
        images, captions, used = zip(*pairs, strict=True)
        tokens, token_mask = self.tokenizer(captions)
        return {
            "image": np.stack(images),
            "tokens": tokens,
            "token_mask": token_mask,
            "index": np.array(used, np.int64),
        }

    def _pair(self, step: int, record: int) -> tuple[np.ndarray, str, int]:
        for candidate in range(record, record + len(self.source)):
            number = candidate % len(self.source)
            pair = self.source[number]
            try:
                image = images.decode(pair.image)
            except images.ImageError as error:
                self.unreadable[pair.key] = str(error)
                continue
            rng = np.random.default_rng((self.seed, step, record))
            return self._transform(image, rng), pair.caption, number
        raise ValueError(f"{self.source.name}: not one of {len(self.source)} images can be read")

    def _transform(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.augmentation == "none" and not self.flip:
            return images.evaluation_transform(image, self.image_size, fit=self.fit)
        return images.training_transform(
            image, self.image_size, rng, kind=self.augmentation, fit=self.fit, flip=self.flip
        )
