"""Times Sinkhorn and the whole OTTER loss, value and gradient, in each form that could be used.

    pip install -e ".[test,oracle]"
    python benchmarks/objectives.py [--sizes=512,1024,2048,4096,8192] [--width=256] [--repeats=5]

Forms are measured in turn, several times over, in one process; the best time of each counts, since
other work on the machine can only add to it. The PyTorch column is the arithmetic of the papers'
released code, written anew: exponentials and in-place normalisation, one process.
"""

import argparse
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from otter_jax import objectives
from otter_jax.objectives import contrastive, sinkhorn, targets, tiled_sinkhorn, tiles

EPSILON, ITERATIONS, BOUND = 0.15, 5, 3.0
Run = Callable[[], object]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="512,1024,2048,4096,8192", help="batch sizes")
    parser.add_argument("--width", type=int, default=256, help="embedding width")
    parser.add_argument("--repeats", type=int, default=5, help="times each form is measured")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    for title, make in (
        ("Sinkhorn: targets of one direction from a similarity matrix", sinkhorn_forms),
        ("OTTER loss: value and gradient of embeddings and scales", loss_forms),
    ):
        print(f"\n{title}, milliseconds (d = {arguments.width})", flush=True)
        names = list(make(max(sizes), arguments.width))
        print("| N | " + " | ".join(names) + " |\n|---" + "|---" * len(names) + "|")
        for size in sizes:
            times = measure(make(size, arguments.width), arguments.repeats)
            cells = (f"{1e3 * times[name]:.1f}" if name in times else "-" for name in names)
            print(f"| {size} | " + " | ".join(cells) + " |", flush=True)


def measure(forms: dict[str, Run], repeats: int) -> dict[str, float]:
    """Return the best time of each form in seconds, after one run that compiles."""
    best = dict.fromkeys(forms, float("inf"))
    for run in forms.values():
        run()
    for _ in range(repeats):
        for name, run in forms.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def embeddings(size: int, width: int, seed: int) -> np.ndarray:
    """Return image and text embeddings of a batch, [2, size, width], not normalised."""
    return np.random.default_rng(seed).standard_normal((2, size, width), np.float32)


def sinkhorn_forms(size: int, width: int) -> dict[str, Run]:
    """Return the forms of the row plan."""
    rows = [objectives.normalize(jnp.asarray(x)) for x in embeddings(size, width, 0)]
    similarity = targets.teacher_similarity(
        *rows, image_weight=1.0, text_weight=1.0, remove_diagonal=True
    )
    plan = functools.partial(sinkhorn.row_plan, epsilon=EPSILON, iterations=ITERATIONS)
    forms = {
        "ott log domain": jax.jit(plan),
        "ott kernel mode": jax.jit(ott_kernel_plan),
        "scaling": jax.jit(functools.partial(plan, bound=BOUND)),
    }
    runs = {name: functools.partial(run_jax, form, similarity) for name, form in forms.items()}
    return runs | torch_sinkhorn(np.array(similarity))


def run_jax(function: Callable, *arguments: object) -> None:
    """Run a form to its end, as JAX returns before it has computed."""
    jax.block_until_ready(function(*arguments))


def ott_kernel_plan(similarity: jax.Array) -> jax.Array:
    """Return the row plan by ott-jax's kernel mode."""
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    solver = ott_sinkhorn.Sinkhorn(
        lse_mode=False,
        min_iterations=ITERATIONS,
        max_iterations=ITERATIONS,
        inner_iterations=ITERATIONS,
        threshold=-1.0,
        implicit_diff=None,
        use_danskin=True,
    )
    kernel = geometry.Geometry(kernel_matrix=jnp.exp(similarity.T / EPSILON), epsilon=EPSILON)
    potential = solver(linear_problem.LinearProblem(kernel)).f
    return jax.nn.softmax((similarity + potential[None, :]) / EPSILON, axis=1)


def loss_forms(size: int, width: int) -> dict[str, Run]:
    """Return the forms of the whole loss."""
    student, teacher = (
        objectives.Embeddings(*map(jnp.asarray, embeddings(size, width, seed))) for seed in (0, 1)
    )
    log_scales = objectives.LogScales(jnp.float32(3.9), jnp.float32(3.9))

    def run(loss: Callable) -> Run:
        gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 2)))
        return functools.partial(run_jax, gradient, student, teacher, log_scales)

    def total(tile: int, epsilon: float = EPSILON) -> Callable:
        options = objectives.make_method("otter", tile=tile, epsilon=epsilon)
        return lambda *arguments: objectives.total_loss(options, *arguments)[0]

    # Just below the epsilon from which the scaling form is safe, ott-jax's log domain takes over.
    forms = {"dense": total(size), "dense, log domain": total(size, epsilon=0.1)}
    forms |= {f"tile {tile}": total(tile) for tile in (256, 1024) if tile < size}
    forms |= {"tile 256, log domain": total(256, epsilon=0.1)} if size > 256 else {}
    forms["tile 256, differentiated"] = functools.partial(differentiated_loss, 256)
    runs = {name: run(form) for name, form in forms.items()}
    return runs | torch_loss(embeddings(size, width, 0), embeddings(size, width, 1))


def differentiated_loss(
    tile: int,
    student: objectives.Embeddings,
    teacher: objectives.Embeddings,
    log_scales: objectives.LogScales,
) -> jax.Array:
    """Return the loss whose gradient is autodiff's, which recomputes every tile.

    It is the alternative to the tiled loss's own gradient.

    The two directions are separate here, since a direction's columns are complete in a tile only
    where they are the rows' keys.
    """
    student = objectives.Embeddings(*map(objectives.normalize, student))
    unit = objectives.Embeddings(*map(objectives.normalize, teacher))
    features = tiled_sinkhorn.TeacherFeatures(
        *targets.teacher_features(*unit, image_weight=1.0, text_weight=1.0)
    )
    tiling = tiles.make_tiling(len(unit.image), tile)
    target = targets.Transported(EPSILON, ITERATIONS, BOUND)
    potentials = jax.lax.stop_gradient(
        tiled_sinkhorn.plan_potentials(tiling, features, target, True)
    )
    scales = [contrastive.scale_from_log(each) for each in log_scales]
    sides = (
        (student.image, student.text, features.rows, features.columns, potentials.columns[:, 0]),
        (student.text, student.image, features.columns, features.rows, potentials.rows[:, 1]),
    )
    total = 0.0
    for queries, keys, rows, columns, column_potential in sides:

        @jax.checkpoint
        def step(carry, place, inputs, keys=keys, columns=columns, potential=column_potential):
            query, row = inputs
            given = place.index[:, None] == jnp.arange(len(keys))
            logits = contrastive.similarity(row, columns) / EPSILON + potential
            log_plan = jax.nn.log_softmax(jnp.where(given, -jnp.inf, logits), axis=1)
            plan = jnp.where(place.valid[:, None], jnp.exp(log_plan), 0.0)
            cosines = contrastive.similarity(query, keys)
            hard = -jnp.sum(jnp.where(given, jax.nn.log_softmax(scales[0] * cosines), 0.0))
            difference = jnp.where(given, 0.0, log_plan) - jax.nn.log_softmax(scales[1] * cosines)
            return carry + 0.5 * (hard + jnp.sum(plan * difference)), None

        total += tiles.scan(tiling, step, jnp.zeros(()), (queries, rows))[0] / len(keys)
    return total


def torch_sinkhorn(similarity: np.ndarray) -> dict[str, Run]:
    """Return the released arithmetic in PyTorch; nothing where it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        return {}
    matrix = torch.from_numpy(similarity)
    return {"PyTorch": lambda: torch_plan(matrix)}


def torch_plan(similarity: object) -> object:
    """Scale rows, then columns, `ITERATIONS` times, and rows once more."""
    plan = (similarity / EPSILON).exp()
    plan /= plan.sum()
    for _ in range(ITERATIONS):
        for axis in (1, 0):
            plan /= plan.sum(dim=axis, keepdim=True)
            plan /= plan.shape[1 - axis]
    return plan / plan.sum(dim=1, keepdim=True)


def torch_loss(student: np.ndarray, teacher: np.ndarray) -> dict[str, Run]:
    """Return the released loss in PyTorch; nothing where it is not installed."""
    try:
        import torch
        from torch.nn import functional
    except ModuleNotFoundError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    leaves = [torch.tensor(x, device=device, requires_grad=True) for x in student]
    log_scales = [torch.tensor(3.9, device=device, requires_grad=True) for _ in range(2)]
    teacher_rows = [functional.normalize(torch.tensor(x, device=device)) for x in teacher]

    def run() -> None:
        with torch.no_grad():
            image, text = teacher_rows
            similarity = image @ image.T + text @ text.T + image @ text.T
            similarity -= 200 * torch.eye(len(image), device=device)
            plans = torch_plan(similarity), torch_plan(similarity.T)
        image, text = map(functional.normalize, leaves)
        contrastive_scale, scale = (x.exp().clamp(1, 100) for x in log_scales)
        labels = torch.arange(len(image), device=device)
        loss = 0.0
        for queries, keys, plan in ((image, text, plans[0]), (text, image, plans[1])):
            cosines = queries @ keys.T
            hard = functional.cross_entropy(contrastive_scale * cosines, labels)
            log_softmax = functional.log_softmax(scale * cosines, dim=1)
            loss = loss + 0.5 * hard
            loss = loss + 0.5 * functional.kl_div(log_softmax, plan, reduction="batchmean")
        torch.autograd.grad(loss, [*leaves, *log_scales])
        if device == "cuda":
            torch.cuda.synchronize()

    return {"PyTorch": run}


if __name__ == "__main__":
    main()
