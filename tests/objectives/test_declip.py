"""DeCLIP's and SLIP's losses: sums, ablations, targets, tiles, devices, refusals."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from otter_jax import objectives, sharding
from otter_jax.objectives.nearest_neighbor import enqueue

NUM_PAIRS, WIDTH, QUEUE = 16, 6, 32
LOG_SCALES = objectives.LogScales(jnp.float32(2.5), jnp.float32(2.0))
ABLATIONS = [
    dict(zip(("ss", "mvs", "nns"), on, strict=True))
    for on in itertools.product((False, True), repeat=3)
]


def make_views(seed: int = 0) -> objectives.ViewOutputs:
    """All that any option needs."""
    rng = np.random.default_rng(seed)
    names = [name for name in objectives.ViewOutputs._fields if not name.startswith("mlm")]
    rows = rng.normal(size=(len(names), NUM_PAIRS, WIDTH)).astype(np.float32)
    labels = np.where(rng.random((NUM_PAIRS, 5)) < 0.3, rng.integers(0, 9, (NUM_PAIRS, 5)), -100)
    return objectives.ViewOutputs(
        **{name: jnp.asarray(x) for name, x in zip(names, rows, strict=True)},
        mlm_losses=jnp.asarray(rng.random((NUM_PAIRS, 5)), jnp.float32) * (labels != -100),
        mlm_labels=jnp.asarray(labels),
    )


def make_queue(filled: int = 20) -> objectives.Queue:
    rows = np.random.default_rng(7).normal(size=(filled, WIDTH)).astype(np.float32)
    return enqueue(objectives.make_queue(QUEUE, WIDTH), jnp.asarray(rows))


def make_teacher() -> objectives.Embeddings:
    rows = np.random.default_rng(8).normal(size=(2, NUM_PAIRS, WIDTH)).astype(np.float32)
    return objectives.Embeddings(*map(jnp.asarray, rows))


def loss(options: objectives.Method, views: objectives.ViewOutputs | None = None, **others):
    arguments = {"queue": make_queue(), "log_scales": LOG_SCALES} | others
    return objectives.declip_loss(options, views or make_views(), **arguments)


def cosines(rows: jax.Array, columns: jax.Array) -> np.ndarray:
    rows, columns = (np.asarray(x, np.float64) for x in (rows, columns))
    rows, columns = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, columns))
    return rows @ columns.T


def one_direction(logits: np.ndarray) -> float:
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diagonal(logits)))


def infonce(image: jax.Array, text: jax.Array) -> float:
    """The mean of both directions, in float64."""
    logits = math.exp(2.5) * cosines(image, text)
    return (one_direction(logits) + one_direction(logits.T)) / 2


@pytest.mark.parametrize("on", ABLATIONS, ids=lambda on: "+".join(k for k in on if on[k]) or "clip")
def test_parts_that_are_on_add_up(on: dict[str, bool]) -> None:
    value, metrics, queue = loss(objectives.make_method("declip", **on))
    parts = {name for name in metrics if name.startswith("loss_")}
    wanted = {"loss_clip"}
    wanted |= {"loss_simsiam", "loss_mlm"} if on["ss"] else set()
    wanted |= {"loss_neighbor"} if on["nns"] else set()
    assert parts == wanted
    np.testing.assert_allclose(value, sum(metrics[name] for name in parts), rtol=1e-6)
    texts = NUM_PAIRS * (1 + on["mvs"]) if on["nns"] else 0
    assert int(queue.filled) == min(20 + texts, QUEUE)


def test_with_all_off_it_is_clip() -> None:
    views = make_views()
    alone = objectives.ViewOutputs(views.image, views.text)
    options = objectives.make_method("declip", ss=False, mvs=False, nns=False, clip_weight=1.0)
    value, metrics, queue = loss(options, alone, queue=None)
    np.testing.assert_allclose(value, infonce(views.image, views.text), rtol=1e-5)
    np.testing.assert_allclose(metrics["temperature"], math.exp(-2.5), rtol=1e-6)
    assert queue is None
    summed, _ = objectives.total_loss(
        objectives.make_method("infonce"), objectives.Embeddings(*alone[:2]), None, LOG_SCALES
    )
    np.testing.assert_allclose(value, summed / 2, rtol=1e-6)


@pytest.mark.parametrize("weight", [None, 0.2])
def test_views_are_averaged_or_summed_as_in_the_paper(weight: float | None) -> None:
    views = make_views()
    options = objectives.make_method("declip", multi_view_weight=weight)
    pairs = itertools.product((views.image, views.image2), (views.text, views.text2))
    first, *others = (infonce(*pair) for pair in pairs)
    wanted = 0.4 * (first + sum(others)) / 4 if weight is None else 0.4 * first + 0.2 * sum(others)
    np.testing.assert_allclose(loss(options, views)[1]["loss_clip"], wanted, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("mvs", [False, True])
def test_neighbors_of_every_text_are_keys_for_every_image(mvs: bool, symmetric: bool) -> None:
    views, queue = make_views(), make_queue()
    options = objectives.make_method("declip", mvs=mvs, symmetric_neighbors=symmetric)
    features = np.asarray(queue.features[:20])
    losses = []
    for text in (views.text, views.text2)[: 1 + mvs]:
        neighbors = features[np.argmax(cosines(text, features), axis=1)]
        for image in (views.image, views.image2)[: 1 + mvs]:
            logits = math.exp(2.5) * cosines(image, neighbors)
            losses += [one_direction(logits)] + [one_direction(logits.T)] * symmetric
    found = loss(options, views, queue=queue)[1]["loss_neighbor"]
    np.testing.assert_allclose(found, 0.2 * np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize("tile", [None, 5])
def test_an_empty_queue_gives_no_loss_and_no_gradient(tile: int | None) -> None:
    options = objectives.make_method("declip", clip_weight=0.0, ss=False, mvs=False, tile=tile)

    def value(image: jax.Array, text: jax.Array) -> jax.Array:
        empty = objectives.make_queue(40, WIDTH)
        return loss(options, objectives.ViewOutputs(image, text), queue=empty)[0]

    found, gradients = jax.jit(jax.value_and_grad(value, (0, 1)))(*make_views()[:2])
    assert found == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


def test_texts_enter_the_queue_after_the_search_second_view_first() -> None:
    views, empty = make_views(), objectives.make_queue(40, WIDTH)
    _, metrics, queue = loss(objectives.make_method("declip"), views, queue=empty)
    assert metrics["loss_neighbor"] == 0.0
    unit = [objectives.normalize(x) for x in (views.text2, views.text)]
    np.testing.assert_allclose(queue.features[:32], np.concatenate(unit), atol=1e-6)


def test_projections_and_metrics_carry_no_gradient() -> None:
    options = objectives.make_method("declip")

    def value(rows: dict[str, jax.Array]) -> jax.Array:
        return loss(options, make_views()._replace(**rows))[0]

    def part(rows: dict[str, jax.Array]) -> jax.Array:
        return loss(options, make_views()._replace(**rows))[1]["loss_clip"]

    views = make_views()
    gradients = jax.grad(value)({"z1": views.z1, "p1": views.p1})
    np.testing.assert_array_equal(gradients["z1"], 0.0)
    assert np.abs(gradients["p1"]).max() > 0
    np.testing.assert_array_equal(jax.grad(part)({"image": views.image})["image"], 0.0)


def test_slip_is_clip_and_ntxent() -> None:
    views = make_views()
    value, metrics, _ = loss(objectives.make_method("slip"), views, queue=None)
    rows = cosines(*[jnp.concatenate([views.simclr1, views.simclr2])] * 2) / 0.1
    positive = np.diagonal(np.roll(rows, NUM_PAIRS, axis=1))
    np.fill_diagonal(rows, -np.inf)
    ntxent = np.mean(np.log(np.exp(rows).sum(axis=1)) - positive)
    np.testing.assert_allclose(metrics["loss_simclr"], ntxent, rtol=1e-5)
    np.testing.assert_allclose(value, infonce(views.image, views.text) + ntxent, rtol=1e-5)


@pytest.mark.parametrize("name", ["declip", "slip"])
def test_otters_targets_with_alpha_one_are_the_identity(name: str) -> None:
    plain = loss(objectives.make_method(name))
    options = objectives.make_method(name, targets="otter", alpha=1.0)
    assert options.uses_teacher and not objectives.make_method(name).uses_teacher
    found = loss(options, teacher=make_teacher())
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-6)


def test_otters_targets_serve_every_pair_of_views() -> None:
    views, teacher = make_views(), make_teacher()
    options = objectives.make_method("declip", targets="otter", alpha=0.3, epsilon=0.2)
    otter = objectives.make_method("otter", alpha=0.3, epsilon=0.2)
    pairs = itertools.product((views.image, views.image2), (views.text, views.text2))
    summed = [
        objectives.total_loss(otter, objectives.Embeddings(*pair), teacher, LOG_SCALES)[0]
        for pair in pairs
    ]
    metrics = loss(options, views, teacher=teacher)[1]
    np.testing.assert_allclose(metrics["loss_clip"], 0.4 * np.mean(summed) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["target_diagonal"], 0.0, atol=1e-7)


def test_trust_is_for_every_pair_of_views() -> None:
    views, teacher = make_views(), make_teacher()
    trust = jnp.linspace(0.0, 1.0, NUM_PAIRS)
    choice = {"alpha": "estimated", "pair_weight": "estimated"}
    options = objectives.make_method("declip", targets="otter", **choice)
    otter = objectives.make_method("otter", **choice)
    summed = [
        objectives.total_loss(
            otter, objectives.Embeddings(*pair), teacher, LOG_SCALES, trust=trust
        )[0]
        for pair in itertools.product((views.image, views.image2), (views.text, views.text2))
    ]
    metrics = loss(options, views, teacher=teacher, trust=trust)[1]
    np.testing.assert_allclose(metrics["loss_clip"], 0.4 * np.mean(summed) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="needs the pairs' trust"):
        loss(options, views, teacher=teacher)


@pytest.mark.parametrize("tile", [None, 5])
def test_neighbors_of_a_caption_weigh_as_it_does(tile: int | None) -> None:
    """Without the captions that are not trusted, as without their rows."""
    views, queue = make_views(), make_queue()
    trust = jnp.where(jnp.arange(NUM_PAIRS) % 3 == 0, 1.0, 0.0)
    options = objectives.make_method("declip", mvs=False, pair_weight="estimated", tile=tile)
    features = np.asarray(queue.features[:20])
    neighbors = features[np.argmax(cosines(views.text, features), axis=1)]
    logits = math.exp(2.5) * cosines(views.image, neighbors)
    wanted = 0.2 * np.mean(
        [np.log(np.exp(logits[i]).sum()) - logits[i, i] for i in range(0, NUM_PAIRS, 3)]
    )
    metrics = loss(options, views, queue=queue, trust=trust)[1]
    np.testing.assert_allclose(metrics["loss_neighbor"], wanted, rtol=1e-5)
    unweighted = loss(objectives.make_method("declip", mvs=False, tile=tile), views, queue=queue)[1]
    for name in ("loss_simsiam", "loss_mlm"):
        np.testing.assert_array_equal(metrics[name], unweighted[name])


@pytest.mark.parametrize("tile", [None, 5])
def test_all_pairs_of_views_share_one_transport(tile: int | None) -> None:
    """XLA finds that it is the same four times; the program's loops show it."""

    def loops(mvs: bool, **changes: str) -> int:
        options = objectives.make_method(
            "declip", ss=False, nns=False, mvs=mvs, tile=tile, **changes
        )
        teacher = make_teacher() if options.uses_teacher else None
        compute = jax.jit(lambda views: loss(options, views, queue=None, teacher=teacher)[0])
        return compute.lower(make_views()).compile().as_text().count(" while(")

    of_transport = [loops(mvs, targets="otter") - loops(mvs) for mvs in (False, True)]
    assert of_transport[0] == of_transport[1] > 0


def value_and_gradients(options: objectives.Method, mesh: Mesh | None = None):
    """Everything that a step would see, with the batch and the queue split over the mesh."""
    views, queue, teacher = make_views(), make_queue(), make_teacher()
    trust = jnp.asarray(np.linspace(0.0, 1.0, NUM_PAIRS, dtype=np.float32))
    if mesh is not None:
        split, whole = sharding.split_rows(mesh), sharding.replicated(mesh)
        views, teacher, trust = jax.device_put((views, teacher, trust), split)
        queue = jax.device_put(queue, objectives.Queue(split, whole, whole))
    labels = views.mlm_labels

    @jax.jit
    def compute(views, queue, teacher, trust):
        def value(views, log_scales):
            views = views._replace(mlm_labels=labels)
            teacher_if_used = teacher if options.uses_teacher else None
            trust_if_used = trust if options.uses_trust else None
            found = objectives.declip_loss(
                options, views, queue, log_scales, mesh, teacher_if_used, trust_if_used
            )
            return found[0], found[1:]

        return jax.value_and_grad(value, (0, 1), has_aux=True)(views, LOG_SCALES)

    return compute(views._replace(mlm_labels=None), queue, teacher, trust)


def assert_same(found: tuple, wanted: tuple) -> None:
    (value, (metrics, queue)), gradients = found
    (wanted_value, (wanted_metrics, wanted_queue)), wanted_gradients = wanted
    np.testing.assert_allclose(value, wanted_value, rtol=1e-6)
    for name in wanted_metrics:
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(queue.features, wanted_queue.features, atol=1e-6)
    assert tuple(map(int, queue[1:])) == tuple(map(int, wanted_queue[1:]))
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, atol=1e-5 * max(np.abs(other).max(), 1e-30))


@pytest.fixture(scope="module")
def everything() -> objectives.Method:
    return objectives.make_method(
        "declip",
        targets="otter",
        alpha="estimated",
        pair_weight="estimated",
        symmetric_neighbors=True,
        tile=NUM_PAIRS,
    )


@pytest.fixture(scope="module")
def on_one_device(everything: objectives.Method) -> tuple:
    return value_and_gradients(everything)


def test_tiles_change_nothing(everything: objectives.Method, on_one_device: tuple) -> None:
    tiled = dataclasses.replace(everything, tile=3)  # Does not divide the batch.
    assert_same(value_and_gradients(tiled), on_one_device)


@pytest.mark.parametrize("tile", [NUM_PAIRS, 1])
def test_devices_change_nothing(
    everything: objectives.Method, on_one_device: tuple, tile: int
) -> None:
    mesh = sharding.make_mesh()
    found = value_and_gradients(dataclasses.replace(everything, tile=tile), mesh)
    assert_same(found, on_one_device)
    features = found[0][1][1].features
    assert features.sharding.is_equivalent_to(sharding.split_rows(mesh), 2)


def test_memory_does_not_grow_with_the_square_of_the_batch() -> None:
    options = objectives.make_method("declip", ss=False, mvs=False, symmetric_neighbors=True)
    rows = jax.ShapeDtypeStruct((8192, 16), jnp.float32)
    views = objectives.ViewOutputs(rows, rows)
    queue = jax.eval_shape(lambda: objectives.make_queue(2**15, 16))

    def value(views: objectives.ViewOutputs, queue: objectives.Queue) -> jax.Array:
        return objectives.declip_loss(options, views, queue, LOG_SCALES)[0]

    program = jax.jit(jax.grad(value)).lower(views, queue).compile()
    used = program.memory_analysis().temp_size_in_bytes
    assert used <= 64 * 2**20, used / 2**20  # One matrix of this batch has 256 MiB.


@pytest.mark.parametrize(("name", "scale"), [("declip", 100.0), ("slip", math.exp(6.0))])
def test_scale_is_kept_in_the_objectives_bounds(name: str, scale: float) -> None:
    far = objectives.LogScales(jnp.float32(6.0), jnp.float32(6.0))
    metrics = loss(objectives.make_method(name), log_scales=far)[1]
    np.testing.assert_allclose(metrics["temperature"], 1.0 / scale, rtol=1e-5)


def test_what_a_step_must_provide() -> None:
    def needs(name: str, **on: bool) -> set[str]:
        options = objectives.make_method(name, **on)
        names = [name for name in dir(objectives.Method) if name.startswith("uses_")]
        return {name.removeprefix("uses_") for name in names if getattr(options, name)}

    everything = {"two_image_views", "two_text_views", "simsiam", "masked_language", "queue"}
    assert needs("declip") == everything | {"views"}
    off = {"ss": False, "mvs": False, "nns": False}
    assert needs("declip", **off) == {"views"}
    assert needs("declip", **off | {"ss": True}) == {
        "views",
        "two_image_views",
        "simsiam",
        "masked_language",
    }
    assert needs("declip", **off | {"mvs": True}) == {"views", "two_image_views", "two_text_views"}
    assert needs("declip", **off | {"nns": True}) == {"views", "queue"}
    assert needs("slip") == {"views", "simclr"}
    assert needs("otter") == {"teacher"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("declip", {"targets": "kd"}, "targets=kd: it must be one of identity, otter"),
        ("declip", {"queue_size": 0}, "queue_size=0: it must be at least 1"),
        ("declip", {"mlm_weight": -0.1}, r"mlm_weight=-0\.1: it must be at least 0"),
        ("declip", {"multi_view_weight": math.nan}, "multi_view_weight=nan"),
        ("declip", {"min_scale": 0.0}, r"min_scale=0\.0: it must be positive"),
        ("declip", {"max_scale": 0.5}, r"max_scale=0\.5: it must be at least min_scale=1"),
        ("declip", {"min_scale": 20.0}, r"initial_scale=14\.28.*lie in \[min_scale=20, max_scale"),
        ("slip", {"initial_bias": -10.0}, "initial_bias=-10"),
    ],
)
def test_bad_options_are_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objectives.make_method(name, **options)


@pytest.mark.parametrize("name", ["image2", "text2", "z2", "mlm_losses"])
def test_missing_views_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"objective 'declip' needs views\.{name}"):
        loss(objectives.make_method("declip"), make_views()._replace(**{name: None}))


def test_what_does_not_fit_is_refused() -> None:
    options, views = objectives.make_method("declip"), make_views()
    with pytest.raises(ValueError, match="objective 'declip' needs a queue"):
        loss(options, queue=None)
    with pytest.raises(ValueError, match="'declip' does not use a teacher's embeddings"):
        loss(options, teacher=make_teacher())
    with pytest.raises(ValueError, match=r"objective 'slip' needs views\.simclr1"):
        loss(objectives.make_method("slip"), views._replace(simclr1=None))
    with pytest.raises(ValueError, match="'infonce' is computed by total_loss, not declip_loss"):
        loss(objectives.make_method("infonce"))
    with pytest.raises(ValueError, match="'declip' is computed by declip_loss, not total_loss"):
        objectives.total_loss(options, objectives.Embeddings(*views[:2]), None, LOG_SCALES)
    with pytest.raises(ValueError, match="values that are not finite in 1 of 16 rows"):
        loss(options, views._replace(text2=views.text2.at[3].set(jnp.nan)))


def test_a_queue_must_hold_a_batch_and_divide() -> None:
    options = objectives.make_method("declip", queue_size=48)
    objectives.check_queue(options, 48, devices=8)
    with pytest.raises(ValueError, match=r"queue_size=48: .* at least config\.batch_size=49"):
        objectives.check_queue(options, 49)
    with pytest.raises(ValueError, match="queue_size=48 does not divide over 32 devices"):
        objectives.check_queue(options, 32, devices=32)
    objectives.check_queue(dataclasses.replace(options, nns=False), 4096, devices=5)
