"""Batches as a pure function of (seed, step), so that a run resumes exactly, anywhere.

The order is one global permutation an epoch. Batches run on across the end of an epoch: every
record comes once an epoch, and none is dropped to fill the last batch. The batch at a step depends
on neither the number of processes or threads nor on where the run was resumed.
"""

from collections.abc import Callable, Iterator, Mapping

import grain
import numpy as np

Batch = dict[str, np.ndarray]
Loader = Callable[[int, np.ndarray], Batch]  # (step, record numbers) -> their part of a batch


def record_order(num_records: int, batch_size: int, seed: int) -> grain.MapDataset:
    """Record numbers by step: element s is int64 [batch_size], in a new order every epoch.

    Raises:
      ValueError: if there are fewer records than a batch needs.
    """
    if num_records < batch_size:
        raise ValueError(
            f"config.batch_size={batch_size} is more than the {num_records} pairs there are"
        )
    order = grain.MapDataset.range(num_records).seed(seed).shuffle().repeat()
    return order.batch(batch_size)


def batches(
    load: Loader,
    num_records: int,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
    threads: int = 2,
) -> Iterator[Batch]:
    """This process's rows of the batches from `start_step` on, without end.

    Args:
      load: gives the arrays of some records at a step.
      num_records: how many records there are.
      batch_size: rows of the global batch.
      seed: the run's seed.
      start_step: the first step wanted.
      process: (index, count); process p has the p-th block of rows of every batch.
      threads: how many batches are made at the same time.
    """
    index, count = process
    rows = slice(index * batch_size // count, (index + 1) * batch_size // count)
    dataset = record_order(num_records, batch_size, seed).map_with_index(
        lambda step, records: {"index": records[rows]} | load(step, records[rows])
    )
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(dataset[start_step:].to_iter_dataset(options))


def array_loader(arrays: Mapping[str, np.ndarray]) -> Loader:
    """Rows of arrays that are held in memory: features and tokens that never vary."""
    return lambda step, records: {name: values[records] for name, values in arrays.items()}
