"""Times a train step of DeCLIP against one of CLIP with the same towers and batch, in one run.

    python benchmarks/declip_step.py --config=declip_rn50 --batch_size=8

The first table is the two steps, the second one what DeCLIP's is made of, each part's loss and
gradient by itself. All take turns, so that whatever else the machine does hits them alike; the
tables show the best time of each. Images and tokens are random; making the views is the input
pipeline's work, not the step's.
"""

import argparse
import importlib
import time
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from otter_jax import objectives, sharding
from otter_jax.data.masking import num_masked_slots
from otter_jax.embedding import encoder
from otter_jax.models import dual_encoder
from otter_jax.objectives import nearest_neighbor, self_supervision
from otter_jax.training import step
from otter_jax.training.data import views_of
from otter_jax.training.optimizers import make_optimizer, make_schedule
from otter_jax.training.state import initial_state, make_memory, state_places

CLIP, DECLIP = "CLIP", "DeCLIP"
SUPERVISIONS = ("ss", "mvs", "nns")
Run = Callable[[], object]


def random_batch(config: ConfigDict, vocabulary_size: int) -> dict[str, np.ndarray]:
    """Return all views of some pairs; captions of 12 tokens, as they are long in the median."""
    rng = np.random.default_rng(0)
    rows, size, length = config.batch_size, config.data.image_size, config.data.max_tokens
    image = rng.integers(0, 256, (2, rows, size, size, 3), dtype=np.uint8)
    tokens = rng.integers(1000, vocabulary_size - 3, (2, rows, length)).astype(np.int32)
    tokens[:, :, -1] = vocabulary_size - 2  # Ends the text, where the tower looks for an end.
    mask = np.broadcast_to(np.arange(length) < 12, (rows, length))
    slots = num_masked_slots(length)
    labels = np.where(np.arange(slots) < 2, tokens[0, :, :slots], -100).astype(np.int32)
    return {
        "image": image[0],
        "image2": image[1],
        "tokens": tokens[0],
        "token_mask": mask,
        "tokens2": tokens[1],
        "token_mask2": mask,
        "masked_tokens": tokens[0],
        "masked_positions": np.tile(np.arange(slots, dtype=np.int32), (rows, 1)),
        "masked_labels": labels,
    }


def views_used(config: ConfigDict, options: objectives.Method) -> set[str]:
    """Return the names of the arrays that the loader makes for these options."""
    views = views_of(config, options)
    names = {"image", "tokens", "token_mask"}
    names |= {"image2"} if views.images > 1 else set()
    names |= {"tokens2", "token_mask2"} if views.second_text else set()
    masked = {"masked_tokens", "masked_positions", "masked_labels"}
    return names | masked if views.masked_text else names


def make_step(config: ConfigDict, everything: bool) -> Run:
    """Return a function that takes one step, with all three supervisions or none of them."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.objective.update(dict.fromkeys(SUPERVISIONS, everything))
    options, mesh = objectives.make_method(**config.objective), sharding.make_mesh()
    module = encoder.build_module(config)
    vocabulary_size = module.text.config.vocab_size
    model, variables = dual_encoder.split(module)
    schedule = make_schedule(config, config.total_steps)
    optimizer = make_optimizer(config, schedule)
    memory = make_memory(options, config.model.embed_dim)
    state = initial_state(variables, optimizer, uses_teacher=options.uses_teacher, memory=memory)
    settings = step.StepSettings.of(config)
    learner = step.Learner(model, options, optimizer, schedule, settings, mesh)
    train_step = step.make_train_step(learner, state_places(mesh, state, fsdp=False))
    all_views, used = random_batch(config, vocabulary_size), views_used(config, options)
    batch = sharding.put_batch(mesh, {k: v for k, v in all_views.items() if k in used})

    def run() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = train_step(state, batch)
        return metrics

    return run


def make_parts(config: ConfigDict) -> dict[str, Run]:
    """Return a function for each part of a step, which computes its loss and gradients."""
    module = encoder.build_module(config)
    model, variables = dual_encoder.split(module)
    batch = jax.device_put(random_batch(config, module.text.config.vocab_size))
    rows, slots = batch["masked_labels"].shape
    key = jax.random.key(0)
    embeddings = jax.random.normal(key, (2, rows, config.model.embed_dim))
    states = jax.random.normal(key, (rows, slots, module.text.width))

    def part(function: Callable[..., jax.Array], *inputs: jax.Array, owned: tuple[str, ...]) -> Run:
        """Differentiate by the part's own parameters: the others' gradients are zeros to write."""

        def loss(params: dict, *inputs: jax.Array) -> jax.Array:
            bound = model.bind(variables._replace(params=variables.params | params))
            return function(bound, *inputs).sum()

        params = {name: variables.params[name] for name in owned if name in variables.params}
        compiled = jax.jit(jax.value_and_grad(loss))
        return lambda: compiled(params, *inputs)

    def image_view(module: dual_encoder.DualEncoder, images: jax.Array) -> jax.Array:
        return module.image_projection(module.image_features(images, train=True, dropout_key=key))

    def text_view(
        module: dual_encoder.DualEncoder, tokens: jax.Array, mask: jax.Array
    ) -> jax.Array:
        features = module.text_features(tokens, mask, train=True, dropout_key=key)
        return module.text_projection(features)

    def simsiam(module: dual_encoder.DualEncoder, views: jax.Array) -> jax.Array:
        (p1, z1), (p2, z2) = (module.simsiam(view, True) for view in views)
        return self_supervision.simsiam_loss(p1, p2, z1, z2)

    def hidden_tokens(module: dual_encoder.DualEncoder, states: jax.Array) -> jax.Array:
        predict = getattr(module, "tokens", None) or module.text.predict_tokens
        return objectives.token_losses(predict(states), batch["masked_labels"])

    def search(queue: objectives.Queue, texts: jax.Array) -> list[jax.Array]:
        return [nearest_neighbor.nearest(queue, text)[0] for text in texts]

    queue = objectives.make_queue(config.objective.queue_size, config.model.embed_dim)
    search = jax.jit(search)
    tokens = batch["tokens"], batch["token_mask"]
    return {
        "one image view": part(image_view, batch["image"], owned=("image", "image_projection")),
        "one text view": part(text_view, *tokens, owned=("text", "text_projection")),
        "SimSiam's head, both views": part(simsiam, embeddings, owned=("simsiam",)),
        "hidden tokens' scores": part(hidden_tokens, states, owned=("tokens", "text")),
        "search of the queue, twice": lambda: search(queue, embeddings),
    }


def best_times(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """Return the fewest seconds of each over some turns, but for the first, which compiles."""
    seconds = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn > 0:
                seconds[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in seconds.items()}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="declip_rn50", help="a preset of configs/")
    parser.add_argument("--batch_size", type=int, default=8, help="pairs of a batch")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each kind")
    flags = parser.parse_args()
    config = importlib.import_module(f"configs.{flags.config}").get_config()
    config.batch_size, config.total_steps = flags.batch_size, 10_000
    runs = {CLIP: make_step(config, False), DECLIP: make_step(config, True)} | make_parts(config)
    seconds = best_times(runs, flags.repeats)
    print(f"{flags.config}, {flags.batch_size} pairs; the last column is in CLIP's steps")
    for name, best in seconds.items():
        print(f"{name:27} {best:7.2f} s  {best / seconds[CLIP]:5.2f}")


if __name__ == "__main__":
    main()
