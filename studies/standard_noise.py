"""The field's table on data of one's own: methods, and noise of several kinds, by one command.

    python -m studies.standard_noise --workdir=runs/flickr --karpathy=dataset_flickr30k.json \
        --images=flickr30k-images --order=f30k_precomp/train_caps.txt \
        --noise=noise_index/f30k_precomp_0.4.npy

or, of any pairs, with noise that is made here (noise.py),

    python -m studies.standard_noise --workdir=runs/mine --train=SPEC --validation=SPEC \
        --test=SPEC --noise=random:0.4 --noise=noun:0.4

As in `studies.repair`, towers are frozen and a head is trained on their features; every method is
tuned on validation pairs for each noise, and tested with several seeds, which draw wrong captions,
head and order. Each run is a line of records.jsonl; what is there is not run again. The command
ends with the tables; `--workdir=DIR --out=FILE.md` writes them from what is finished.
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from otter_jax import objectives, sharding
from otter_jax.commands.command_line import ending_in_one_line
from otter_jax.data.held_out import restrict
from otter_jax.embedding.trust import unit_rows
from otter_jax.evaluation import retrieval
from otter_jax.json_files import read_json, write_json
from otter_jax.preset_files import read_preset
from otter_jax.terminal import say
from otter_jax.training.parts import build_parts
from studies import judges, methods, noisy_pairs, repair, runs
from studies import noise as noises
from studies.frozen_pairs import SPLITS, Side, arrange, load_side, open_split, write_karpathy
from studies.methods import BASELINE, METHODS, RIVALS, Setting
from studies.nouns import english_nouns
from studies.pair_trust import area_under_curve

ORACLE, TRIAL_SEED = repair.ORACLE, noisy_pairs.TRIAL_SEED
ALL_METHODS = METHODS | RIVALS
DEFAULT_METHODS = (
    BASELINE, "sigmoid", "trust weights", "trust sigmoid", "dropped", "repaired captions",
    "repaired captions, sigmoid", "npc", "progressive self-distillation", "small losses", ORACLE,
)  # fmt: skip
METRICS = tuple(f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in retrieval.KS)

# What the records of a workdir have in common.
FACTS = (
    *SPLITS, "karpathy", "images", "order", "category", "pairs", "config", "image_size",
    "count_equal",
)  # fmt: skip

Record = dict[str, Any]


class Study(NamedTuple):
    """What all runs share."""

    train: Side
    validation: Side
    test: Side
    components: tuple[np.ndarray, ...]  # Of the images of each.
    nouns: tuple[tuple[str, ...], ...]  # Of the training captions; empty where none are needed.
    judged: dict[tuple, runs.Data]
    counts_equal: bool


class Job(NamedTuple):
    """One run."""

    kind: str  # "trial" or "test".
    noise: str
    method: str
    trial: int
    seed: int


def make_data(study: Study, noise: noises.Noise, seed: int) -> runs.Data:
    """Return the training pairs with the wrong captions that `seed` draws."""
    train, rng = study.train, np.random.default_rng((8, seed))
    labels = study.nouns if noise.kind == "noun" else train.categories
    if noise.kind in ("noun", "category") and not any(labels):
        raise ValueError(f"--noise={noise.kind}: no caption has a {noise.kind}")
    pairing = noises.make(noise, train.captions, labels, rng)
    wrong = pairing.wrong(train.captions)
    return runs.Data(
        image=study.components[0],
        class_image=study.components[0][:0],
        train=pairing.image,
        caption_of=np.where(wrong, train.captions.image_of[pairing.caption], pairing.image),
        text=train.text[pairing.caption],
        pool=np.arange(len(wrong)),
        trust=None,
    )


def run(job: Job, study: Study, trainer: runs.Trainer, workdir: Path) -> Record:
    """Train and evaluate."""
    method, noise = ALL_METHODS[job.method], noises.Noise.parse(job.noise)
    data, facts = judged(
        method, trainer, make_data(study, noise, job.seed), study, job.seed, workdir
    )
    variables = trainer.train(data, job.seed)
    place, side = (1, study.validation) if job.kind == "trial" else (2, study.test)
    found = trainer.project(variables, study.components[place])
    scores = recalls(found, unit_rows(side.text), side.captions, study.counts_equal)
    scores = {name: round(100 * scores[name], 4) for name in METRICS}
    return {**job._asdict(), **facts, **scores}


def judged(
    method: methods.Method,
    trainer: runs.Trainer,
    data: runs.Data,
    study: Study,
    seed: int,
    workdir: Path,
) -> tuple[runs.Data, dict[str, float]]:
    """Return what the method's judge or the estimate makes of pairs, and what is known of them."""
    wrong = data.caption_of != data.train
    facts: dict[str, float] = {"pairs": len(wrong), "wrong": round(float(wrong.mean()), 4)}
    if method.judge is None and not trainer.estimates:
        return data, facts
    image = study.train.image[data.train]
    case = judges.Case(image, data, seed, workdir / "judged", study.judged)
    if method.judge is not None:
        return case.judged_by(method.judge), facts
    found = case.estimate(0)
    facts["estimated"] = round(found.share_wrong, 4)
    if wrong.any():
        facts["area"] = round(area_under_curve(found.alpha, wrong), 4)
    return data._replace(trust=found.alpha), facts


def recalls(
    image: np.ndarray, text: np.ndarray, captions: noises.Captions, counts_equal: bool
) -> dict[str, float]:
    """Return recall@k in both directions; equal captions count as right only if that is said."""
    if not counts_equal:
        return retrieval.recalls(image, text, captions.image_of, retrieval.KS)
    equal = retrieval.EqualItems(
        np.arange(len(image)), retrieval.first_equal([noises.plain(each) for each in captions.text])
    )
    found = retrieval.recalls_with_equal(image, text, captions.image_of, equal, retrieval.KS)
    return {name.removeprefix(retrieval.EQUAL): share for name, share in found.items()}


def score(record: Record) -> float:
    """Return the mean of the six recalls of a run, in percent."""
    return float(np.mean([record[name] for name in METRICS]))


def best_trial(records: Iterable[Record], noise: str, method: str, default: int = 0) -> int:
    """Return the trial with the best validation score, the first of equals; else a default."""
    trials = {
        each["trial"]: score(each)
        for each in records
        if (each["kind"], each["noise"], each["method"]) == ("trial", noise, method)
    }
    return max(sorted(trials), key=trials.get, default=default)


def run_cell(noise: str, method: str, study: Study, workdir: Path, trials: int, seeds: int) -> None:
    """Tune and test a method under a noise, as far as that is not done."""
    path = workdir / "records.jsonl"
    trainers: dict[int, runs.Trainer] = {}  # By trial.

    def run_missing(jobs: list[Job]) -> None:
        for job in noisy_pairs.unfinished(jobs, noisy_pairs.read_records(path)):
            if job.trial not in trainers:
                trainers[job.trial] = make_trainer(study, method, job.trial)
            record = run(job, study, trainers[job.trial], workdir)
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            say(f"{noise}, {method}, {job.kind} {job.trial}/{job.seed}: {score(record):.2f}")

    run_missing([Job("trial", noise, method, trial, TRIAL_SEED) for trial in range(trials)])
    chosen = best_trial(noisy_pairs.read_records(path), noise, method)
    run_missing([Job("test", noise, method, chosen, seed) for seed in range(seeds)])


def make_trainer(study: Study, method: str, trial: int) -> runs.Trainer:
    """Return the trainer of a method with the hyperparameters of a trial."""
    train, width = study.train, study.components[0].shape[1]
    shapes = runs.Shapes(len(train.captions.text), width, train.text.shape[1])
    chosen = methods.hyperparameters(ALL_METHODS[method], trial)
    return runs.Trainer(ALL_METHODS[method], Setting(), chosen, shapes)


def tables(records: Sequence[Record]) -> list[str]:
    """Return a table for each noise: the six recalls, their sum, and the share repaired."""
    lines = []
    for noise in dict.fromkeys(each["noise"] for each in records):
        found = [each for each in records if (each["kind"], each["noise"]) == ("test", noise)]
        of_method = {
            method: _of_chosen_trial(records, noise, method, found)
            for method in dict.fromkeys(each["method"] for each in found)
        }
        if not found:
            continue
        tests = [each for own in of_method.values() for each in own]
        lines += ["", f"## {Path(noise).name}", "", _facts(tests), ""]
        heads = ["method", "trial", "seeds", *METRICS, "sum", "repaired, %"]
        lines += [_row(heads), _row(["---"] * len(heads))]
        for method, own in of_method.items():
            means = [np.mean([each[name] for each in own]) for name in METRICS]
            cells = [f"{mean:.1f}" for mean in (*means, sum(means))]
            repaired = _repaired(own, of_method.get(BASELINE), of_method.get(ORACLE))
            lines.append(_row([method, str(own[0]["trial"]), str(len(own)), *cells, repaired]))
    return lines


def _of_chosen_trial(
    records: Sequence[Record], noise: str, method: str, tests: Sequence[Record]
) -> list[Record]:
    """Return a method's tests with the trial that its validation scores choose now, by seed."""
    own = sorted((each for each in tests if each["method"] == method), key=_seed)
    chosen = best_trial(records, noise, method, default=own[0]["trial"])
    return [each for each in own if each["trial"] == chosen]


def _facts(tests: list[Record]) -> str:
    """Return how many pairs are wrong, and how well trust finds them where it was asked."""
    wrong = np.mean([each["wrong"] for each in tests])
    line = f"{100 * wrong:.1f} % of {tests[0]['pairs']:,} pairs are wrong"
    if estimated := [each["estimated"] for each in tests if "estimated" in each]:
        line += f"; trust estimates {100 * np.mean(estimated):.1f} %"
    if areas := [each["area"] for each in tests if "area" in each]:
        line += f", and finds them with an AUC of {np.mean(areas):.2f}"
    return f"{line}."


def _repaired(own: list[Record], baseline: list[Record] | None, oracle: list[Record] | None) -> str:
    if not baseline or not oracle or own is baseline:
        return ""
    scores = [np.array([[score(each) for each in found]]) for found in (own, baseline, oracle)]
    count = min(each.size for each in scores[1:])
    if (scores[2][:, :count] <= scores[1][:, :count]).any():
        return "-"  # Hardly any damage: its shares would be arbitrary.
    share = repair.repaired_share(*scores, np.random.default_rng(0))
    return f"{100 * share.mean:.0f} [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _seed(record: Record) -> int:
    return record["seed"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def facts_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a workdir's records depend on."""
    facts = {name: getattr(arguments, name) for name in FACTS}
    return {name: str(value) if isinstance(value, Path) else value for name, value in facts.items()}


def remember_data(arguments: argparse.Namespace) -> None:
    """Write down what the workdir's records will be of, once it has been read."""
    write_json(arguments.workdir / "study.json", facts_of(arguments))


def refuse_other_data(arguments: argparse.Namespace) -> None:
    """Refuse a workdir whose records are of other data or towers (ValueError)."""
    path, facts = arguments.workdir / "study.json", facts_of(arguments)
    for name, value in (read_json(path) if path.is_file() else {}).items():
        if facts[name] != value:
            raise ValueError(
                f"{arguments.workdir} has records of --{name}={value}, and not of {facts[name]}: "
                "choose another workdir"
            )


def load(arguments: argparse.Namespace) -> Study:
    """Run the frozen towers over the three splits that the command names."""
    workdir = arguments.workdir
    specs = {name: getattr(arguments, name) for name in SPLITS}
    if arguments.karpathy is not None:
        specs = write_karpathy(arguments.karpathy, arguments.images, workdir)
    config = read_preset(arguments.config)
    config.evaluate.sets = ()
    if arguments.image_size is not None:
        config.data.image_size = arguments.image_size
    options = objectives.make_method(**config.objective)
    parts = build_parts(config, workdir, sharding.make_mesh(), options)
    sides = []
    for name, spec in specs.items():
        source = open_split(spec)
        if name == "train" and arguments.pairs is not None:
            drawn = np.random.default_rng(9).permutation(len(source)) < arguments.pairs
            source = restrict(source, drawn, "not drawn")
        sides.append(load_side(source, parts, name, arguments.category))
    if arguments.order is not None:
        sides[0] = arrange(sides[0], arguments.order)
    components = runs.principal_components(sides[0].image, *(side.image for side in sides))
    nouns: tuple[tuple[str, ...], ...] = ()
    if any(noises.Noise.parse(each).kind == "noun" for each in arguments.noise):
        nouns = tuple(map(english_nouns().find, sides[0].captions.text))
    return Study(*sides, components, nouns, {}, arguments.count_equal)


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command's arguments, or leave with what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="features, records, estimates")
    for name in SPLITS:
        add(f"--{name}", help="a SPEC; SPEC@SPLIT of what comes with the package")
    add("--karpathy", type=Path, help="dataset_coco.json or dataset_flickr30k.json instead")
    add("--images", type=Path, help="with --karpathy: the folder of the images")
    add("--order", type=Path, help="SCAN's train_caps.txt, whose order published noise follows")
    add("--noise", action="append", default=[], help="KIND:SHARE, or a .npy or .txt file")
    add("--category", help="field of the metadata; else what keys begin with")
    add("--method", action="append", choices=list(ALL_METHODS), help="may be given again")
    add("--trials", type=int, default=len(repair.TRIALS), help="of every method, default 6")
    add("--seeds", type=int, default=3, help="of the tests, default 3")
    add("--pairs", type=int, help="draw that many images to train on")
    add("--config", default="quickstart", help="a preset, whose towers are used")
    add("--image_size", type=int, help="pixels, instead of the config's")
    add("--count_equal", action="store_true", help="equal captions count as right")
    add("--out", type=Path, help="only write the tables, to this file")
    arguments = parser.parse_args(given)
    if (out := arguments.out) is not None:
        if out.is_dir() or not out.absolute().parent.is_dir():
            parser.error(f"--out={out}: name a file, in a folder that there is")
        return arguments
    named = all(getattr(arguments, name) for name in SPLITS)
    published = [arguments.karpathy is not None, arguments.images is not None]
    if named == all(published) or (named and any(published)):
        parser.error("give --train, --validation and --test, or --karpathy and --images")
    if not arguments.noise:
        parser.error("give --noise, once or several times")
    for name in ("trials", "seeds", "pairs", "image_size"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name}={value}; it must be at least 1")
    try:
        wanted = [noises.Noise.parse(each) for each in arguments.noise]
    except ValueError as error:
        parser.error(str(error))
    arguments.noise = list(dict.fromkeys(map(str, wanted)))
    files = [(name, getattr(arguments, name)) for name in ("karpathy", "images", "order")]
    files += [("noise", Path(each.kind)) for each in wanted if each.kind not in noises.KINDS]
    for name, path in files:
        if path is not None and not path.exists():
            parser.error(f"--{name}={path}: there is nothing there")
        if path is not None and path.is_file() and not path.stat().st_size:
            parser.error(f"--{name}={path}: the file is empty")
    return arguments


def main(given: Sequence[str] | None = None) -> None:
    """Tune and test, or write the tables."""
    arguments = parse_arguments(given)
    workdir = arguments.workdir
    if arguments.out is None:
        workdir.mkdir(parents=True, exist_ok=True)
        noisy_pairs.use_one_core(workdir)
        refuse_other_data(arguments)
        study = load(arguments)
        remember_data(arguments)
        wanted = arguments.method or DEFAULT_METHODS
        for noise, method in itertools.product(arguments.noise, wanted):
            run_cell(noise, method, study, workdir, arguments.trials, arguments.seeds)
    found = tables(noisy_pairs.read_some_records(workdir / "records.jsonl", "test"))
    text = "\n".join(["# Standard noise", *found, ""])
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text)


if __name__ == "__main__":
    with ending_in_one_line():
        main()
