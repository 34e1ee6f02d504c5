"""The pairs of the npm package @iconify/json as a source in splits, and what is known of them."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from otter_jax.data.builders.iconify import copies
from otter_jax.data.builders.iconify.drawings import Drawings, draw, require_resvg
from otter_jax.data.builders.iconify.package import (
    NAME,
    Icon,
    Package,
    Wish,
    attribution,
    read_package,
)
from otter_jax.data.builders.iconify.splits import SPLITS, TRAIN, divide, find_families
from otter_jax.data.records import Progress, Record, in_words, no_progress
from otter_jax.data.specs import Spec

SIZE = 64  # Pixels.
LARGEST_SIZE = 1024
OPTIONS = {
    "licences": "SPDX identifiers with commas between them, such as MIT,ISC",
    "sets": "prefixes of sets with commas between them, such as lucide,tabler",
    "largest": "a number of icons",
    "size": "a number of pixels",
}


class Kept(NamedTuple):
    """An icon that is in a split."""

    icon: Icon
    drawing: int
    family: str
    licence: str
    split: str


class IconSource:
    """The kept icons, split after split; see `records.Source`.

    Attributes:
        splits: How many pairs each split has, in the order of the records.
        attachments: Texts that belong beside the pairs, by the names of their files.
    """

    def __init__(
        self,
        name: str,
        kept: Sequence[Kept],
        drawings: Drawings,
        skipped: dict[str, int],
        attachments: dict[str, str],
    ) -> None:
        """Take icons in the order of their splits."""
        self.name = name
        # Without the SVGs, which are drawn, and would go to every process.
        self._kept = [each._replace(icon=_named(each.icon)) for each in kept]
        self._drawings = drawings
        self.skipped = skipped
        self.skipped_files: dict[str, str] = {}
        self.attachments = attachments
        counts = Counter(each.split for each in kept)
        self.splits = {split: counts[split] for split in SPLITS if counts[split]}
        self.caption_counts = np.ones(len(kept), np.uint8)
        digest = hashlib.sha256()
        for each in kept:
            digest.update(repr((drawings.key(each.drawing), each)).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        """Return the number of pairs of all splits."""
        return len(self._kept)

    def __getitem__(self, i: int) -> Record:
        """Return pair `i`; IndexError where there is none."""
        kept = self._kept[range(len(self))[i]]
        metadata = {
            "set": kept.icon.prefix,
            "name": kept.icon.name,
            "family": kept.family,
            "licence": kept.licence,
        }
        image, caption = self._drawings.image(kept.drawing), kept.icon.caption
        return Record(self.key(i), image, caption, metadata, (caption,))

    def key(self, i: int) -> str:
        """Return what pair `i` is called: its icon's name as Iconify writes it."""
        icon = self._kept[i].icon
        return f"{icon.prefix}:{icon.name}"

    def first_caption(self, i: int) -> str:
        """Return the caption of pair `i`; see `records.first_caption`."""
        return self._kept[i].icon.caption


def _named(icon: Icon) -> Icon:
    return Icon(icon.prefix, icon.name, icon.caption, "")


def open_icons(
    spec: Spec,
    folder: Path,
    *,
    processes: int | None = None,
    progress: Progress = no_progress,
) -> IconSource:
    """Open `iconify:PACKAGE[?licences=MIT,ISC&sets=lucide,tabler&largest=2000&size=64]`.

    What is drawn is kept in the folder, and found there after an interruption.

    Args:
        spec: Names the package, as a folder or as a tarball.
        folder: Of what is drawn, for as long as the source is used; made if missing.
        processes: How many draw; one for each core if not given.
        progress: Shows how far it is.

    Raises:
        ValueError: For an option that means nothing, or a package that is none.
        FileNotFoundError: If there is nothing at the path.
        ModuleNotFoundError: If resvg-py, which draws, is missing.
        OSError: If the folder cannot be written.
    """
    spec.refuse_options_but(*OPTIONS)
    _refuse_empty_options(spec)
    lists = {
        key: tuple(spec.options[key].split(","))
        for key in ("licences", "sets")
        if key in spec.options
    }
    wish = Wish(**lists, largest=_whole(spec, "largest", Wish.largest, Wish.largest))
    size = _whole(spec, "size", SIZE, LARGEST_SIZE)
    require_resvg()
    package = read_package(Path(spec.path), wish)
    drawings = draw([icon.svg for icon in package.icons], size, folder, processes, progress)
    kept = choose(package, drawings, progress)
    if not any(each.split == TRAIN for each in kept):
        reasons = in_words(+package.skipped)  # Without those of which there are none.
        raise ValueError(f"{spec.name}: not one icon is left to train on ({reasons})")
    attachments = {
        "ATTRIBUTION.md": attribution(package),
        "summary.json": json.dumps(summary(package, kept, size), indent=2) + "\n",
        **_class_lists(kept),
    }
    skipped = {reason: count for reason, count in sorted(package.skipped.items()) if count}
    return IconSource(spec.name, kept, drawings, skipped, attachments)


def _refuse_empty_options(spec: Spec) -> None:
    """Refuse options without a value, for which `Spec` takes all options for a part of the path.

    Raises:
        ValueError: Naming the first such option, and what it wants.
    """
    _, _, behind = spec.name.rpartition("?")
    for option, _, value in (part.partition("=") for part in behind.split("&")):
        if option in OPTIONS and "" in value.split(","):
            raise ValueError(f"{spec.name}: {option} is empty; it wants {OPTIONS[option]}")


def _whole(spec: Spec, option: str, default: int, most: int) -> int:
    """Return a whole number that an option gives; ValueError if it gives none."""
    text = spec.options.get(option, str(default))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ValueError(f"{spec.name}: {option}={text}; it must be 1 to {most}")
    return int(text)


def choose(package: Package, drawings: Drawings, progress: Progress = no_progress) -> list[Kept]:
    """Return the icons that are in a split, split after split; counts the others in the package."""
    problems = drawings.problems()
    package.skipped.update(why for why in problems if why)
    drawn = np.array([number for number, why in enumerate(problems) if not why], np.int64)
    looks = drawings.looks()[drawn]
    pairs = copies.alike(looks, copies.RELATIVE, progress)
    same = pairs[copies.distances(looks, pairs) <= copies.COPY]
    prefixes = [package.icons[number].prefix for number in drawn]
    families = find_families(package.sets, prefixes, same)
    is_copy = copies.find_copies(len(drawn), same)
    package.skipped["copy, exact or nearly"] += int(is_copy.sum())
    # Numbers among the drawn become numbers among the distinct.
    place = np.cumsum(~is_copy) - 1
    relatives = place[pairs[~is_copy[pairs].any(axis=1)]]
    distinct = drawn[~is_copy]
    icons = [package.icons[number] for number in distinct]
    splits, left_out = divide(icons, families, relatives)
    package.skipped.update(left_out)
    kept = [
        Kept(icon, int(number), families[icon.prefix], package.sets[icon.prefix].licence, split)
        for icon, number, split in zip(icons, distinct, splits.tolist(), strict=True)
        if split
    ]
    return sorted(kept, key=lambda each: (SPLITS.index(each.split), each.drawing))


def summary(package: Package, kept: Sequence[Kept], size: int) -> dict[str, Any]:
    """Return what is in each split, and what was left out and why."""
    by_split: dict[str, list[Kept]] = defaultdict(list)
    for each in kept:
        by_split[each.split].append(each)
    times = list(Counter(each.icon.caption for each in kept).values())
    families: dict[str, set[str]] = defaultdict(set)
    for each in kept:
        families[each.family].add(each.icon.prefix)
    left_out: dict[str, list[str]] = defaultdict(list)
    for prefix, reason in package.skipped_sets.items():
        left_out[reason].append(prefix)
    return {
        "package": f"{NAME} {package.version}",
        "size": size,
        "pairs": len(kept),
        "captions": len(times),
        "pairs_a_caption": {
            "mean": round(float(np.mean(times)), 2),
            "median": float(np.median(times)),
            "most": max(times),
        },
        "splits": {split: _counts(by_split[split]) for split in SPLITS if by_split[split]},
        "licences": dict(Counter(each.licence for each in kept).most_common()),
        "left_out": {why: n for why, n in package.skipped.most_common() if n},
        "sets_left_out": dict(sorted(left_out.items())),
        "families": {name: sorted(sets) for name, sets in families.items() if len(sets) > 1},
    }


def _counts(kept: Sequence[Kept]) -> dict[str, Any]:
    return {
        "pairs": len(kept),
        "captions": len({each.icon.caption for each in kept}),
        "families": len({each.family for each in kept}),
        "sets": sorted({each.icon.prefix for each in kept}),
    }


def _class_lists(kept: Sequence[Kept]) -> dict[str, str]:
    """Return the captions of each split but the first, a line each, for `?classes=`."""
    captions: dict[str, set[str]] = defaultdict(set)
    for each in kept:
        if each.split != TRAIN:
            captions[each.split].add(each.icon.caption)
    return {
        f"classes_{split}.txt": "".join(f"{caption}\n" for caption in sorted(found))
        for split, found in captions.items()
    }
