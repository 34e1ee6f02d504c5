"""Entropic optimal transport between the images and the texts of one batch (OTTER, Algorithm 2).

The papers run few Sinkhorn iterations (5), rows first, columns last, and then normalise the rows
once more. That last step is a row softmax of the similarities plus one number per column, so the
column potential is all that a solver has to find.

Two forms find the same potential. Where the kernel exp(similarity / epsilon) cannot leave the range
of float32, it is computed once and every half iteration is one matrix-vector product (`scaling`);
cosines at the papers' epsilon of 0.15 are such a case. Elsewhere ott-jax works in the log domain,
where a small epsilon cannot overflow, with two log-sum-exps of the whole matrix an iteration. On a
CPU the first takes a sixth to a third of the other's time; ott-jax's own kernel mode is not used,
since it took longer than its log domain at every size measured (docs/targets.md).
"""

import jax
import jax.numpy as jnp

# With R = bound / epsilon, the kernel lies within exp(+-R), scalings differ by exp(2 R) at most, so
# a row's sum lies within N exp(+-3 R): at R = 25 that is a float32 for every N below 400,000.
LARGEST_EXPONENT = 25.0


def scaling_is_safe(epsilon: float, bound: float | None) -> bool:
    """Return whether exp(similarity / epsilon) may be computed as such.

    Args:
        epsilon: entropic regulariser, > 0.
        bound: no similarity is larger in magnitude, but for pairs taken out (very negative, so that
            their kernel is exactly 0); None if nothing is known.
    """
    return bound is not None and bound / epsilon <= LARGEST_EXPONENT


def column_potential(cost: jax.Array, epsilon: float, iterations: int) -> jax.Array:
    """Return the columns' dual potential after exactly `iterations` iterations of ott-jax.

    ott-jax updates columns first; it is given the transposed problem.

    Args:
        cost: [N, M] cost of matching row i with column j; the marginals are uniform.
        epsilon: entropic regulariser, in the units of `cost`, > 0.
        iterations: number of iterations (a row and a column update each), >= 1.

    Returns:
        [M] potential g. The row-normalised plan is softmax_j((g_j - cost_ij) / epsilon).
    """
    # Imported late: ott-jax brings a deprecated optimiser library that takes seconds to import.
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    # inner_iterations must equal the count: ott rounds the number of iterations down to whole
    # inner loops, and with its default of 10 would run none of 5.
    solver = sinkhorn.Sinkhorn(
        min_iterations=iterations,
        max_iterations=iterations,
        inner_iterations=iterations,
        threshold=-1.0,
        implicit_diff=None,
        use_danskin=True,
    )
    transposed = geometry.Geometry(cost_matrix=cost.T, epsilon=epsilon)
    return solver(linear_problem.LinearProblem(transposed)).f


def column_scaling(kernel: jax.Array, iterations: int) -> jax.Array:
    """Return exp(potential / epsilon) of the columns, up to a factor, by multiplications alone.

    Args:
        kernel: [N, M], exp(similarity / epsilon), with at least one positive entry in every row and
            column.
        iterations: number of iterations (a row and a column update each).

    Returns:
        [M] column scaling c. The row-normalised plan is kernel * c, each row divided by its sum.
    """

    # Columns start at 1, so the first update is that of the rows, as in the papers.
    def iteration(_: int, columns: jax.Array) -> jax.Array:
        rows = 1.0 / jnp.matmul(kernel, columns, precision="highest")
        return 1.0 / jnp.matmul(rows, kernel, precision="highest")

    return jax.lax.fori_loop(0, iterations, iteration, jnp.ones_like(kernel[0]))


def row_plan(
    similarity: jax.Array, epsilon: float, iterations: int, bound: float | None = None
) -> jax.Array:
    """Return the row-stochastic transport plan of a similarity matrix.

    Args:
        similarity: [N, M], larger is better; a difference of `epsilon` is a factor e in the plan.
        epsilon: entropic regulariser, > 0.
        iterations: Sinkhorn iterations, >= 1.
        bound: see `scaling_is_safe`; None always takes the log domain.

    Returns:
        [N, M] with rows that sum to 1 and no gradient into `similarity`; float32 or wider.
    """
    similarity = jax.lax.stop_gradient(similarity)
    similarity = similarity.astype(jnp.promote_types(similarity.dtype, jnp.float32))
    if scaling_is_safe(epsilon, bound):
        kernel = jnp.exp(similarity / epsilon)
        plan = kernel * column_scaling(kernel, iterations)
        return plan / plan.sum(axis=1, keepdims=True)
    potential = column_potential(-similarity, epsilon, iterations)
    return jax.nn.softmax((similarity + potential[None, :]) / epsilon, axis=1)
