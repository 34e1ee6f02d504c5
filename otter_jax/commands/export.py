"""Writes a trained model as one folder: otter-jax export WORKDIR FOLDER.

`otter_jax.load` reads the folder on any machine, without the workdir and without the pretrained
weights that training began with. A CLIP is read by transformers too (see models/export.py).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from otter_jax.embedding.encoder import load


def main(arguments: Sequence[str] | None = None) -> None:
    """Export what the command line says; what is wrong with it ends in one line."""
    parser = argparse.ArgumentParser(prog="otter-jax export", description=__doc__)
    parser.add_argument("workdir", type=Path, help="folder of a run, with a finished checkpoint")
    parser.add_argument("folder", type=Path, help="folder to write; new or empty")
    options = parser.parse_args(arguments)
    try:
        load(options.workdir).save(options.folder)
    except (ValueError, OSError) as error:
        sys.exit(f"otter_jax: {' '.join(str(error).split())}")
    print(f"otter_jax: exported {options.workdir} to {options.folder}")


if __name__ == "__main__":
    main()
