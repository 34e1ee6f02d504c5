"""Time and memory of pair trust on generated features in memory-mapped files.

    python benchmarks/pair_trust.py [--pairs 100000 200000 400000] [--width=768] [--reference=2000]
                                    [--rounds=2]

Each size runs in a process of its own, so that its peak of memory is its own.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

PROGRAM = """
import resource, sys, time
import numpy as np
from otter_jax.embedding import trust_rounds
image, text = (np.load(path, mmap_mode="r") for path in sys.argv[1:3])
reference, rounds = map(int, sys.argv[3:])
# What is loaded once is not counted.
trust_rounds.estimate_in_rounds(image[:1000], text[:1000], reference=100, rounds=rounds)
start, cpu = time.perf_counter(), time.process_time()
trust_rounds.estimate_in_rounds(image, text, reference=reference, rounds=rounds)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(time.perf_counter() - start, time.process_time() - cpu, peak)
"""


def write_features(path: Path, count: int, width: int, seed: int) -> None:
    """Write random float16 rows, a block at a time."""
    rng = np.random.default_rng(seed)
    rows = np.lib.format.open_memmap(path, "w+", np.float16, (count, width))
    for start in range(0, count, 50_000):
        block = rows[start : start + 50_000]
        block[:] = rng.standard_normal(block.shape, np.float32)


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 200_000, 400_000])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--reference", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=0, help="how often to estimate again")
    arguments = parser.parse_args()
    numbers = [str(arguments.reference), str(arguments.rounds)]
    print("| pairs | seconds | CPU seconds | CPU µs a pair | peak memory, GiB |")
    print("|---|---|---|---|---|")
    for count in arguments.pairs:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{side}.npy" for side in ("image", "text")]
            for seed, path in enumerate(paths):
                write_features(path, count, arguments.width, seed)
            command = [sys.executable, "-c", PROGRAM, *map(str, paths), *numbers]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds, cpu, peak = map(float, output.splitlines()[-1].split())
        cells = f"{count:,} | {seconds:.0f} | {cpu:.0f} | {1e6 * cpu / count:.0f} | {peak:.2f}"
        print(f"| {cells} |", flush=True)


if __name__ == "__main__":
    main()
