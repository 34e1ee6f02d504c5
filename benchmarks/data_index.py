"""The index of tar shards: how fast it is built, and what ten million records weigh.

    python benchmarks/data_index.py [--records=10000000] [--measured=40000] [--folder=DIR]

Rates are of shards that are scanned for real, with small images, from the cache of the operating
system. For the memory, one shard of 10,000 pairs is scanned and stands, by hard links, for a
thousand: everything but the scan is real. The peak of a process counts the pages of the index that
it has touched, which all processes of a machine share. "captions" opens the index with every
caption as a pair of its own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PAIRS_A_SHARD = 10_000
LOOKUPS = 20_000


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000_000, help="pairs for the memory")
    parser.add_argument("--measured", type=int, default=40_000, help="pairs for the rates")
    parser.add_argument("--folder", help="where to write shards; default: a temporary folder")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(measure(*arguments.step)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rates(Path(folder), arguments.measured)
        memory(Path(folder), arguments.records)


def rates(folder: Path, records: int) -> None:
    """Print how many pairs a second are indexed, by number of processes."""
    from otter_jax.data.scan_pool import scan_in_order
    from otter_jax.data.tar_shards import scan_shard

    count = -(-records // PAIRS_A_SHARD)
    paths = [str(write_shard(folder / f"rate-{k:05d}.tar", k)) for k in range(count)]
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| processes | pairs indexed a second | a second of CPU |\n|---|---|---|")
    for processes in (1, 2):
        start, used = time.perf_counter(), sum(os.times()[:4])
        found = sum(len(scan.keys) for scan in scan_in_order(scan_shard, paths, processes))
        elapsed, used = time.perf_counter() - start, sum(os.times()[:4]) - used
        print(f"| {processes} | {found / elapsed:,.0f} | {found / used:,.0f} |", flush=True)


def memory(folder: Path, records: int) -> None:
    """Print time and peak memory of building, opening and reading a large index."""
    first = write_shard(folder / "0000000.tar", 0)
    for k in range(1, -(-records // PAIRS_A_SHARD)):
        os.link(first, folder / f"{k:07d}.tar")
    print(f"\n| {records:,} records | s | peak MiB | MiB on disk |\n|---|---|---|---|")
    for step in ("import", "build", "open", "captions", "read"):
        command = [sys.executable, __file__, "--step", step, str(folder)]
        result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        print(f"| {step} | {result['seconds']:.2f} | {result['peak']:.0f} | {result['disk']:.0f} |")


def measure(step: str, folder: str) -> dict[str, float]:
    """Return time, peak memory in MiB and size of the index, of one step in this process."""
    from otter_jax.data.batches import record_order
    from otter_jax.data.caption_pairs import CaptionPairs
    from otter_jax.data.shard_index import Scan, load_index
    from otter_jax.data.tar_shards import TarShards, scan_shard

    paths = sorted(map(str, Path(folder).glob("0*.tar")))
    file = Path(folder) / "all.index"

    def scan(shards: list[str]) -> Iterator[Scan]:
        real = scan_shard(shards[0])
        yield real._replace(keys=[b"k" * 1000, *real.keys[1:]])  # One key of great length.
        for number in range(1, len(shards)):
            yield real._replace(keys=[b"%05d%s" % (number, key) for key in real.keys])

    start = time.perf_counter()
    if step != "import":
        index = load_index(paths, scan, file)
    if step == "captions":
        assert len(CaptionPairs(TarShards(paths, index_file=file))) == len(index)
    if step == "read":
        order = record_order(len(index), 256, seed=0)
        for number in np.concatenate([order[s] for s in range(-(-LOOKUPS // 256))]):
            entry = index[int(number)]
            assert len(entry.spans) == 3
    return {
        "seconds": time.perf_counter() - start,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "disk": file.stat().st_size / 2**20 if file.exists() else 0,
    }


def write_shard(path: Path, number: int) -> Path:
    """Return a shard of 10,000 pairs with images of 2 kB."""
    with path.open("wb") as file:
        for pair in range(PAIRS_A_SHARD):
            key = f"{number:05d}{pair:04d}"
            metadata = json.dumps({"key": key, "caption": "a cat on a mat"}).encode()
            members = (("jpg", bytes(2000)), ("txt", b"a cat on a mat"), ("json", metadata))
            for suffix, data in members:
                header = tarfile.TarInfo(f"{key}.{suffix}")
                header.size = len(data)
                file.write(header.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE))
        file.write(bytes(tarfile.RECORDSIZE))
    return path


if __name__ == "__main__":
    main()
