"""Pairs held in memory, their images decoded once: for studies of many runs on small images."""

import hashlib
from collections import Counter

import numpy as np

from otter_jax.data import images
from otter_jax.data.records import Record, RecordError, Source, read_in_order
from studies.collection import shuffled_captions


class HeldPairs:
    """All that can be used of a source, as a source; see `records.Source`.

    Images are PNM files, which are their pixels: what trains on them sees the same as before.
    """

    def __init__(self, source: Source) -> None:
        """Read all records, one after the other."""
        self.name = f"{source.name}, held"
        self.fingerprint = source.fingerprint
        self._records: list[Record] = []
        skipped = Counter(source.skipped)
        for _, record in read_in_order(source, range(len(source))):
            try:
                if isinstance(record, RecordError):
                    raise record
                image = as_pnm(images.decode(record.image))
            except (RecordError, images.ImageError) as error:
                skipped[str(error)] += 1
            else:
                self._records.append(record._replace(image=image))
        self.skipped: dict[str, int] = dict(skipped)
        self.caption_counts = np.array([len(each.captions) for each in self._records], np.uint32)

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._records)

    def __getitem__(self, i: int) -> Record:
        """Return pair `i`; IndexError beyond."""
        return self._records[range(len(self))[i]]

    def shuffled(self, share: float, seed: int) -> "HeldPairs":
        """Return these pairs with a share of the captions at other images, drawn by seed."""
        order, _ = shuffled_captions(
            np.zeros(len(self), int), share, np.random.default_rng((4, seed))
        )
        found = object.__new__(HeldPairs)
        found.name, found.skipped = f"{self.name}, {share:.0%} shuffled by seed {seed}", {}
        found.fingerprint = hashlib.sha256(
            f"{self.fingerprint} {share} {seed}".encode()
        ).hexdigest()
        found._records = [
            each._replace(caption=self[other].caption, captions=self[other].captions)
            for each, other in zip(self._records, order, strict=True)
        ]
        found.caption_counts = self.caption_counts[order]
        return found


def as_pnm(pixels: np.ndarray) -> bytes:
    """Return an image file of uint8 pixels [height, width, 3], one channel of it if all agree."""
    height, width, _ = pixels.shape
    grey = bool((pixels == pixels[..., :1]).all())
    kept = pixels[..., 0] if grey else pixels
    return b"P%d %d %d 255\n" % (5 if grey else 6, width, height) + kept.tobytes()
