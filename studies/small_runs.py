"""What the small studies share that train through the package's own `train`, a folder a run."""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

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
