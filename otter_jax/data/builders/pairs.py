"""How `otter_jax.commands.prepare` stores image-text pairs for TensorFlow Datasets: one schema.

Images are stored as they come, byte for byte, and TensorFlow is never needed.
"""

import json
from typing import Any

import tensorflow_datasets as tfds

from otter_jax.data.records import Record

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
