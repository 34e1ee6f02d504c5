#!/usr/bin/env bash
# A TensorFlow Datasets builder that is given a decoded picture stores another one.
#
# Libraries: tensorflow-datasets 4.9.10 (without TensorFlow), Pillow 13.0.0.
# Expected:  what a builder yields is what its data set holds, or a setting says how lossy it is.
# Happens:   a PIL.Image for a feature with encoding_format="jpeg" is saved at Pillow's default
#            quality of 75 with halved colour, and there is no option for it. A picture that was
#            opened and handed on is compressed twice. The path or the bytes of
#            the file are stored verbatim instead.
# Matters:   pairs converted to ArrayRecord: the training set has JPEG's blocks that the evaluation
#            set does not have, and colours of thin lines (clip-art, text) are gone.
# Seen on 2026-11-28, red and blue lines of one pixel:
#   given as picture: off by up to 152 of 255, 88.6 on average; given as bytes of a PNG: 0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile \
  tensorflow-datasets==4.9.10 importlib_resources==7.1.0 pillow==13.0.0 numpy==2.4.6

cat >"$work/pairs.py" <<'EOF'
import io
import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

LINES = np.zeros((64, 64, 3), np.uint8)
LINES[:, ::2, 0] = LINES[:, 1::2, 2] = 255
tfds.display_progress_bar(False)


class Pairs(tfds.core.GeneratorBasedBuilder):
    """One pair."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("picture", "bytes")]

    def _info(self):
        encoding = "jpeg" if self.builder_config.name == "picture" else None
        image = tfds.features.Image(shape=(None, None, 3), encoding_format=encoding)
        features = {"image": image, "caption": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        image = Image.fromarray(LINES)
        if self.builder_config.name == "bytes":
            file = io.BytesIO()
            image.save(file, "PNG")
            image = file.getvalue()
        yield 0, {"image": image, "caption": "red and blue lines"}


def error(name):
    builder = Pairs(data_dir=sys.argv[1], config=name, file_format="array_record")
    builder.download_and_prepare()
    stored = builder.as_data_source(split="train")[0]["image"]
    return np.abs(stored.astype(int) - LINES)


if __name__ == "__main__":
    picture, verbatim = error("picture"), error("bytes")
    print(f"given as picture: off by up to {picture.max()} of 255,", end=" ")
    print(f"{picture.mean():.1f} on average; given as bytes of a PNG: {verbatim.max()}")
    assert picture.max() > 100 and verbatim.max() == 0
EOF
"$work/venv/bin/python" "$work/pairs.py" "$work/data"
