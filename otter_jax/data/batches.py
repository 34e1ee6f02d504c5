"""Batches as a pure function of (seed, step), so that a run resumes exactly, anywhere.

The order is one global permutation an epoch. Batches run on across the end of an epoch: every
record comes once an epoch, and none is dropped to fill the last batch. The batch at a step depends
on neither the number of processes or threads nor on where the run was resumed.

Sources that are mixed by weight each have a permutation and epochs of their own: a source whose
share of the batches is larger than its share of the records comes round more often. The shares are
exact: weights 3 and 1 give three records and one among every four. No long permutation is ever held
in memory; each number is computed when it is needed.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm

import grain
import numpy as np

Batch = dict[str, np.ndarray]
Loader = Callable[[int, np.ndarray], Batch]  # (step, record numbers) -> their part of a batch

ORDERS = (1, 2)  # Formats of the order; a run goes on in the one it began with.
IN_MEMORY = 2**16  # Records, of which fewer are permuted in memory by order 2.
MAX_MIXING_PERIOD = 1_000_000


def record_order(
    num_records: int | Sequence[int],
    batch_size: int,
    seed: int,
    weights: Sequence[float] = (),
    order: int = 1,
) -> grain.MapDataset:
    """Record numbers by step: element s is int64 [batch_size], in a new order every epoch.

    Args:
        num_records: how many records there are; by source, if they are mixed. Records are numbered
            through: those of the first source come first.
        batch_size: rows of the global batch.
        seed: the run's seed.
        weights: the shares of the sources, of any sum; none: all records form one permutation.
        order: 1 is grain's permutation, which walks through 65,536 numbers for every epoch of a
            smaller source; 2 holds that of a smaller source in memory, and is many times faster.
            A run keeps the one it began with.

    Raises:
        ValueError: if there are fewer records than a batch needs, of one source even; if weights
            are not positive, not one for every source, or not simple enough to be kept exactly;
            for a seed or an order that does not exist.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"config.seed={seed}: it must be 0 to {2**32 - 1}")
    if order not in ORDERS:
        raise ValueError(f"there is no order {order} of batches; there are {ORDERS}")
    lengths = [num_records] if isinstance(num_records, int) else list(num_records)
    if sum(lengths) < batch_size:
        raise ValueError(
            f"config.batch_size={batch_size} is more than the {sum(lengths)} pairs there are"
        )
    if not weights:
        return _permuted(0, sum(lengths), seed, order).batch(batch_size)
    mixing = Mixing(whole_weights(weights, len(lengths)))
    for source, (length, share) in enumerate(zip(lengths, mixing.shares(batch_size), strict=True)):
        if length < share:
            raise ValueError(
                f"config.data.weights={tuple(weights)}: a batch would hold {share} pairs of source "
                f"{source}, which has {length}"
            )
    return grain.MapDataset.select_from_datasets(
        [
            _permuted(end - length, end, _own_seed(seed, part), order)
            for part, (length, end) in enumerate(zip(lengths, np.cumsum(lengths), strict=True))
        ],
        mixing,
    ).batch(batch_size)


def _permuted(first: int, end: int, seed: int, order: int) -> grain.MapDataset:
    """Return the numbers from `first` to before `end`, in a new order every epoch, without end."""
    numbers = grain.MapDataset.range(first, end)
    if order == 1 or end - first >= IN_MEMORY:
        return numbers.seed(seed).shuffle().repeat()
    return numbers.repeat().map_with_index(_PermutedInMemory(first, end - first, seed))


class _PermutedInMemory:
    """Says which number has a place in the endless stream of a small source."""

    def __init__(self, first: int, length: int, seed: int) -> None:
        self._first, self._length, self._seed = first, length, seed
        # Batches that are made at the same time may be of epochs that follow each other.
        self._of_epoch = functools.lru_cache(maxsize=4)(self._permutation)

    def __call__(self, place: int, number: int) -> int:
        del number
        epoch, rest = divmod(place, self._length)
        return self._first + int(self._of_epoch(epoch)[rest])

    def _permutation(self, epoch: int) -> np.ndarray:
        # Raw bits of Philox are the same in every version of NumPy, which shuffles need not be.
        bits = np.random.Philox(np.random.SeedSequence((self._seed, epoch)))
        return np.argsort(bits.random_raw(self._length), kind="stable")


class Mixing(grain.transforms.DatasetSelectionMap):
    """Which source gives element i of a mixed stream, and which of its elements that is.

    One period of the stream has `weights[k]` elements of source k, evenly spread.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        """Take positive weights."""
        self._weights = np.array(weights)
        source = np.repeat(np.arange(len(weights)), weights)
        place = np.concatenate([np.arange(weight) for weight in weights])
        order = np.argsort((place + 0.5) / self._weights[source], kind="stable")
        self._source, self._place = source[order], place[order]

    def __len__(self) -> int:
        """Return a length that no run reaches."""
        return 2**62

    def __getitem__(self, index: int) -> tuple[int, int]:
        """Return the source of element `index`, and the number of that element in the source."""
        period, rest = divmod(index, len(self._source))
        source = int(self._source[rest])
        return source, period * int(self._weights[source]) + int(self._place[rest])

    def shares(self, count: int) -> list[int]:
        """Return, by source, how many of `count` elements in a row it gives, rounded up."""
        return [-(-count * weight // len(self._source)) for weight in self._weights.tolist()]


def whole_weights(weights: Sequence[float], num_sources: int) -> list[int]:
    """Return the smallest whole numbers with the ratios of some weights, read as they are written.

    Raises:
        ValueError: if they are not positive, not one for every source, or have so many digits that
            their ratios would not be kept within a million records.
    """
    what = f"config.data.weights={tuple(weights)}"
    if len(weights) != num_sources:
        raise ValueError(
            f"{what}: give one weight for each source; config.data.train has {num_sources}"
        )
    if not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"{what}: weights must be positive")
    fractions = [Fraction(str(weight)) for weight in weights]
    whole = [fraction * lcm(*(each.denominator for each in fractions)) for fraction in fractions]
    smallest = [int(each / gcd(*map(int, whole))) for each in whole]
    if sum(smallest) > MAX_MIXING_PERIOD:
        raise ValueError(f"{what}: write the weights with fewer digits")
    return smallest


def batches(
    load: Loader,
    num_records: int | Sequence[int],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
    weights: Sequence[float] = (),
    order: int = 1,
) -> Iterator[Batch]:
    """Yield this process's rows of the batches from `start_step` on, without end.

    Args:
        load: gives the arrays of some records at a step.
        num_records: how many records there are; by source, if they are mixed.
        batch_size: rows of the global batch.
        seed: the run's seed.
        start_step: the first step wanted.
        process: (index, count); process p has the p-th block of rows of every batch.
        threads: how many batches are made at the same time; 0: each when it is asked for.
        weights: see `record_order`.
        order: see `record_order`.
    """
    index, count = process
    rows = slice(index * batch_size // count, (index + 1) * batch_size // count)
    dataset = record_order(num_records, batch_size, seed, weights, order).map_with_index(
        lambda step, records: {"index": records[rows]} | load(step, records[rows])
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(dataset[start_step:].to_iter_dataset(options))


def array_loader(arrays: Mapping[str, np.ndarray]) -> Loader:
    """Return rows of arrays that are held in memory: features and tokens that never vary."""
    return lambda step, records: {name: values[records] for name, values in arrays.items()}


def with_values(load: Loader, name: str, values: np.ndarray) -> Loader:
    """Return a loader whose batches also say something known of each record.

    Args:
        load: gives batches with `index`, the records that were really used.
        name: what to call it.
        values: [num_records].
    """

    def load_with_values(step: int, records: np.ndarray) -> Batch:
        batch = load(step, records)
        return batch | {name: values[batch["index"]]}

    return load_with_values


def _own_seed(seed: int, source: int) -> int:
    """Return a seed of each source's own, lest those of one length share their permutations."""
    return int(np.random.SeedSequence((seed, source)).generate_state(1)[0])
