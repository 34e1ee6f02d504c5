"""Random records of `tfds:`, by how many of them lie in one file.

    python benchmarks/data_tfds.py [--records=200000] [--rounds=12] [--folder=DIR]

The same records of two kilobytes are written in files of 1,000 and in one file. Batches of 256 are
read at random, in turn from both: all of a batch at once, as training reads them, and some one by
one. Microseconds a record, medians of all rounds, from the cache of the operating system.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from otter_jax.commands import prepare
from otter_jax.data.records import Record, Source, read_records
from otter_jax.data.sources import open_source

BATCH, ONE_BY_ONE, SHORT = 256, 16, 1000


class Made:
    """Records that are made when they are asked for."""

    name, fingerprint, caption_counts = "made", "made", None
    skipped: ClassVar[dict[str, int]] = {}

    def __init__(self, count: int) -> None:
        """Hold `count` records."""
        self._count = count

    def __len__(self) -> int:
        """Return how many there are."""
        return self._count

    def __getitem__(self, i: int) -> Record:
        """Return one of them, unlike all others."""
        return Record(str(i), i.to_bytes(4) * 500, f"caption number {i}", {})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000, help="records of the one file")
    parser.add_argument("--rounds", type=int, default=12, help="measurements of each")
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        sources = {
            each: write(Path(folder) / str(each), arguments.records, each)
            for each in (SHORT, arguments.records)
        }
        print("| records a file | a batch at once | one by one |\n|---|---|---|")
        for each, (at_once, alone) in measure(sources, arguments.rounds).items():
            print(f"| {each:,} | {at_once:.0f} | {alone:.0f} |")


def write(folder: Path, records: int, records_a_file: int) -> Source:
    """Write a data set of TFDS and open it."""
    job = prepare.Job(Made(records), folder, "pairs", records_per_shard=records_a_file)
    folder.mkdir()
    prepare.begin(job)
    for shard in job.shards:
        prepare.write_shard(job, shard)
    prepare.finish(job)
    return open_source(f"tfds:{folder}")


def measure(sources: dict[int, Source], rounds: int) -> dict[int, np.ndarray]:
    """Return microseconds a record, read a batch at once and one by one."""
    rng = np.random.default_rng(0)
    seconds: dict[int, list[tuple[float, float]]] = {each: [] for each in sources}
    for _ in range(rounds):
        numbers = rng.integers(len(next(iter(sources.values()))), size=BATCH).tolist()
        for each, source in sources.items():
            start = time.perf_counter()
            read_records(source, numbers)
            between = time.perf_counter()
            for number in numbers[:ONE_BY_ONE]:
                source[number]
            end = time.perf_counter()
            seconds[each].append(((between - start) / BATCH, (end - between) / ONE_BY_ONE))
    return {each: 1e6 * np.median(found, axis=0) for each, found in seconds.items()}


if __name__ == "__main__":
    main()
