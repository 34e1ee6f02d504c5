"""From records to the arrays of a batch: decoding, views of image and caption, tokenising.

What a record becomes at a step depends on (seed, step, record) alone. Every view has a stream of
random numbers of its own, so that asking for one more changes none of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from otter_jax.data import images, partial_decoding
from otter_jax.data.augmentations import augment, check_augmentation, draw_view
from otter_jax.data.batches import Batch
from otter_jax.data.groups import group_name, hash_groups
from otter_jax.data.masking import mask_tokens
from otter_jax.data.records import Record, RecordError, Source, name_record, read_records
from otter_jax.data.resizing import Resize
from otter_jax.data.text_augmentations import augment_caption, wordnet
from otter_jax.data.texts import Tokenizer

MOST_IN_A_ROW = 1000  # Records that cannot be read, before it is the storage that is gone.
IMAGE_KEYS = ("image", "image2", "image3")

# Streams of random numbers. New views take new numbers: a number that changes its meaning would
# change the batches of runs that are resumed.
IMAGE_STREAMS = (0, 1, 2)
SECOND_TEXT_STREAM = 3
MASKED_TEXT_STREAM = 4
CAPTION_STREAM = 5


@dataclass(frozen=True)
class Views:
    """What a batch holds of each pair; by default one image and its caption.

    Attributes:
        images: How many views of the image, 1 to 3: `image`, `image2`, `image3`.
        augmentations: The augmentation of each of them; empty for the loader's own in all.
        second_text: Whether there is a second wording of the caption: `tokens2`, `token_mask2`.
        masked_text: Whether there is the caption with some tokens hidden: `masked_tokens`,
            `masked_positions`, `masked_labels`.
        groups: Whether there is `group`, equal where pairs are known to match (see groups.py).
        group_column: What says so in their metadata; None for equal captions.
    """

    images: int = 1
    augmentations: tuple[str, ...] = ()
    second_text: bool = False
    masked_text: bool = False
    groups: bool = False
    group_column: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a number of images or an augmentation that cannot be."""
        if not 1 <= self.images <= len(IMAGE_KEYS):
            raise ValueError(f"views.images={self.images}; it must be 1 to {len(IMAGE_KEYS)}")
        if self.augmentations and len(self.augmentations) != self.images:
            raise ValueError(
                f"views.augmentations={self.augmentations} names {len(self.augmentations)} for "
                f"views.images={self.images}; name one for each, or none"
            )
        for name in self.augmentations:
            check_augmentation(name)


class PairLoader:
    """Decodes, augments and tokenises the records of a batch."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer | None,
        *,
        image_size: int,
        fit: str,
        augmentation: str,
        flip: bool,
        seed: int,
        views: Views = Views(),
        decoding: int = 1,
        resize: Resize | None = None,
    ):
        """See otter_jax/config.py, `data`, for what the arguments mean, but `resize`: `augment`.

        Without a tokenizer batches have no tokens, for towers whose features of texts are known.

        Raises:
            ValueError: If there is no such augmentation or decoding, or no tokenizer for views of
                texts.
            ModuleNotFoundError: If a second text is asked for and there is no WordNet, or decoding
                2 and there is no simplejpeg.
        """
        check_augmentation(augmentation)
        if decoding not in partial_decoding.DECODINGS:
            known = partial_decoding.DECODINGS
            raise ValueError(f"there is no decoding {decoding}; there are {known}")
        if tokenizer is None and (views.second_text or views.masked_text):
            raise ValueError("further views of texts need a tokenizer")
        self.source = source
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.fit = fit
        self.augmentations = views.augmentations or (augmentation,) * views.images
        self.flip = flip
        self.resize = resize
        self.seed = seed
        self.views = views
        self.unreadable: dict[str, str] = {}  # Name of a record -> why it cannot be used.
        sides = [images.sufficient_side(image_size, kind) for kind in self.augmentations]
        self.at_least = None if None in sides else max(sides)
        # Whether all that is seen of an image is crops, which are known before it is decoded.
        self.decodes_crops = decoding > 1 and fit == "crop" and "none" not in self.augmentations
        if self.decodes_crops:
            partial_decoding.decoder()  # Whether it is there should not turn out in a batch.
        if views.second_text:
            wordnet()  # Whether it is there should not turn out in the middle of a batch.

    def __call__(self, step: int, records: np.ndarray) -> Batch:
        """Return the arrays of some records; which views they get depends on seed, step and record.

        A record that cannot be read is replaced by the next one that can, and noted;
        `index` says which records were really used. Of several captions one is drawn.
        """
        numbers = [int(record) for record in records]
        found = read_records(self.source, numbers)
        pairs = [self._pair(step, *each) for each in zip(numbers, found, strict=True)]
        views, captions, used, groups = zip(*pairs, strict=True)
        batch = {"index": np.array(used, np.int64)}
        if self.views.groups:
            batch["group"] = hash_groups(groups)
        for key, view in zip(IMAGE_KEYS, zip(*views, strict=True), strict=False):
            batch[key] = np.stack(view)
        if self.tokenizer is None:
            return batch
        tokens, token_mask = self.tokenizer(captions)
        batch |= {"tokens": tokens, "token_mask": token_mask}
        return batch | text_views(
            captions,
            tokens,
            token_mask,
            self.tokenizer,
            self.views,
            seed=self.seed,
            step=step,
            records=records,
        )

    def _pair(
        self, step: int, record: int, found: Record | RecordError
    ) -> tuple[list[np.ndarray], str, int, str]:
        """Return image views, caption, number and group of a record, or of the next readable."""
        tried = min(len(self.source), MOST_IN_A_ROW)
        for candidate in range(record, record + tried):
            number = candidate % len(self.source)
            name = name_record(number)  # until the record says what it is called
            try:
                pair = found if candidate == record else self.source[number]
                if isinstance(pair, RecordError):
                    raise pair
                name = name_record(number, pair.key)
                views = self._image_views(pair.image, step, record)
            except (RecordError, images.ImageError) as error:
                self.unreadable[name] = str(error)
                continue
            caption = self._caption(pair, step, record)
            return views, caption, number, group_name(pair, caption, self.views.group_column)
        raise ValueError(
            f"{self.source.name}: not one of {tried} images in a row can be read, the last one "
            f"because: {self.unreadable[name]}"
        )

    def _caption(self, pair: Record, step: int, record: int) -> str:
        """Return one of the captions that the image has, drawn at random."""
        if len(pair.captions) < 2:
            return pair.caption
        generator = _generator(self.seed, step, record, CAPTION_STREAM)
        return pair.captions[generator.integers(len(pair.captions))]

    def _image_views(self, data: bytes, step: int, record: int) -> list[np.ndarray]:
        """Return the views of an image file (ImageError if it cannot be read)."""
        generators = [
            _generator(self.seed, step, record, stream)
            for stream, _ in zip(IMAGE_STREAMS, self.augmentations, strict=False)
        ]
        parts = self._cut(data, generators) if self.decodes_crops else None
        is_cut = parts is not None
        if parts is None:
            parts = [images.decode(data, at_least=self.at_least)] * len(generators)
        settings = {"fit": self.fit, "flip": self.flip, "resize": self.resize, "is_cut": is_cut}
        return [
            augment(part, self.image_size, rng, kind, **settings)
            for part, rng, kind in zip(parts, generators, self.augmentations, strict=True)
        ]

    def _cut(
        self, data: bytes, generators: Sequence[np.random.Generator]
    ) -> list[np.ndarray] | None:
        """Draw and decode the part that each view shows; None where the whole image is needed."""
        size = images.size_by_rows(data)
        if size is None or any(
            images.is_enlarged(*size, self.image_size, kind) for kind in self.augmentations
        ):
            return None
        boxes = [
            draw_view(*size, self.image_size, rng, kind)
            for rng, kind in zip(generators, self.augmentations, strict=True)
        ]
        return partial_decoding.decode_boxes(data, size, boxes, self.image_size)


def text_views(
    captions: Sequence[str],
    tokens: np.ndarray,
    token_mask: np.ndarray,
    tokenizer: Tokenizer,
    views: Views,
    *,
    seed: int,
    step: int,
    records: Sequence[int] | np.ndarray,
) -> Batch:
    """Return further views of N captions, each as a function of (seed, step, record).

    Args:
        captions: N texts.
        tokens: int32 [N, L], what `tokenizer` makes of them.
        token_mask: bool [N, L], its mask.
        tokenizer: The tokenizer of the text tower.
        views: Which of them are wanted.
        seed: The run's seed.
        step: The step the batch is for.
        records: N numbers that the draws depend on.

    Returns:
        If `views.second_text`: `tokens2` int32 [N, L] and `token_mask2` bool [N, L] of another
        wording (see text_augmentations.py). If `views.masked_text`: `masked_tokens` int32 [N, L],
        `masked_positions` and `masked_labels` int32 [N, K] (see masking.py).
    """
    batch: Batch = {}
    if views.second_text:
        generators = _generators(seed, step, records, SECOND_TEXT_STREAM)
        reworded = [
            augment_caption(caption, generator)
            for caption, generator in zip(captions, generators, strict=True)
        ]
        batch["tokens2"], batch["token_mask2"] = tokenizer(reworded)
    if views.masked_text:
        batch |= mask_tokens(
            tokens,
            token_mask & ~np.isin(tokens, tokenizer.special_ids),
            _generators(seed, step, records, MASKED_TEXT_STREAM),
            mask_id=tokenizer.mask_id,
            ordinary_ids=tokenizer.ordinary_ids,
        )
    return batch


def _generators(
    seed: int, step: int, records: Sequence[int] | np.ndarray, stream: int
) -> list[np.random.Generator]:
    return [_generator(seed, step, int(record), stream) for record in records]


def _generator(seed: int, step: int, record: int, stream: int) -> np.random.Generator:
    """Return independent random numbers for one view of one record at one step."""
    # Stream 0 is `default_rng((seed, step, record))`, that of the runs before there were views.
    spawn_key = (stream,) if stream else ()
    entropy = np.random.SeedSequence((seed, step, record), spawn_key=spawn_key)
    return np.random.default_rng(entropy)
