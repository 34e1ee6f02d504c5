#!/usr/bin/env bash
# datasets' imagefolder: of classes airplane, bus, car and train, all but the trains are left out.
#
# Library:   datasets 5.2.0.
# Expected:  a folder for each class makes a data set of all classes. With train/ and test/ above
#            them, the pictures below train/ are trained on and those below test/ are not.
# Happens:   the word "train" anywhere in a path makes a file one of the split "train", "test" one
#            of "test". A class called train (a locomotive) is taken for the split, and pictures
#            that no split asks for are dropped without a word, labels and all. Three pictures
#            called "toy train 0.jpg", 1 and 2 do the same to a data set without such a class. And
#            where both splits have a class "train", the test pictures of it are in both.
# Matters:   COCO, Pascal VOC, CIFAR-100 and Open Images have a class "train", and many a list has a
#            "bullet train" and a "test tube". Pictures of web searches are called what they show.
# Seen on 2026-11-29, 10 pictures a class:
#   airplane, bus, car, train: 10 of 40 pictures, no labels
#   airplane, bus, car, with 3 pictures of a "toy train" among the cars: 3 of 33, no labels
#   bullet train, bus, test tube: {'train': 10, 'test': 10} of 30
#   train/ and test/ of airplane, bus, train: {'train': 40, 'test': 30} of 60, 10 are in both
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile datasets==5.2.0 pillow==13.0.0 numpy==2.4.6

HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - "$work" <<'EOF'
import itertools
import sys
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

datasets.disable_progress_bars()
work = Path(sys.argv[1])
numbers = itertools.count()


def pictures(folder, names):
    """Write pictures that all differ, 8 by 8 of one colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        red, green = divmod(next(numbers), 256)
        Image.new("RGB", (8, 8), (red, green, 0)).save(folder / name, format="PNG")


def load(name, classes, extra=()):
    for each in classes:
        pictures(work / name / each, [f"{number}.png" for number in range(10)])
    for each, files in extra:
        pictures(work / name / each, files)
    return datasets.load_dataset("imagefolder", data_dir=work / name, cache_dir=work / "cache")


def colours(split):
    return {tuple(np.asarray(picture)[0, 0]) for picture in split["image"]}


loaded = load("vehicles", ["airplane", "bus", "car", "train"])
print(f"airplane, bus, car, train: {loaded.num_rows['train']} of 40 pictures, no labels")
assert loaded.num_rows == {"train": 10} and loaded["train"].column_names == ["image"]

toys = [("car", [f"toy train {number}.png" for number in range(3)])]
loaded = load("toys", ["airplane", "bus", "car"], toys)
print('airplane, bus, car, with 3 pictures of a "toy train" among the cars:', end=" ")
print(f"{loaded.num_rows['train']} of 33, no labels")
assert loaded.num_rows == {"train": 3} and loaded["train"].column_names == ["image"]

loaded = load("things", ["bullet train", "bus", "test tube"])
print(f"bullet train, bus, test tube: {loaded.num_rows} of 30")
assert loaded.num_rows == {"train": 10, "test": 10}

names = ["airplane", "bus", "train"]
loaded = load("splits", [f"{split}/{name}" for split in ("train", "test") for name in names])
both = len(colours(loaded["train"]) & colours(loaded["test"]))
print(f"train/ and test/ of airplane, bus, train: {loaded.num_rows} of 60, {both} are in both")
assert loaded.num_rows == {"train": 40, "test": 30} and both == 10
assert loaded["train"].features["label"].names == names

loaded = load("without", ["airplane", "bus", "car"])
assert loaded.num_rows == {"train": 30} and "label" in loaded["train"].column_names
EOF
