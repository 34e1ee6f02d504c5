#!/usr/bin/env bash
# Orbax, asked to keep the best two checkpoints, deletes the latest, and resumes from long ago.
#
# Library:   orbax-checkpoint 0.12.8.
# Expected:  max_to_keep=2 with best_fn keeps the best two and, to resume from, the latest.
# Happens:   the best two are all that is kept. A checkpoint that is not among them is deleted as
#            soon as it is saved, though save() has returned True, and latest_step() is the latest
#            of the best. Also: saving a step that exists returns False, without any error.
# Matters:   after a preemption a run goes back to the best evaluation, perhaps days ago, and does
#            so each time, as contrastive runs whose recall has its peak early do.
#            preservation_policy=AnyPreservationPolicy([LatestN(1), BestN(...)]) keeps both.
# Seen on 2026-11-28:
#   saved: [True, True, True, True, True]; kept: [2, 3]; latest_step(): 3
#   saving step 3 once more: False
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile orbax-checkpoint==0.12.8 jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - "$work/run" <<'EOF'
import sys

import jax.numpy as jnp
import orbax.checkpoint as ocp

recall = {1: 0.1, 2: 0.9, 3: 0.8, 4: 0.3, 5: 0.2}
options = ocp.CheckpointManagerOptions(
    max_to_keep=2, best_fn=lambda metrics: metrics["recall"], best_mode="max"
)
with ocp.CheckpointManager(sys.argv[1], options=options) as manager:

    def save(step):
        state = ocp.args.StandardSave({"step": jnp.asarray(step)})
        return manager.save(step, args=state, metrics={"recall": recall[step]})

    saved = [save(step) for step in recall]
    manager.wait_until_finished()
    kept, latest = list(manager.all_steps()), manager.latest_step()
    print(f"saved: {saved}; kept: {kept}; latest_step(): {latest}")
    again = save(3)
    print("saving step 3 once more:", again)
assert all(saved) and kept == [2, 3] and latest == 3 and again is False
EOF
