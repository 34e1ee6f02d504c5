"""Fails unless a finished quickstart learned clearly more than chance; takes its workdir.

The quickstart that comes with the package must be the same model, but for rounding.
"""

import json
import sys
from pathlib import Path

import numpy as np

import otter_jax

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
    texts = ["a drawing of a lighthouse", "a red apple", "two people dancing"]
    trained, published = otter_jax.load(workdir), otter_jax.load("quickstart")
    pictures = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), np.uint8)
    for one, other in (
        (trained.encode_text(texts), published.encode_text(texts)),
        (trained.encode_image(pictures), published.encode_image(pictures)),
    ):
        if (cosine := (one * other).sum(axis=1).min()) < 0.99:
            sys.exit(f"the published quickstart is another model: cosine {cosine:.3f}")
    print("the quickstart wrote everything and learned what the published one knows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
