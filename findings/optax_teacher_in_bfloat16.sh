#!/usr/bin/env bash
# A teacher kept in bfloat16 never arrives: optax's moving averages do not decay in it.
#
# Libraries: optax 0.2.8, jax 0.10.2.
# Expected:  with bfloat16 parameters, a moving average with decay 0.999 that is a little coarse.
# Happens:   1 - 0.001 is 1 in bfloat16, so that the old value is kept whole for ever. From 0 to a
#            student at 1, the teacher stops half-way; from 1 to a student at 0 it does not move at
#            all. Adam's second moment has the same decay in the parameters' type: one large
#            gradient at the first step is never forgotten, and all later steps are 12 times
#            shorter than float32's. (A `mu_dtype` is for the first moment alone.)
# Matters:   self-distillation and momentum teachers, and training in pure bfloat16, which
#            converge to something else without a sign of it.
# Seen on 2026-11-28:
#   teacher after 20,000 steps, from 0 to 1: bfloat16 0.5, float32 0.99998; from 1 to 0: 1, 2e-09
#   Adam's update 5,000 steps after a gradient of 100: bfloat16 0.0031, float32 0.0384
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import optax


def teacher_after(steps, student, start, dtype):
    student = jnp.asarray(student, dtype)

    def follow(_, teacher):
        return optax.incremental_update(student, teacher, step_size=0.001)

    follow_all = jax.jit(lambda teacher: jax.lax.fori_loop(0, steps, follow, teacher))
    return float(follow_all(jnp.asarray(start, dtype)))


def adam_update_after(steps, dtype):
    adam = optax.scale_by_adam(b1=0.9, b2=0.999)

    def step(number, carry):
        gradient = jnp.where(number == 0, jnp.full(1, 100, dtype), jnp.full(1, 0.01, dtype))
        return adam.update(gradient, carry[1])

    zeros = jnp.zeros(1, dtype)
    start = (zeros, adam.init(zeros))
    update, _ = jax.jit(lambda carry: jax.lax.fori_loop(0, steps, step, carry))(start)
    return float(update[0])


up = [teacher_after(20_000, 1, 0, dtype) for dtype in (jnp.bfloat16, jnp.float32)]
down = [teacher_after(20_000, 0, 1, dtype) for dtype in (jnp.bfloat16, jnp.float32)]
print(f"teacher after 20,000 steps, from 0 to 1: bfloat16 {up[0]:g}, float32 {up[1]:.5f};", end=" ")
print(f"from 1 to 0: {down[0]:g}, {down[1]:.0e}")
assert up[0] == 0.5 and up[1] > 0.9999
assert down[0] == 1.0 and down[1] < 1e-8

narrow, wide = (adam_update_after(5000, dtype) for dtype in (jnp.bfloat16, jnp.float32))
print("Adam's update 5,000 steps after a gradient of 100:", end=" ")
print(f"bfloat16 {narrow:.4f}, float32 {wide:.4f}")
assert 0.0030 < narrow < 0.0033 and 0.037 < wide < 0.040
EOF
