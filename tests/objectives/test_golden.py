"""Losses, targets and gradients against what the papers' released code computes.

`pytest tests/objectives/test_golden.py --golden=DIR` checks every .npz file of any folder of
the same format and prints the worst relative error of each quantity.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from otter_jax import objectives
from otter_jax.objectives import methods, nearest_neighbor

STORED = Path(__file__).parents[1] / "golden" / "objectives"
# Names in the files, and ours; the files' parts are not weighted as ours are.
DECLIP_VIEWS = {
    "image_view1": "image",
    "image_view2": "image2",
    "text_view1": "text",
    "text_view2": "text2",
    **{name: name for name in ("p1", "p2", "z1", "z2", "mlm_logits")},
}
DECLIP_PARTS = {
    "loss_clip": ("loss_clip", "weight_clip"),
    "loss_nearest_neighbour": ("loss_neighbor", "weight_nearest_neighbour"),
    "loss_simsiam": ("loss_simsiam", "weight_simsiam"),
    "loss_mlm": ("loss_mlm", "weight_mlm"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--golden") or STORED)
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise pytest.UsageError(f"--golden={folder}: there are no .npz files")
    metafunc.parametrize("path", files, ids=[file.stem for file in files])


def options_of(config: dict, tile: int | None) -> objectives.Method:
    weights = {"image_weight": config["vv_coef"], "text_weight": config["tt_coef"]}
    # The released code scales the penalty with these weights: without them nothing is removed.
    removes = bool(config["remove_diag"]) and sum(weights.values()) > 0
    options = {
        "alpha": config["alpha"],
        "epsilon": config["sinkhorn_lambda"],
        "iterations": config["sinkhorn_iter"],
        "smoothing": config["label_smoothing"],
        "teacher_scale": config["teacher_temperature"],
        "remove_diagonal": removes,
        "tile": tile,
        **weights,
    }
    # The files say of every method what only some have.
    name = config["method"].lower()
    own = methods.fields_of(objectives.METHODS[name])
    return objectives.make_method(name, **{k: v for k, v in options.items() if k in own})


def compute_declip(
    data: dict[str, np.ndarray], config: dict, tile: int | None
) -> dict[str, jax.Array]:
    options = objectives.make_method(
        "declip",
        clip_weight=config["weight_clip"],
        neighbor_weight=config["weight_nearest_neighbour"],
        simsiam_weight=config["weight_simsiam"],
        mlm_weight=config["weight_mlm"],
        min_scale=1e-6,  # The files' scale is not clamped.
        max_scale=1e6,
        tile=tile,
    )
    arrays = {name: jnp.asarray(data[name]) for name in DECLIP_VIEWS}
    labels = jnp.asarray(data["mlm_labels"])
    queue = objectives.make_queue(*data["queue"].shape, dtype=data["queue"].dtype)
    queue = nearest_neighbor.enqueue(queue, jnp.asarray(data["queue"]))

    def loss(arrays: dict[str, jax.Array], log_scale: jax.Array) -> tuple[jax.Array, dict]:
        renamed = {DECLIP_VIEWS[name]: array for name, array in arrays.items()}
        losses = objectives.token_losses(renamed.pop("mlm_logits"), labels)
        views = objectives.ViewOutputs(**renamed, mlm_losses=losses, mlm_labels=labels)
        scales = objectives.LogScales(log_scale, log_scale)
        return objectives.declip_loss(options, views, queue, scales)[:2]

    log_scale = jnp.asarray(config["log_temperature"], queue.features.dtype)
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, metrics), (gradients, by_log_scale) = gradient(arrays, log_scale)
    return {
        "loss": value,
        **{name: metrics[ours] for name, (ours, _) in DECLIP_PARTS.items()},
        **{f"grad_{name}": array for name, array in gradients.items()},
        "grad_log_temperature": by_log_scale,
        "nn_index_view1": nearest_neighbor.nearest(queue, arrays["text_view1"])[1],
        "nn_index_view2": nearest_neighbor.nearest(queue, arrays["text_view2"])[1],
    }


def compute(data: dict[str, np.ndarray], config: dict, tile: int | None) -> dict[str, jax.Array]:
    if config["method"].lower() == "declip":
        return compute_declip(data, config, tile)
    options = options_of(config, tile)
    teacher = None
    if options.uses_teacher:
        teacher = objectives.Embeddings(
            jnp.asarray(data["teacher_image"]), jnp.asarray(data["teacher_text"])
        )
    dtype = data["student_image"].dtype

    def loss(image, text, contrastive, distillation):
        scales = objectives.LogScales(contrastive, distillation)
        return objectives.total_loss(options, objectives.Embeddings(image, text), teacher, scales)

    arguments = (
        jnp.asarray(data["student_image"]),
        jnp.asarray(data["student_text"]),
        jnp.asarray(config["log_temperature"], dtype),
        jnp.asarray(config["distill_log_temperature"], dtype),
    )
    (value, metrics), gradients = jax.value_and_grad(loss, argnums=range(4), has_aux=True)(
        *arguments
    )
    unit = None if teacher is None else objectives.Embeddings(*map(objectives.normalize, teacher))
    targets = objectives.soft_targets(options, unit, data["student_image"].shape[0])
    names = ("student_image", "student_text", "log_temperature", "distill_log_temperature")
    return {
        "loss": value,
        "loss_contrastive_weighted": metrics.get("loss_contrastive", value),
        "loss_distillation_weighted": metrics.get("loss_distillation", jnp.zeros(())),
        "target_image": targets.image,
        "target_text": targets.text,
    } | {f"grad_{name}": gradient for name, gradient in zip(names, gradients, strict=True)}


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    scale = np.abs(wanted).max()
    difference = np.abs(np.asarray(found, np.float64) - wanted).max()
    return float(difference / scale if scale > 0 else difference)


@pytest.mark.parametrize("tile", [None, 5], ids=["whole", "tiled"])
def test_golden(
    path: Path, tile: int | None, record_property: Callable[[str, object], None]
) -> None:
    data = dict(np.load(path))
    config = json.loads(str(data.pop("config")))
    method = config["method"].lower()
    if method not in objectives.METHODS:
        pytest.skip(f"{method} is not one of {', '.join(objectives.METHODS)}")
    if method == "declip":
        for name, (_, weight) in DECLIP_PARTS.items():
            data[name] = data[name] * config[weight]
    embeddings = "image_view1" if method == "declip" else "student_image"
    double = data[embeddings].dtype == np.float64
    with jax.enable_x64(double):
        found = compute(data, config, tile)
    tolerance = 1e-4
    if double:  # The released label smoothing builds its target in float32.
        tolerance = 1e-7 if method == "label_smoothing" else 1e-9
    checked = [name for name in found if name in data]
    assert "loss" in checked and f"grad_{embeddings}" in checked
    errors = {name: relative_error(found[name], data[name]) for name in checked}
    listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    record_property(
        "golden", f"{path.name}, {'tiled' if tile else 'whole'}: {listed}"
    )  # Printed at the end, see conftest.py.
    assert max(errors.values()) <= tolerance, errors
