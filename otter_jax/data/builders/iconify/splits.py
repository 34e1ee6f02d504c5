"""Divides icons into those to train on, those of unseen styles, and those of unseen concepts.

A style is a family of sets: those of one author, and those that share many drawings, since one came
from the other. Whole families are held out for the one question, captions, wherever they occur, for
the other; so that each question is asked alone, the styles held out show concepts that are trained
on, and the concepts held out come in styles that are trained on.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from otter_jax.data.builders.iconify.copies import join, related
from otter_jax.data.builders.iconify.package import Icon, IconSet

TRAIN = "train"
STYLES = ("style_validation", "style_test")
CONCEPTS = ("concepts_validation", "concepts_test")
SPLITS = (TRAIN, *STYLES, *CONCEPTS)
SHARE = 0.05  # Of all icons, in each split that is not trained on, before any is taken out of it.
LARGEST_STYLE = 0.6  # Of a split's share: several families should make up each.
SHARED = 0.1  # Of the drawings of the smaller set, from where one came from the other.
FEWEST_SHARED = 10


def find_families(
    sets: Mapping[str, IconSet], prefixes: Sequence[str], copies: np.ndarray
) -> dict[str, str]:
    """Return the family of each set, called by its first member.

    Args:
        sets: The sets by prefix.
        prefixes: The set of each icon.
        copies: Icons that look the same, int [p, 2].
    """
    by_author: dict[str, str] = {}
    joined = [(by_author.setdefault(each.author, prefix), prefix) for prefix, each in sets.items()]
    sizes = Counter(prefixes)
    shared: dict[tuple[str, str], set[int]] = defaultdict(set)
    for pair in copies.tolist():
        ends = [prefixes[number] for number in pair]
        smaller = min(ends, key=lambda prefix: (sizes[prefix], prefix))
        if ends[0] != ends[1]:
            first, second = sorted(ends)
            shared[first, second].add(pair[ends.index(smaller)])
    for pair, numbers in shared.items():
        if len(numbers) >= max(FEWEST_SHARED, SHARED * min(sizes[each] for each in pair)):
            joined.append(pair)
    return join(sets, joined)


def divide(
    icons: Sequence[Icon], families: Mapping[str, str], relatives: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
    """Return the split of each icon, str [n], "" for none; and how many are in none, by reason.

    Args:
        icons: The icons, none of them a copy of another.
        families: The family of each set.
        relatives: Pairs of icons that look alike, int [p, 2].
    """
    of_family = choose_styles(Counter(families[icon.prefix] for icon in icons))
    styles = np.array([of_family.get(families[icon.prefix], TRAIN) for icon in icons])
    concepts = np.array([split_of_concept(icon.caption) for icon in icons])
    splits = np.where(styles == TRAIN, concepts, styles)
    trained = splits == TRAIN
    known = {concept(icon.caption) for icon, is_in in zip(icons, trained, strict=True) if is_in}
    new = np.array([concept(icon.caption) not in known for icon in icons])
    left_out = {}
    for reason, chosen in (
        ("unseen style and concept at once", (styles != TRAIN) & new),
        ("like a training icon", related(relatives, ~trained, trained)),
    ):
        left_out[reason] = int((chosen & (splits != "")).sum())
        splits[chosen] = ""
    return splits, left_out


def choose_styles(sizes: Mapping[str, int]) -> dict[str, str]:
    """Return the families to hold out, and the split of each, ordered by a hash of their names.

    Args:
        sizes: How many icons each family has.
    """
    room = dict.fromkeys(STYLES, SHARE * sum(sizes.values()))
    largest = LARGEST_STYLE * SHARE * sum(sizes.values())
    chosen = {}
    for family in sorted(sizes, key=_hash):
        split = max(STYLES, key=lambda each: room[each])
        if sizes[family] <= min(largest, room[split]):
            chosen[family] = split
            room[split] -= sizes[family]
    return chosen


def split_of_concept(caption: str) -> str:
    """Return the split of a caption, by a hash: whatever else there is, it stays where it is."""
    share = _hash(" ".join(sorted(concept(caption)))) / 2**64
    place = int(share / SHARE)
    return CONCEPTS[place] if place < len(CONCEPTS) else TRAIN


def concept(caption: str) -> frozenset[str]:
    """Return what a caption means, as far as that is: its words in any order."""
    return frozenset(caption.lower().split())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
