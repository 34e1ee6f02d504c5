"""Results as a CSV."""

import csv
from pathlib import Path

from otter_jax.evaluation import tables


def test_a_line_for_every_metric(tmp_path: Path) -> None:
    results = {
        "csv:a, b.csv": {"hit@1": 0.5, "hit@5": 0.75},
        "probe": {"probe_accuracy": 1.0},
        "before": {"csv:a, b.csv": {"hit@1": 0.1}},
        "chance": {"csv:a, b.csv": {"hit@1": 0.01, "hit@5": 0.05}},
    }
    tables.write_csv(tmp_path / "results.csv", results)
    assert list(csv.reader((tmp_path / "results.csv").open(newline=""))) == [
        ["set", "metric", "value", "before", "chance"],
        ["csv:a, b.csv", "hit@1", "0.5", "0.1", "0.01"],
        ["csv:a, b.csv", "hit@5", "0.75", "", "0.05"],
        ["probe", "probe_accuracy", "1.0", "", ""],
    ]
