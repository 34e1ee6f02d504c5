"""Shared fixtures: eight simulated devices, a tiny collection of pairs, and a tiny config."""

import os
import signal
import tempfile

# Before jax is imported: the sharded paths need several devices on any machine. On a busy one eight
# devices on two cores may wait for each other for longer than XLA's 40 s. Most of the time goes
# into compiling small programs that run a few times: without what makes machine code faster, and
# on one thread, it is there in a third of the time (XLA_FLAGS of the caller override that).
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    + " --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
# A script's background jobs ignore Ctrl-C, and so would every command that tests start and stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Hundreds of commands are started, too short for large pages to be worth a second start.
os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
# Many tests compile the same small programs: once is enough, in pytest's workers and started
# processes too, which inherit the folder. Even of an addition, reading is a third of compiling.
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
    os.environ["JAX_COMPILATION_CACHE_DIR"]
    if "PYTEST_XDIST_WORKER" in os.environ
    else tempfile.mkdtemp(prefix="otter_jax_compiled_")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import gc
import io
import itertools
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from otter_jax.config import default_config, unset_foreign_options

COLOURS = ("red", "green", "blue", "yellow", "black", "orange", "purple", "brown")
SHAPES = ("circle", "square", "triangle", "bar", "ring", "cross")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=None, help="folder of .npz files for test_golden.py")


def pytest_sessionfinish() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Worst relative errors of test_golden.py, if a folder of files was named."""
    if not terminalreporter.config.getoption("--golden"):
        return
    terminalreporter.section("worst relative errors")
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, line in getattr(report, "user_properties", ()):
                if name == "golden" and report.when == "call":
                    terminalreporter.write_line(line)


def flags_for(devices: int) -> dict[str, str]:
    """XLA_FLAGS of a process that compiles as this one does, with so many devices."""
    # Of a flag that is given twice, the last counts.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {"XLA_FLAGS": flags}


def draw_shape(colour: str, shape: str, size: int = 48) -> bytes:
    """A PNG of one shape in one colour on white."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    box = (8, 8, size - 8, size - 8)
    middle = size // 2
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(middle, 8), (8, size - 8), (size - 8, size - 8)], fill=colour)
    elif shape == "bar":
        pen.rectangle((8, middle - 6, size - 8, middle + 6), fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=6)
    else:
        pen.line((8, 8, size - 8, size - 8), fill=colour, width=8)
        pen.line((8, size - 8, size - 8, 8), fill=colour, width=8)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, pairs: list[tuple[bytes, str]]) -> None:
    """A tar shard as img2dataset writes it."""
    with tarfile.open(path, "w") as tar:
        for number, (image, caption) in enumerate(pairs):
            metadata = json.dumps({"caption": caption}).encode()
            for suffix, data in (("png", image), ("txt", caption.encode()), ("json", metadata)):
                member = tarfile.TarInfo(f"{number:05d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(autouse=True, scope="module")
def forget_what_was_compiled() -> Iterator[None]:
    """A worker would otherwise hold the programs of all files it has seen: gigabytes.

    Three megabytes each, even of an addition, which glibc keeps for itself unless it is told.
    """
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        from otter_jax.runs.machine import give_back_freed_memory

        gc.collect()
        give_back_freed_memory()


@pytest.fixture(scope="session")
def shape_pairs() -> list[tuple[bytes, str]]:
    """48 drawings with their captions."""
    return [
        (draw_shape(colour, shape), f"a {colour} {shape}")
        for colour, shape in itertools.product(COLOURS, SHAPES)
    ]


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory, shape_pairs: list) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_shard(folder / "00000.tar", shape_pairs[:30])
    write_shard(folder / "00001.tar", shape_pairs[30:])
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer of the captions' words, in Hugging Face's layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "a", "photo", "of", ".", *COLOURS, *SHAPES]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def small_figures() -> Iterator[None]:
    """Runs draw a few pairs: as many as readers want to see would last longer than all the rest."""
    from otter_jax.pictures import gallery

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "PAIRS_SHOWN", 4)
        patch.setattr(gallery, "IMAGES_SHOWN", 4)
        yield


@pytest.fixture
def tiny_config(
    pairs_folder: Path, tokenizer_folder: Path, small_figures: None
) -> Callable[..., ConfigDict]:
    """Makes a config that trains in seconds: small random towers on the 48 drawings."""

    def make(**changes: object) -> ConfigDict:
        config = default_config()
        with config.unlocked():
            config.model.image.overrides = ConfigDict(
                {"num_stages": 2, "stem_width": 8, "width": 16, "width_multiplier": 0.5}
            )
            config.model.text.overrides = ConfigDict(
                {
                    "vocab_size": 32,
                    "hidden_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                    "max_position_embeddings": 16,
                }
            )
        config.update_from_flattened_dict(
            {
                "batch_size": 16,
                "total_steps": 6,
                "log_every_steps": 2,
                "data.train": f"webdataset:{pairs_folder}",
                "data.image_size": 32,
                "data.max_tokens": 8,
                "model.embed_dim": 8,
                "model.text.tokenizer": str(tokenizer_folder),
                "checkpoint.every_steps": 3,
                "evaluate.sets": (f"webdataset:{pairs_folder}",),
                "evaluate.batch_size": 16,
            }
            | changes
        )
        unset_foreign_options(config)  # One set of changes serves several objectives.
        return config

    return make


@pytest.fixture(scope="session")
def two_towers(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A checkpoint of two small towers, random ones, with its tokenizer; images of 32 pixels."""
    from flax import nnx

    from otter_jax.models import bert, dual_encoder, export, vit
    from otter_jax.models.projections import make_projection

    rngs = nnx.Rngs(0)
    common = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    image = vit.ViT(vit.ViTConfig(image_size=32, patch_size=8, **common), rngs=rngs)
    text = bert.Bert(
        bert.BertConfig(vocab_size=32, max_position_embeddings=16, **common), rngs=rngs
    )
    projections = [make_projection("linear", 16, 8, rngs=rngs) for _ in range(2)]
    module = dual_encoder.DualEncoder(image, text, *projections, initial_scale=12.0)
    folder = tmp_path_factory.mktemp("two_towers") / "model"
    data = {"image_size": 32, "fit": "crop", "max_tokens": 16}
    export.export_dual_encoder(module, folder, data)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_folder / name, folder / name)
    return folder


@pytest.fixture
def random_rows() -> Callable[..., np.ndarray]:
    """Makes arrays from a seed of their own."""

    def make(*shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

    return make
