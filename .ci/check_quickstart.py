"""Fails unless a finished quickstart learned clearly more than chance; takes its workdir."""

import json
import sys
from pathlib import Path

FILES = ("config.json", "data.json", "metrics.jsonl", "timings.jsonl", "figures/soft_targets.png",
         "figures/predictions_open_clipart.png", "figures/predictions_openmoji.png")  # fmt: skip


def main(workdir: Path) -> None:
    """Check the workdir's files and its results."""
    missing = [name for name in FILES if not (workdir / name).is_file()]
    results = json.loads((workdir / "results.json").read_text())
    chance = results["chance"]
    weak = [
        f"{name} {metric}: {value:.3f} against {chance[name][metric]:.3f} by chance"
        for name, metric, factor in (
            ("open_clipart", "i2t_recall@10", 10),
            ("open_clipart", "t2i_recall@10", 10),
            ("openmoji", "hit@10", 4),
        )
        if (value := results[name][metric]) < factor * chance[name][metric]
    ]
    if missing or weak:
        sys.exit(f"the quickstart fell short: missing {missing}, weak {weak}")
    print("the quickstart wrote everything and learned")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
