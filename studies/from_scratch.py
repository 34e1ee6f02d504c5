"""Which method teaches an image tower from scratch best? On icons, as given and shuffled.

    npm pack @iconify/json@2.2.535
    otter-jax prepare --from=iconify:iconify-json-2.2.535.tgz --to=data/icons
    python -m studies.from_scratch --pairs=data/icons --workdir=runs/from_scratch [--seeds=3]

Every run is configs/icons.py on the whole set, with another objective, through the package's own
`train`. What is finished is not run again, and the table is printed as runs end. Several commands
may go on side by side, each with other methods (--method). FROM_SCRATCH.md has the protocol,
written before.
"""

import argparse
import dataclasses
import functools
import gzip
import itertools
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from otter_jax.commands.command_line import ending_in_one_line, make_folder
from otter_jax.data.sources import open_source, register
from otter_jax.embedding import trust
from otter_jax.preset_files import read_preset
from otter_jax.train import train
from studies import from_scratch_report
from studies.from_scratch_report import KS, Cell
from studies.held_pairs import HeldPairs

TUNING_SEED = 1000
RATES = (0.5, 1.0, 2.0)  # Times the preset's.
STEPS = 400  # Of 256 pairs, whatever the batch: so many pairs are seen.
RESULTS = "results.json"  # Of a finished run.


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained on.

    Attributes:
        wrong: share of the training captions that belong to another image.
        batch_size: pairs a step; epochs and learning rates stay as they are.
    """

    wrong: float = 0.0
    batch_size: int = 256


SETTINGS = {
    "as given": Setting(),
    "40 % shuffled": Setting(wrong=0.4),
    "batch 1,024": Setting(batch_size=1024),
}
_WHOLE_TEACHER = {"image_weight": 1.0, "text_weight": 1.0}
# The text tower is frozen: hidden words would teach it nothing.
_NO_PARTS = {
    "name": "declip", "ss": False, "mvs": False, "nns": False, "mlm_weight": 0.0,
    "queue_size": 4096,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "infonce": {"name": "infonce"},
    "label smoothing": {"name": "label_smoothing"},
    "self-distillation": {"name": "kd"},
    "otter .5 / .15": {"name": "otter", "alpha": 0.5, "epsilon": 0.15},
    "otter .8 / .05": {"name": "otter", "alpha": 0.8, "epsilon": 0.05},
    "row softmax": {
        "name": "kd", "remove_diagonal": True, "teacher_scale": 1 / 0.15, **_WHOLE_TEACHER,
    },
    "sigmoid": {"name": "sigmoid"},
    "slip": {"name": "slip"},
    "declip, ss": {**_NO_PARTS, "ss": True},
    "declip, ss + mvs": {**_NO_PARTS, "ss": True, "mvs": True},
    "declip, ss + mvs + nns": {**_NO_PARTS, "ss": True, "mvs": True, "nns": True},
    "equal captions masked": {"name": "infonce", "known_positives": "ignore"},
    "trust weights": {"name": "infonce", "pair_weight": "estimated"},
}  # fmt: skip
# Several views of a pair take several times as long: in batches of 1,024 they are not compared.
CELLS = [
    (setting, method)
    for setting, method in itertools.product(SETTINGS, METHODS)
    if SETTINGS[setting].batch_size == 256 or METHODS[method]["name"] not in ("slip", "declip")
]


@dataclasses.dataclass(frozen=True)
class Study:
    """Where pairs come from and runs go.

    Attributes:
        pairs: folder that `otter-jax prepare` wrote.
        folder: of the runs.
    """

    pairs: Path
    folder: Path

    @functools.cached_property
    def held(self) -> HeldPairs:
        """The training pairs, which so many runs need not read and decode anew."""
        return HeldPairs(open_source(f"tfds:{self.pairs}"))

    def open_held(self, wish: str) -> HeldPairs:
        """Return what `held:SHARE:SEED` means: the pairs with so many captions shuffled."""
        share, seed = wish.split(":")
        return self.held.shuffled(float(share), int(seed)) if float(share) else self.held

    def sets(self, part: str) -> list[str]:
        """Return the evaluation sets of a part, "validation" or "test": hits, then retrieval."""
        splits = [f"{kind}_{part}" for kind in ("style", "concepts")]
        hits = [f"tfds:{self.pairs}:{x}?classes={self.pairs}/classes_{x}.txt" for x in splits]
        return hits if part == "validation" else hits + [f"tfds:{self.pairs}:{x}" for x in splits]

    def short_name(self, name: str) -> str:
        """Return what a set of `sets` is called wherever the pairs are."""
        split, question, _ = name.removeprefix(f"tfds:{self.pairs}:").partition("?")
        return f"{split} classes" if question else split

    def make_config(self, setting: Setting, method: str, seed: int, rate: float) -> ConfigDict:
        """Return the config of one run; `rate` is a factor of the preset's learning rate."""
        config = read_preset("icons")
        config.seed, config.batch_size = seed, setting.batch_size
        config.total_epochs, config.total_steps = None, STEPS * 256 // setting.batch_size
        config.data.train = f"held:{setting.wrong:g}:{seed if setting.wrong else 0}"
        config.objective.known_positives = None  # A method of its own here.
        config.objective.update(METHODS[method])
        config.optimizer.learning_rate *= rate
        config.evaluate.sets = tuple(self.sets("validation" if seed == TUNING_SEED else "test"))
        return config

    def place(self, setting: str, method: str, seed: int, rate: float) -> Path:
        """Return the folder of a run; that of a test does not tell its rate."""
        name = f"{setting}_{method}_{f'rate{rate:g}' if seed == TUNING_SEED else f'seed{seed}'}"
        return self.folder / "".join(each if each.isalnum() else "_" for each in name)

    def run(self, setting: str, method: str, seed: int, rate: float) -> Mapping[str, Any]:
        """Train once, or read what a finished run found; return `{set: {metric: value}}`."""
        place = self.place(setting, method, seed, rate)
        if (place / RESULTS).is_file():
            return self.read(place)
        shared = self.folder / "features"  # Of the frozen text tower: the same for all runs.
        shared.mkdir(parents=True, exist_ok=True)
        place.mkdir(exist_ok=True)
        if not (place / "features").exists():
            (place / "features").symlink_to(shared.absolute())
        register("held", self.open_held)
        # Of one seed's pairs trust is the same, whatever the rate and the size of batches.
        known = self.folder / f"trust_{SETTINGS[setting].wrong:g}_{seed}.npz"
        if known.is_file():
            shutil.copyfile(known, place / trust.FILE)
        results = train(self.make_config(SETTINGS[setting], method, seed, rate), place)
        if (place / trust.FILE).is_file():
            shutil.copyfile(place / trust.FILE, known)
        return results

    def read(self, place: Path) -> Mapping[str, Any]:
        """Return what a finished run found; ValueError if it was of other pairs."""
        found = json.loads((place / RESULTS).read_text())
        if not {*self.sets("validation"), *self.sets("test")} & {*found}:
            raise ValueError(f"{place} is of other pairs than those in {self.pairs}")
        return found

    def chosen_rate(self, setting: str, method: str) -> float:
        """Return the rate with the best mean hit@1 of the validation sets."""

        def score(rate: float) -> float:
            found = self.run(setting, method, TUNING_SEED, rate)
            return np.mean([found[each]["hit@1"] for each in self.sets("validation")])

        return max(RATES, key=score)

    def scores(self, setting: str, method: str, seed: int) -> np.ndarray:
        """Return hits of both test sets and recalls (mean of both directions), percent [12]."""
        found = self.run(setting, method, seed, self.chosen_rate(setting, method))
        hits, pairs = self.sets("test")[:2], self.sets("test")[2:]
        recalls = [
            [
                (found[x][f"equal_i2t_recall@{k}"] + found[x][f"equal_t2i_recall@{k}"]) / 2
                for k in KS
            ]
            for x in pairs
        ]
        return 100 * np.array([[found[x][f"hit@{k}"] for k in KS] for x in hits] + recalls).ravel()

    def is_finished(self, setting: str, method: str, seed: int) -> bool:
        """Return whether a test and all that chose its rate are there."""
        runs = [(TUNING_SEED, rate) for rate in RATES] + [(seed, 0.0)]
        return all((self.place(setting, method, *run) / RESULTS).is_file() for run in runs)

    def finished(self, seeds: int) -> dict[Cell, dict[int, np.ndarray]]:
        """Return the scores of the tests that are finished, by cell and seed."""
        found = {
            cell: {n: self.scores(*cell, n) for n in range(seeds) if self.is_finished(*cell, n)}
            for cell in CELLS
        }
        return {cell: by_seed for cell, by_seed in found.items() if by_seed}


def records(study: Study, seeds: int) -> Iterator[dict[str, Any]]:
    """Yield what is known of every finished run; sets are called by their splits."""
    for cell, seed in itertools.product(CELLS, (TUNING_SEED, *range(seeds))):
        for rate in RATES if seed == TUNING_SEED else (None,):
            place = study.place(*cell, seed, rate or 0.0)
            if not (place / RESULTS).is_file():
                continue
            read, sets = study.read(place), (*study.sets("validation"), *study.sets("test"))
            found = {study.short_name(each): read[each] for each in sets if each in read}
            setting, method = cell
            yield {"setting": setting, "method": method, "seed": seed, "rate": rate, **found}


def write_report(study: Study, seeds: int, out: Path) -> None:
    """Write tables, a picture and a line a run (from_scratch*) of what is finished to a folder.

    Raises:
        FileNotFoundError: if nothing is.
    """
    if not (found := study.finished(seeds)):
        raise FileNotFoundError(f"{study.folder}: no test is finished there; run it without --out")
    make_folder("--out", out)
    chosen = [f"| {s} | {m} | {study.chosen_rate(s, m):g} |" for s, m in found]
    lines = ["# From scratch: tables", "", "[Icons](icons.md) says what they mean.", ""]
    lines += ["## Scores", "", from_scratch_report.table(found), "", "## Learning rates chosen", ""]
    lines += ["| setting | method | times the preset's |", "|---|---|---|", *chosen]
    (out / "from_scratch_tables.md").write_text("\n".join(lines) + "\n")
    from_scratch_report.draw(found, out / "from_scratch.png")
    runs = "".join(json.dumps(each) + "\n" for each in records(study, seeds))
    packed = gzip.compress(runs.encode(), mtime=0)
    (out / "from_scratch_records.jsonl.gz").write_bytes(packed)


def main() -> None:
    """Run what is not finished, all of a seed first, and print the table after each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True, help="what `otter-jax prepare` wrote")
    parser.add_argument("--workdir", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--method", action="append", choices=list(METHODS), help="only this one; may be given again"
    )
    parser.add_argument("--out", type=Path, help="only write tables and picture, to this folder")
    arguments = parser.parse_args()
    study = Study(arguments.pairs.absolute(), arguments.workdir)
    if arguments.out is not None:
        write_report(study, arguments.seeds, arguments.out)
        return
    cells = [cell for cell in CELLS if cell[1] in (arguments.method or METHODS)]
    for seed, cell in itertools.product(range(arguments.seeds), cells):
        study.scores(*cell, seed)
        print(from_scratch_report.table(study.finished(arguments.seeds)), flush=True)


if __name__ == "__main__":
    with ending_in_one_line():
        main()
