#!/usr/bin/env bash
# optax.masked does not freeze what it leaves out: it climbs the gradient, with a rate of 1.
#
# Library:   optax 0.2.8.
# Expected:  optax.masked(optimizer, mask) trains what the mask names and leaves the rest alone.
# Happens:   what is left out passes through: its update is the raw gradient, which apply_updates
#            adds. Parameters that should be frozen go uphill, ten times faster than the others at
#            a learning rate of 0.1. The function's text says "left unchanged", of updates.
# Matters:   freezing a pretrained tower. The loss may still fall, by the other tower's work.
#            optax.partition with optax.set_to_zero(), or no gradient at all, is what freezes.
# Seen on 2026-11-28:
#   after one step from 1 with gradient 1, rate 0.1: trained 0.9, "frozen" 2.0, set_to_zero 1.0
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax.numpy as jnp
import optax

params = {"text": jnp.ones(()), "image": jnp.ones(())}
gradients = {"text": jnp.ones(()), "image": jnp.ones(())}


def step(optimizer):
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return {name: float(value) for name, value in optax.apply_updates(params, updates).items()}


masked = step(optax.masked(optax.sgd(0.1), {"text": True, "image": False}))
parts = {"train": optax.sgd(0.1), "freeze": optax.set_to_zero()}
frozen = step(optax.partition(parts, {"text": "train", "image": "freeze"}))
print("after one step from 1 with gradient 1, rate 0.1:", end=" ")
print(f'trained {masked["text"]:.1f}, "frozen" {masked["image"]}, set_to_zero {frozen["image"]}')
assert abs(masked["text"] - 0.9) < 1e-6
assert masked["image"] == 2.0
assert frozen["image"] == 1.0
EOF
