"""report.html: one file that shows what a run, or several beside each other, did and learned.

It asks nothing of the network and runs no script, which its own policy forbids too; whatever text a
config, a file name or a class brings along is escaped by the template.
"""

import base64
import io
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jinja2
from PIL import Image

from otter_jax import config as config_lib
from otter_jax.pictures.charts import Chart, make_chart
from otter_jax.runs.history import Curves, History, read_history
from otter_jax.runs.reporting import sets_of

FILE = "report.html"
MOST_BYTES = 5_000_000  # Of a page.
PICTURE_BYTES = 3_500_000  # Of it, what pictures may take.
WIDEST = 1600  # Pixels of a picture.
POINTS = 16_000  # Of all curves together, at most.
MOST_METRICS = 6  # Of a set, as curves; the table has all.
# What shares its axes where one run is shown: title, the metrics' names, whether they are shares.
PANELS = (
    ("Loss and its parts", "train/loss*", False),
    ("Temperature", "train/*temperature", False),
    ("Entropy of the soft target, in nats", "train/target_entropy", False),
    ("Mass that the soft target leaves on the given pair", "train/target_diagonal", True),
    ("Learning rate", "train/learning_rate", False),
    ("Other", "train/*", False),
    ("Images a second", "time/images_per_second", False),
    ("Time spent waiting for data", "time/data_wait", True),
)
ALTERNATIVES = {
    "soft_targets": "Soft targets of pairs of one batch as a matrix: each row spreads one image's "
    "target over the captions; the given pairs are on the diagonal.",
    "predictions": "Evaluated images, hits before misses, each with its true name and the names "
    "ranked best for it; right ones are green and ticked.",
    "trust": "Histogram of how well pairs agree with similar ones, and of how many are wrong.",
}
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Table(NamedTuple):
    """A table of texts; the first column is the rows' names."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A picture inside the page, or, where there is no room for it, only where it lies."""

    name: str
    data: str  # A data URL; empty where there is no room.
    alternative: str


def write_report(workdir: Path) -> None:
    """Write the report of a run into its workdir, from the first process only."""
    if jax.process_index() == 0:
        write_page(workdir / FILE, [read_history(workdir)])


def write_page(
    path: Path,
    histories: Sequence[History],
    tables: Sequence[Table] = (),
    remarks: Sequence[str] = (),
) -> None:
    """Write one page on a run, or on several with their curves over each other.

    Args:
        path: the file.
        histories: of the runs, at least one.
        tables: what compares them.
        remarks: what the reader must know first.
    """
    names = run_names(histories)
    room = PICTURE_BYTES // len(histories)
    text = TEMPLATES.get_template("report.html").render(
        title=", ".join(names),
        remarks=remarks,
        tables=tables,
        charts=list(charts_of(dict(zip(names, histories, strict=True)))),
        runs=[describe(name, each, room) for name, each in zip(names, histories, strict=True)],
    )
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def run_names(histories: Sequence[History]) -> list[str]:
    """Return what the runs are called: their folders' names, or their paths if two are alike."""
    names = [each.path.resolve().name for each in histories]
    alike = len(set(names)) < len(names)
    return [str(each.path) for each in histories] if alike else names


def describe(name: str, history: History, room: int) -> dict[str, Any]:
    """Return what the template says of one run.

    Args:
        name: what it is called.
        history: its files' contents.
        room: bytes that its pictures may take.
    """
    again = history.path.with_name(f"{history.path.name}_again")
    return {
        "name": name,
        "what": what_was_trained(history),
        "status": status_of(history),
        "results": results_of(history),
        "pictures": list(pictures_of(history.path / "figures", room)),
        "data": [training_data(history), *evaluation_data(history)],
        "machine": machine_of(history),
        "command": f"otter-jax train --config={shlex.quote(str(history.path / 'config.json'))} "
        f"--workdir={shlex.quote(str(again))}",
        "config": Table(
            "config.json",
            ("key", "value"),
            [
                (key, repr(value))
                for key, value in config_lib.flatten(config_lib.as_dict(history.config)).items()
            ],
        ),
    }


def what_was_trained(history: History) -> str:
    """Return one sentence on method, pairs and towers."""
    config = history.config
    pairs = history.data.get("train", {}).get("pairs")
    count = "the pairs" if pairs is None else f"{pairs:,} pairs"
    towers = [
        f"{kind} tower {tower.name} ({tower.pretrained or 'random weights'}"
        f"{', frozen' if tower.frozen else ''})"
        for kind, tower in (("image", config.model.image), ("text", config.model.text))
    ]
    return (
        f"{config.objective.name} on {count} of {config.data.train}, {config.batch_size} a batch, "
        f"seed {config.seed}; {', '.join(towers)}."
    )


def status_of(history: History) -> str:
    """Return how far the run is."""
    total = "an unknown number of" if history.total_steps is None else f"{history.total_steps:,}"
    if history.finished:
        return f"Finished after {history.step:,} of {total} steps."
    kept = history.checkpoints[-1] if history.checkpoints else None
    last = (
        "there is no checkpoint yet" if kept is None else f"its last checkpoint is of step {kept:,}"
    )
    return f"Not finished: {history.step:,} of {total} steps; {last}."


def results_of(history: History) -> Table | None:
    """Return the final table, in percent: after, before, chance, and the change."""
    rows = []
    before, chance = (history.results.get(key, {}) for key in ("before", "chance"))
    for name, metrics in sets_of(history.results):
        for metric, value in metrics.items():
            old, luck = (known.get(name, {}).get(metric) for known in (before, chance))
            change = "-" if old is None else f"{100 * (value - old):+.1f}"
            rows.append(
                (f"{name} {metric}", in_percent(value), in_percent(old), in_percent(luck), change)
            )
    head = ("metric", "after", "before", "chance", "change")
    return Table("Results in percent", head, rows) if rows else None


def in_percent(share: float | None) -> str:
    """Return a share in percent, with one decimal; "-" where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


def charts_of(histories: Mapping[str, History]) -> Iterator[Chart]:
    """Yield the curves: of one run by what they show, of several those of each metric together."""
    panels = list(_panels({name: each.metrics | each.timings for name, each in histories.items()}))
    points = max(POINTS // max(sum(len(curves) for _, curves, _ in panels), 1), 60)
    for title, curves, share in panels:
        yield make_chart(title, curves, points=min(points, 800), share=share)


def _panels(curves: Mapping[str, Curves]) -> Iterator[tuple[str, Curves, bool]]:
    """Yield title, curves by name, and whether they are shares."""
    left = list(dict.fromkeys(name for metrics in curves.values() for name in metrics))
    panels = [*PANELS, *_evaluation_panels(left)]
    for title, pattern, share in panels:
        found = [name for name in left if fnmatch(name, pattern)]
        left = [name for name in left if name not in found]
        if pattern.startswith("eval/"):
            found = [name for name in found if "/equal_" not in name][:MOST_METRICS]
        if len(curves) == 1:
            (metrics,) = curves.values()
            shown = {_short(name, pattern): metrics[name] for name in found}
            if shown:
                yield title, shown, share
            continue
        for name in found:
            runs = {run: metrics[name] for run, metrics in curves.items() if name in metrics}
            yield (title if len(found) == 1 else f"{title}: {_short(name, pattern)}"), runs, share


def _evaluation_panels(names: Sequence[str]) -> list[tuple[str, str, bool]]:
    sets = dict.fromkeys(name.rpartition("/")[0] for name in names if name.startswith("eval/"))
    return [
        (f"Evaluation on {each.removeprefix('eval/')}", _literally(f"{each}/") + "*", True)
        for each in sets
    ]


def _literally(text: str) -> str:
    """Return a pattern that means a text, whatever is in it."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _short(name: str, pattern: str) -> str:
    """Return a metric's name without what all of its panel have in common."""
    name = name.rpartition("/")[2]
    return name.removeprefix("loss_") if "loss" in pattern else name.replace("_", " ")


def pictures_of(folder: Path, room: int) -> Iterator[Picture]:
    """Yield the pictures of a run, as long as there is room for them."""
    for path in sorted(folder.glob("*.png"), key=lambda path: (path.stem != "soft_targets", path)):
        words = [text for kind, text in ALTERNATIVES.items() if path.stem.startswith(kind)]
        if not words:  # Curves, which the page has itself.
            continue
        data = _as_data(path)
        fits = len(data) <= room
        room -= len(data) if fits else 0
        yield Picture(path.stem.replace("_", " "), data if fits else "", words[0])


def _as_data(path: Path) -> str:
    """Return a picture as a data URL, in a format that takes a quarter of a PNG."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    image.thumbnail((WIDEST, 4 * WIDEST))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=82, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def training_data(history: History) -> Table:
    """Return what was trained on, and what was left out and why."""
    train = history.data.get("train", {})
    rows = [
        ("source", str(train.get("source", history.config.data.train))),
        ("pairs used", f"{train['pairs']:,}" if "pairs" in train else "not counted yet"),
        ("fingerprint", train.get("fingerprint", "-")[:16]),
    ]
    rows += _reasons("left out", train.get("left_out"))
    rows += _reasons("skipped", train.get("skipped"))
    rows += _reasons("files skipped", train.get("skipped_files"))
    rows += _reasons("image unreadable", train.get("unreadable_by_reason"))
    if len(rows) == 3 and train:
        rows.append(("left out", "nothing"))
    return Table("Training pairs", ("", ""), rows)


def evaluation_data(history: History) -> Iterator[Table]:
    """Yield what each set of the evaluation holds."""
    for name, contents in history.data.get("evaluate", {}).items():
        rows = [(key, f"{n:,}") for key, n in contents.items() if isinstance(n, int)]
        for key in ("skipped", "left_out"):
            rows += _reasons(key.replace("_", " "), contents.get(key))
        if unreadable := contents.get("unreadable"):
            rows.append(("unreadable", f"{len(unreadable):,}"))
        yield Table(f"Evaluated on {name}", ("", ""), rows)


def _reasons(what: str, counts: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    return [
        (f"{what}: {reason}", f"{count:,}" if isinstance(count, int) else str(count))
        for reason, count in (counts or {}).items()
    ]


def machine_of(history: History) -> Table:
    """Return what the run was computed on, last of all, and how fast."""
    rows: list[tuple[str, str]] = []
    if history.machines:
        last = history.machines[-1]
        rows.append(
            (
                "devices",
                f"{last['devices']} {last['device']} ({last['platform']}), "
                f"{last['processes']} process(es)",
            )
        )
        allowed = f"{last['cores']} of " if last.get("cores") else ""
        rows.append(("host", f"{last['system']}, {allowed}{last['processors']} processors"))
        if len(history.machines) > 1:
            steps = ", ".join(str(each["step"]) for each in history.machines[1:])
            rows.append(("resumed after step", steps))
        rows += [(package, version) for package, version in last["versions"].items()]
    else:
        rows.append(("machine", "not recorded: the run is of an earlier version"))
    rates = history.timings.get("time/images_per_second")
    if rates:
        rows.append(("images a second, median", f"{statistics.median(rates.values()):,.0f}"))
    for name, what in (("memory/state_gib", "state"), ("memory/total_gib", "memory of a device")):
        if curve := history.timings.get(name):
            rows.append((what, f"{max(curve.values()):.2f} GiB"))
    return Table("Machine and versions", ("", ""), rows)
