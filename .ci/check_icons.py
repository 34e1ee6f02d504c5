"""Fails unless a finished run of configs/icons.py names icons about as well as the README says."""

import json
import sys
from pathlib import Path

LEAST = {"icons_style": 0.42, "icons_concepts": 0.22}  # hit@1; another rounding moves it by points.


def main(workdir: Path) -> None:
    """Check the workdir's results and pictures."""
    results = json.loads((workdir / "results.json").read_text())
    weak = [
        f"{name}: hit@1 of {found:.3f}, less than {least}"
        for name, least in LEAST.items()
        if (found := results[name]["hit@1"]) < least
    ]
    pictures = [workdir / "figures" / f"predictions_{name}.png" for name in LEAST]
    missing = [path.name for path in (*pictures, workdir / "report.html") if not path.is_file()]
    if weak or missing:
        sys.exit(f"the icons fell short: {weak}, missing {missing}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
