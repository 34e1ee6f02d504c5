#!/usr/bin/env bash
# Orbax: a run that goes back to an earlier checkpoint saves nothing, and resumes from the bad one.
#
# Library:   orbax-checkpoint 0.12.8.
# Expected:  after restore(20), further steps are saved, and steps that exist are overwritten or
#            refused by an error.
# Happens:   CheckpointManager.save returns False, without a word, for every step up to the latest
#            that is on disk. Of a run that diverged at 40 and was taken back to 20, the good steps
#            25, 30, 35 and 40 are not written, and what the next start restores as the latest is
#            the diverged one. The steps must be deleted first, or saved with force=True.
# Matters:   going back to before a divergence, with another learning rate or another seed of the
#            data, is what is done with long runs of contrastive training.
# Seen on 2026-11-29:
#   saved after going back to 20: {25: False, 30: False, 35: False, 40: False}
#   latest: step 40, whose weights are those of the diverged run
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile orbax-checkpoint==0.12.8 jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" -W ignore - "$work/checkpoints" <<'EOF'
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp

GOOD, DIVERGED = 1.0, -1.0


def save(manager, step, value):
    weights = {"weights": jnp.full(2, value)}
    return manager.save(step, args=ocp.args.StandardSave(weights))


def value(manager, step):
    return float(manager.restore(step, args=ocp.args.StandardRestore())["weights"][0])


with ocp.CheckpointManager(sys.argv[1]) as manager:
    first = [save(manager, step, DIVERGED if step > 20 else GOOD) for step in (10, 20, 30, 40)]
assert all(first)

with ocp.CheckpointManager(sys.argv[1]) as manager:
    assert value(manager, 20) == GOOD
    saved = {step: save(manager, step, GOOD) for step in (25, 30, 35, 40)}
print(f"saved after going back to 20: {saved}")
assert not any(saved.values())

with ocp.CheckpointManager(sys.argv[1]) as manager:
    latest = manager.latest_step()
    kept = value(manager, latest)
    assert manager.all_steps() == [10, 20, 30, 40]
whose = "the diverged run" if kept == DIVERGED else "the good run"
print(f"latest: step {latest}, whose weights are those of {whose}")
assert latest == 40 and kept == DIVERGED
EOF
