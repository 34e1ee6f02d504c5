"""Entropic optimal transport between the images and the texts of one batch (OTTER, Algorithm 2).

The papers run few Sinkhorn iterations (5), rows first, columns last, and then normalise the rows
once more. That last step is a row softmax of the similarities plus one number per column, so the
column potential is all that the solver has to find. ott-jax works in the log domain, where a
small epsilon cannot overflow, and updates columns first: it is given the transposed problem.
"""

import jax


def column_potential(cost: jax.Array, epsilon: float, iterations: int) -> jax.Array:
    """The columns' dual potential after exactly `iterations` Sinkhorn iterations, rows first.

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


def row_plan(similarity: jax.Array, epsilon: float, iterations: int) -> jax.Array:
    """The row-stochastic transport plan of a similarity matrix.

    Args:
      similarity: [N, M], larger is better; a difference of `epsilon` is a factor e in the plan.
      epsilon: entropic regulariser, > 0.
      iterations: Sinkhorn iterations, >= 1.

    Returns:
      [N, M] with rows that sum to 1 and no gradient into `similarity`.
    """
    similarity = jax.lax.stop_gradient(similarity)
    potential = column_potential(-similarity, epsilon, iterations)
    return jax.nn.softmax((similarity + potential[None, :]) / epsilon, axis=1)
