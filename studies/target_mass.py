"""Where do OTTER's targets lie? Mass on equal captions, synonyms, opposites and the rest.

    python main.py --config=configs/icons.py --workdir=runs/icons_otter \
        --config.objective.name=otter --config.objective.known_positives=None
    python -m studies.target_mass runs/icons_otter [--data=icons] [--epsilon=0.15] [--batches=40]

The trained model stands in for its EMA teacher, which follows it closely. Batches of pairs are
drawn at random, and their targets computed as in training, given pairs taken out. What a row's mass
lies on is told by the two captions alone, the first of these kinds that fits:

* equal captions;
* opposites: alike but for one word each, and the two are in `OPPOSITES`;
* synonyms: alike but for one word each, and WordNet has one of them among the other's synonyms;
* another word: alike but for one word each, of two words or more;
* a word in common; or nothing in common.

"by chance" is the share of pairs of a kind, and so the mass that a uniform target would give it.
"""

import argparse
import functools
from collections.abc import Callable, Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import otter_jax
from otter_jax import objectives
from otter_jax.commands.command_line import ending_in_one_line
from otter_jax.data.sources import Source, open_source
from otter_jax.data.text_augmentations import wordnet
from otter_jax.embedding.encoder import Encoder

KINDS = (
    "equal captions",
    "opposites",
    "synonyms",
    "another word",
    "a word in common",
    "nothing in common",
)
_OPPOSITES = """
left/right up/down top/bottom upper/lower above/below in/out on/off open/close open/closed
add/remove plus/minus first/last start/end start/stop play/pause next/previous next/prev
back/forward forward/backward horizontal/vertical min/max minimize/maximize expand/collapse
increase/decrease light/dark sun/moon day/night lock/unlock locked/unlocked show/hide
visible/hidden happy/sad male/female man/woman boy/girl high/low fast/slow full/empty big/small
large/small positive/negative import/export upload/download input/output enter/exit login/logout
undo/redo check/cross like/dislike follow/unfollow mute/unmute pin/unpin link/unlink wrap/unwrap
row/column inside/outside inner/outer before/after hot/cold old/new black/white push/pull buy/sell
north/south east/west
"""
OPPOSITES = frozenset(frozenset(pair.split("/")) for pair in _OPPOSITES.split())


def kind_of(one: str, other: str, synonyms: Callable[[str], Collection[str]]) -> str:
    """Return which of `KINDS` two captions are; `synonyms` are those of a word."""
    a, b = one.lower().split(), other.lower().split()
    if a == b:
        return "equal captions"
    differing = [(x, y) for x, y in zip(a, b, strict=False) if x != y]
    if len(a) == len(b) and len(differing) == 1:
        ((x, y),) = differing
        if frozenset((x, y)) in OPPOSITES:
            return "opposites"
        if y in synonyms(x) or x in synonyms(y):
            return "synonyms"
        if len(a) > 1:
            return "another word"
    return "a word in common" if set(a) & set(b) else "nothing in common"


def kinds_of(captions: Sequence[str], synonyms: Callable[[str], Collection[str]]) -> np.ndarray:
    """Return the number in `KINDS` of each pair of captions, int [N, N]."""
    return np.array(
        [[KINDS.index(kind_of(one, other, synonyms)) for other in captions] for one in captions]
    )


def shares(weights: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return the share of the weights [N, N], off the diagonal, that lies on each kind."""
    others = ~np.eye(len(kinds), dtype=bool)
    found = np.bincount(kinds[others], weights[others], len(KINDS))
    return found / found.sum()


def draw_batches(
    model: Encoder, source: Source, count: int, size: int
) -> Iterator[tuple[list[str], objectives.Embeddings]]:
    """Yield captions of pairs drawn at random, and what the model makes of the pairs."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        chosen = rng.choice(len(source), size, replace=False)
        records = [source[int(number)] for number in chosen]
        captions = [record.caption for record in records]
        images = model.encode_image([record.image for record in records])
        yield (
            captions,
            objectives.Embeddings(*map(jnp.asarray, (images, model.encode_text(captions)))),
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="what otter_jax.load takes")
    parser.add_argument("--data", default="icons", help="the pairs it was trained on, a SPEC")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.15, 0.05])
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=256)
    given = parser.parse_args()
    with ending_in_one_line():
        print_table(given)


def print_table(given: argparse.Namespace) -> None:
    """Measure and print; ValueError for what cannot be drawn."""
    model, source = otter_jax.load(given.model), open_source(given.data)
    if given.batches < 1 or not 2 <= given.batch_size <= len(source):
        raise ValueError(
            f"--batches={given.batches} of --batch_size={given.batch_size}: there must be at least "
            f"one, of 2 to {len(source)} pairs"
        )
    synonyms = functools.cache(wordnet().synonyms)
    rows: dict[str, list[np.ndarray]] = {}
    for captions, teacher in draw_batches(model, source, given.batches, given.batch_size):
        kinds = kinds_of(captions, synonyms)
        rows.setdefault("by chance", []).append(shares(np.ones(kinds.shape), kinds))
        for epsilon in given.epsilon:
            method = objectives.make_method("otter", epsilon=epsilon)
            target = objectives.soft_targets(method, teacher, len(captions)).image
            found = shares(jax.device_get(target), kinds)
            rows.setdefault(f"mass at epsilon {epsilon:g}", []).append(found)
    print(f"| captions | {' | '.join(rows)} |\n|---{'|---' * len(rows)}|")
    means = [100 * np.mean(found, axis=0) for found in rows.values()]
    for name, *percents in zip(KINDS, *means, strict=True):
        print(f"| {name} | {' | '.join(f'{percent:.2f} %' for percent in percents)} |")


if __name__ == "__main__":
    main()
