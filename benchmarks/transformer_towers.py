"""Times ViT-B/32 and BERT-base against PyTorch on this machine's CPU, in one interleaved run.

Needs torch and transformers beside this package:

    python benchmarks/transformer_towers.py

Both sides compute in float32, evaluation mode, random weights: 16 images of 224 pixels, 16 texts of
60 tokens. Forward is all features; forward + backward is the gradient of a scalar with respect to
all parameters. The two take turns, so that whatever else the machine does hits both; the table
shows the best time of each, which it does least to, and their ratio.

    python benchmarks/transformer_towers.py --token_buckets

compares BERT-base at 60 tokens with what `data.token_buckets` makes of the same captions, of 10 to
14 tokens as most of CC3M's are: 16.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from otter_jax.models import create_image_tower, create_text_tower

BATCH, IMAGE_SIZE, TEXT_LENGTH = 16, 224, 60

Run = Callable[[], object]


def otter_runs(tower: nnx.Module, *inputs: np.ndarray) -> tuple[Run, Run]:
    """Return functions that run a tower forward, and forward and backward."""
    graph, params = nnx.split(tower, nnx.Param)
    inputs = jax.device_put(inputs)

    def features(params: nnx.State) -> jax.Array:
        return nnx.merge(graph, params)(*inputs).pooled

    forward = jax.jit(features)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(features(params) ** 2)))
    return (
        lambda: jax.block_until_ready(forward(params)),
        lambda: jax.block_until_ready(gradient(params)),
    )


def torch_runs(network: object, **inputs: np.ndarray) -> tuple[Run, Run]:
    """Return functions that run a network of transformers forward, and forward and backward."""
    import torch

    network.eval()
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}

    def forward() -> object:
        with torch.no_grad():
            return network(**tensors).last_hidden_state

    def gradient() -> None:
        network.zero_grad(set_to_none=True)
        network(**tensors).last_hidden_state.pow(2).sum().backward()

    return forward, gradient


def vit_runs() -> tuple[tuple[Run, Run], tuple[Run, Run]]:
    """Return the runs of both ViT-B/32."""
    from transformers import ViTConfig, ViTModel

    shape = (BATCH, IMAGE_SIZE, IMAGE_SIZE, 3)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    network = ViTModel(ViTConfig(patch_size=32), add_pooling_layer=False)
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    tower = create_image_tower("vit_b32", rngs=nnx.Rngs(0))
    return otter_runs(tower, images), torch_runs(network, pixel_values=channels_first)


def bert_runs() -> tuple[tuple[Run, Run], tuple[Run, Run]]:
    """Return the runs of both BERT-base."""
    from transformers import BertConfig, BertModel

    tokens = np.random.default_rng(0).integers(1000, 30000, (BATCH, TEXT_LENGTH), dtype=np.int32)
    mask = np.arange(TEXT_LENGTH) < np.linspace(10, TEXT_LENGTH, BATCH)[:, None]
    network = BertModel(BertConfig(), add_pooling_layer=False)
    tower = create_text_tower("bert", rngs=nnx.Rngs(0))
    torch_side = torch_runs(network, input_ids=tokens, attention_mask=mask.astype(np.int32))
    return otter_runs(tower, tokens, mask), torch_side


def bucket_runs(length: int) -> tuple[Run, Run]:
    """Return the runs of our BERT-base on captions of 10 to 14 tokens, padded to a length."""
    tokens = np.random.default_rng(0).integers(1000, 30000, (BATCH, length), dtype=np.int32)
    mask = np.arange(length) < np.linspace(10, 14, BATCH)[:, None]
    return otter_runs(create_text_tower("bert", rngs=nnx.Rngs(0)), tokens, mask)


def seconds(run: Run) -> float:
    """Return the seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name: str, ours: Run, theirs: Run, repeats: int) -> None:
    """Print one row of the table: the best times of both in milliseconds, and their ratio."""
    ours(), theirs()  # Compilation, and the first use of memory.
    times = np.array([(seconds(ours), seconds(theirs)) for _ in range(repeats)])
    otter, torch = 1000 * times.min(axis=0)
    print(f"{name:32} {otter:10.0f} {torch:10.0f} {otter / torch:8.2f}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10, help="runs of each kind")
    parser.add_argument("--token_buckets", action="store_true", help="16 tokens against 60")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    if arguments.token_buckets:
        print(f"{'':32} {'16 (ms)':>10} {'60 (ms)':>10} {'ratio':>8}")
        runs = zip(("forward", "fwd + bwd"), bucket_runs(16), bucket_runs(60), strict=True)
        for kind, short, whole in runs:
            compare(f"BERT-base, {BATCH} captions, {kind}", short, whole, repeats)
        return
    print(f"{'':32} {'otter (ms)':>10} {'torch (ms)':>10} {'ratio':>8}")
    for name, make in (("ViT-B/32, 16 x 224 px", vit_runs), ("BERT-base, 16 x 60", bert_runs)):
        ours, theirs = make()
        for kind, mine, other in zip(("forward", "fwd + bwd"), ours, theirs, strict=True):
            compare(f"{name}, {kind}", mine, other, repeats)


if __name__ == "__main__":
    main()
