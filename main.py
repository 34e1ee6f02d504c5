"""Trains or evaluates: python main.py --config=configs/NAME.py [--config.KEY=VALUE].

The same as `otter-jax train`, and with --mode=evaluate as `otter-jax evaluate`.
"""

import sys

from otter_jax.commands.main import start

if __name__ == "__main__":
    start(["train", *sys.argv[1:]])
