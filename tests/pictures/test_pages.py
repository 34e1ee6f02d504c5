"""A report is one safe file: it shows what the run's files say, and runs and fetches nothing."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs.test_history import start_run, write_lines

from otter_jax.pictures import pages
from otter_jax.runs.history import read_history

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """A page's elements, its texts, and whatever it points to."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def all_of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_finished_run(tmp_path / "run")


def write_finished_run(folder: Path) -> Path:
    """A run of two evaluated steps, whose names are hostile."""
    start_run(folder, **{"data.train": f"folder:{EVIL}", "total_steps": 4})
    (folder / "data.json").write_text(
        json.dumps(
            {
                "train": {"source": EVIL, "pairs": 40, "fingerprint": "f" * 64,
                          "skipped": {EVIL: 3}, "unreadable_by_reason": {"truncated": 2},
                          "unreadable": {"a": "truncated", "b": "truncated"}},
                "evaluate": {EVIL: {"images": 7, "left_out": {"flag": 5}}},
            }
        )
    )  # fmt: skip
    write_lines(
        folder / "metrics.jsonl",
        {"step": 0, f"eval/{EVIL}/hit@1": 0.125},
        {"step": 2, "train/loss": 4.0, "train/loss_contrastive": 3.0, "train/temperature": 0.07},
        {"step": 4, "train/loss": 2.0, "train/loss_contrastive": 1.0, "train/temperature": 0.05},
        {"step": 4, f"eval/{EVIL}/hit@1": 0.5},
    )
    write_lines(folder / "timings.jsonl", {"step": 4, "time/images_per_second": 1234.0})
    (folder / "results.json").write_text(
        json.dumps(
            {
                EVIL: {"hit@1": 0.5},
                "before": {EVIL: {"hit@1": 0.125}},
                "chance": {EVIL: {"hit@1": 0.1}},
            }
        )
    )
    (folder / "figures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for name in ("soft_targets", "predictions_x", "loss"):
        Image.fromarray(noise).save(folder / "figures" / f"{name}.png")
    return folder


def test_the_report_says_what_the_files_say(run: Path) -> None:
    pages.write_report(run)
    page = Page(run / "report.html")
    text = "\n".join(page.texts)
    assert "Finished after 4 of 4 steps." in text and "40 pairs" in text
    row = page.texts.index(f"{EVIL} hit@1")
    values = [each for each in page.texts[row + 1 :] if each][:4]
    assert values == ["50.0", "12.5", "10.0", "+37.5"]
    for shown in ("image unreadable: truncated", f"skipped: {EVIL}", "left out: flag", "1,234"):
        assert shown in page.texts
    assert "4 at step 2" in text and "contrastive: 1 at step 4" in text
    assert f"otter-jax train --config={run}/config.json --workdir={run}_again" in text
    assert [each["src"][:22] for each in page.all_of("img")] == ["data:image/webp;base64"] * 2


def test_nothing_is_run_or_fetched_and_everything_has_words(run: Path) -> None:
    pages.write_report(run)
    page = Page(run / "report.html")
    assert not {"script", "iframe", "link", "object", "a"} & {tag for tag, _ in page.elements}
    names = {name for _, attributes in page.elements for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert {each["src"][:11] for each in page.all_of("img")} == {"data:image/"}
    policy = next(each["content"] for each in page.all_of("meta") if "http-equiv" in each)
    assert policy.startswith("default-src 'none'")
    assert all(each["alt"] for each in page.all_of("img"))
    drawings = [each for each in page.all_of("svg") if "aria-hidden" not in each]
    assert len(drawings) == 4 and all("over the steps" in each["aria-label"] for each in drawings)


def test_a_run_under_way_says_how_far_it_is(tmp_path: Path) -> None:
    folder = start_run(tmp_path, total_steps=100)
    write_lines(folder / "metrics.jsonl", {"step": 30, "train/loss": 1.0})
    (folder / "checkpoints" / "20").mkdir(parents=True)
    pages.write_report(folder)
    text = "\n".join(Page(folder / "report.html").texts)
    assert "Not finished: 30 of 100 steps; its last checkpoint is of step 20." in text


def test_long_runs_fit(run: Path) -> None:
    lines = [{"step": n, **{f"train/loss_{k}": 1 + k for k in range(8)}} for n in range(1, 8000)]
    lines[2_345]["train/loss_3"] = 99.0
    write_lines(run / "metrics.jsonl", *lines)
    pages.write_report(run)
    assert (run / "report.html").stat().st_size < pages.MOST_BYTES / 4
    assert "99 at step 2,346" in Page(run / "report.html").texts


def test_pictures_without_room_are_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PICTURE_BYTES", 10_000)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(run / "figures" / "predictions_y.png")
    pages.write_report(run)
    page = Page(run / "report.html")
    assert len(page.all_of("img")) == 2
    assert "No room for it on this page: see figures/ in the workdir." in page.texts


def test_curves_of_several_runs_share_their_axes(run: Path, tmp_path: Path) -> None:
    other = start_run(tmp_path / "other")
    write_lines(other / "metrics.jsonl", {"step": 3, "train/loss": 8.0})
    histories = {path.name: read_history(path) for path in (run, other)}
    charts = {chart.title: chart for chart in pages.charts_of(histories)}
    loss = charts["Loss and its parts: loss"]
    assert [line.name for line in loss.lines] == ["run", "other"]
    assert [line.last for line in loss.lines] == ["2 at step 4", "8 at step 3"]
    assert [line.name for line in charts["Temperature"].lines] == ["run"]
