#!/usr/bin/env bash
# ott-jax's Sinkhorn, asked for exactly five iterations, does none, and begins with the columns.
#
# Library:   ott-jax 0.6.0.
# Expected:  min_iterations=5, max_iterations=5 runs five iterations, rows first as in the papers.
# Happens:   iterations come in blocks of `inner_iterations`, 10 by default, and five are rounded
#            down to no block at all: potentials of zeros, no error. With min_iterations=0 the same
#            five are ten. And a converged plan does not tell which side is normalised first, but
#            the plan of five iterations does: ott updates columns first.
# Matters:   OTTER's soft targets are those of five iterations. Zero iterations give a plain
#            softmax, and the order moves single targets by 0.3 in a batch of 8; in large batches
#            hardly, so that a test with many pairs does not find it. The transposed costs are the
#            way round.
# Seen on 2026-11-28:
#   iterations done: min 5 max 5: 0, min 0 max 5: 10, min 5 max 5 inner 5: 5
#   largest error of a target after five iterations, N = 8: 0.276, of transposed costs 1e-07
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile ott-jax==0.6.0 jax==0.10.2 numpy==2.4.6

JAX_PLATFORMS=cpu "$work/venv/bin/python" -W ignore - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

EPSILON = 0.05


def solve(costs, **options):
    costs = geometry.Geometry(cost_matrix=jnp.asarray(costs, jnp.float32), epsilon=EPSILON)
    solver = sinkhorn.Sinkhorn(threshold=-1.0, **options)
    return solver(linear_problem.LinearProblem(costs))


def targets(costs, column_potential):
    return np.asarray(jax.nn.softmax((np.asarray(column_potential) - costs) / EPSILON, axis=1))


def rows_first(costs, iterations):
    """Return the targets after as many iterations, in float64."""
    kernel = np.exp(-costs / EPSILON)
    columns = np.ones(len(costs))
    for _ in range(iterations):
        rows = 1 / (kernel @ columns)
        columns = 1 / (kernel.T @ rows)
    plan = kernel * columns
    return plan / plan.sum(axis=1, keepdims=True)


costs = 1 - np.random.default_rng(0).uniform(-1, 1, (8, 8))
none = solve(costs, min_iterations=5, max_iterations=5)
ten = solve(costs, min_iterations=0, max_iterations=5)
five = {"min_iterations": 5, "max_iterations": 5, "inner_iterations": 5}
straight, turned = solve(costs, **five), solve(costs.T, **five)
done = [int(result.n_iters) for result in (none, ten, straight)]
print("iterations done: min 5 max 5: {}, min 0 max 5: {}, min 5 max 5 inner 5: {}".format(*done))
assert done == [0, 10, 5]
assert not np.asarray(none.f).any() and not np.asarray(none.g).any()

right = rows_first(costs, 5)
error = np.abs(targets(costs, straight.g) - right).max()
error_turned = np.abs(targets(costs, turned.f) - right).max()
print(f"largest error of a target after five iterations, N = 8: {error:.3f},", end=" ")
print(f"of transposed costs {error_turned:.0e}")
assert 0.27 < error < 0.28 and error_turned < 1e-5
EOF
