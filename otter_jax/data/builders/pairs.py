"""How image-text pairs are stored as a data set of TensorFlow Datasets: one schema, one builder.

Images are stored as they come, byte for byte, and TensorFlow is never needed.
"""

import json
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from otter_jax.data.builders.recipes import open_pairs
from otter_jax.data.records import Record, RecordError, Source

VERSION = "1.0.0"


def make_features() -> Any:
    """Return the schema: `image`, `captions`, `key`, and `metadata` as json."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "key": tfds.features.Text(),
            "metadata": tfds.features.Text(),
        }
    )


def to_example(record: Record) -> dict[str, Any]:
    """Return a record in the schema."""
    return {
        "image": record.image,
        "captions": list(record.captions or (record.caption,)),
        "key": record.key.encode("utf-8", "surrogateescape"),
        "metadata": json.dumps(record.metadata),
    }


# Not registered: TFDS has a `wit` of its own, and users may have a `pairs`.
class Pairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Any SPEC as a data set: `Pairs(spec=SPEC, data_dir=DIR, file_format="array_record")`.

    For large sets `python -m otter_jax.data.prepare` writes the same schema by several processes,
    and goes on where it was interrupted, which TFDS cannot.
    """

    VERSION = tfds.core.Version(VERSION)
    recipe = ""  # Of builders/recipes.py; "": captions are taken as the source gives them.

    def __init__(self, *, spec: str, **options: Any) -> None:
        """Open the pairs; options are those of every TFDS builder.

        Raises:
            ValueError, FileNotFoundError: As `open_source` and `recipes.open_pairs`.
        """
        self._source = open_pairs(spec, self.recipe)
        super().__init__(**options)

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(builder=self, features=make_features())

    def _split_generators(self, manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del manager  # Nothing is downloaded: these sets come as lists of addresses.
        return {"train": self._generate_examples(self._source)}

    def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(len(source)):
            try:
                yield number, to_example(source[number])
            except RecordError:
                continue


class ConceptualCaptions(Pairs, skip_registration=True):
    """Conceptual Captions 3M."""

    recipe = "conceptual_captions"


class Conceptual12M(Pairs, skip_registration=True):
    """Conceptual 12M."""

    recipe = "conceptual_12m"


class Yfcc15m(Pairs, skip_registration=True):
    """The 15 million pairs of YFCC100M that CLIP's authors chose."""

    recipe = "yfcc15m"


class Wit(Pairs, skip_registration=True):
    """Wikipedia Image-Text."""

    recipe = "wit"
