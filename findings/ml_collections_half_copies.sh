#!/usr/bin/env bash
# ConfigDict(base) copies the numbers of a configuration and shares its sections.
#
# Library:   ml_collections 1.1.0.
# Expected:  like dict(base), only on every level, or like nothing at all: a copy or the same
#            object.
# Happens:   a number on the top level is a copy; sections, and numbers that others are derived from
#            (FieldReference), are shared. Changing the "copy" changes the base in these, and in
#            whatever was made of it before. copy.deepcopy and copy_and_resolve_references are
#            copies.
# Matters:   presets made from a common config, and sweeps that derive a config for each run: the
#            second run has the first one's learning rate, and its own seed, so that records show
#            runs that never happened.
# Seen on 2026-11-28:
#   set in the copy: seed 1, optimizer.learning_rate 1.0, steps 10
#   the base now:    seed 0, optimizer.learning_rate 1.0, steps 10, warmup_steps 1
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile ml_collections==1.1.0

"$work/venv/bin/python" - <<'EOF'
import copy

from ml_collections import ConfigDict, FieldReference


def make_base():
    steps = FieldReference(1000)
    schedule = {"steps": steps, "warmup_steps": steps // 10}
    return ConfigDict({"seed": 0, "optimizer": {"learning_rate": 0.1}, **schedule})


def values(config):
    return config.seed, config.optimizer.learning_rate, config.steps, config.warmup_steps


def after(make_copy):
    base = make_base()
    config = make_copy(base)
    config.seed, config.steps = 1, 10
    config.optimizer.learning_rate = 1.0
    return values(config), values(base)


changed, base = after(ConfigDict)
text = "seed {}, optimizer.learning_rate {}, steps {}"
print("set in the copy:", text.format(*changed))
print("the base now:   ", (text + ", warmup_steps {}").format(*base))
assert base == (0, 1.0, 10, 1)
for make_copy in (copy.deepcopy, lambda config: config.copy_and_resolve_references()):
    assert after(make_copy)[1] == values(make_base())
EOF
