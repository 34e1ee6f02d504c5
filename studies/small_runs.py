"""What the small studies share that train through the package's own `train`, a folder a run."""

import argparse
import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from otter_jax.data.sources import open_source
from studies.collection import shuffled_captions
from studies.runs import KS


def read_scores(path: Path) -> list[float]:
    """Return the recall (mean of both directions) and OpenMoji hits at 1, 5 and 10, in percent.

    Args:
        path: results.json of a finished run.
    """
    results = json.loads(path.read_text())
    pairs, emoji = results["open_clipart"], results["openmoji"]
    recalls = [50 * (pairs[f"i2t_recall@{k}"] + pairs[f"t2i_recall@{k}"]) for k in KS]
    return recalls + [100 * emoji[f"hit@{k}"] for k in KS]


def shuffled_pairs(spec: str, folder: Path, share: float, seed: int) -> str:
    """Return the SPEC of pairs of which a share has another pair's caption, drawn by seed.

    They are written into `folder` unless they are there; images once for all seeds.
    """
    name = "".join(each if each.isalnum() else "_" for each in spec)
    path = folder / f"{name}_{round(100 * share)}_{seed}.csv"
    if path.is_file():  # All methods have the same.
        return f"csv:{path}"
    source = open_source(spec)
    records = [source[number] for number in range(len(source))]
    order, _ = shuffled_captions(
        np.zeros(len(records), int), share, np.random.default_rng((4, seed))
    )
    images = folder / name
    images.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "caption"])
        for number, (record, other) in enumerate(zip(records, order, strict=True)):
            image = images / f"{number}.webp"
            if not image.is_file():
                image.write_bytes(record.image)
            rows.writerow([f"{name}/{image.name}", records[other].caption])
    return f"csv:{unfinished.rename(path)}"


def run_all(
    description: str,
    names: Iterable[str],
    seeds: int,
    run: Callable[[str, int, Path], object],
    table: Callable[[Path], str],
) -> None:
    """Run all names with one seed before those with the next, and print the table after each.

    Args:
        description: of the study.
        names: what to run.
        seeds: how many, unless --seeds says so.
        run: (name, seed, folder) trains, or does nothing where that is finished.
        table: (folder) what is finished by now.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=seeds)
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        for name in names:
            run(name, seed, arguments.workdir)
            print(table(arguments.workdir), flush=True)
