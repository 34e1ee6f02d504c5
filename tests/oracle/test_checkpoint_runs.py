"""Runs that start from a checkpoint of each kind end in numbers."""

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from otter_jax import train
from otter_jax.embedding import encoder, starting_point
from otter_jax.models import from_pretrained
from otter_jax.models.pretrained import IMAGE_TOWERS, TEXT_TOWERS

pytestmark = pytest.mark.oracle


def write(folder: Path, library: str, name: str) -> Path:
    """Write a case of the sweep, with random weights."""
    pytest.importorskip("torch")
    pytest.importorskip(library, reason="the extra [oracle-sweep]")
    cases = importlib.import_module(f"tests.oracle.{library}_cases").cases()
    folder.mkdir()
    next(case for case in cases if case.name == name).write(folder)
    return folder


def train_from(config: ConfigDict, kind: str, path: Path, workdir: Path) -> dict:
    """Train with one tower from a checkpoint: by the name of its class, with what it differs in."""
    registry = {"image": IMAGE_TOWERS, "text": TEXT_TOWERS}[kind]
    tower = from_pretrained(path, tower=kind)
    name, preset = next((n, p) for n, p in registry.items() if p.tower is type(tower))
    differing = [field for field in preset.fields if field not in ("mean", "std")]
    with config.unlocked():
        config.model[kind].overrides = ConfigDict(
            {field: getattr(tower.config, field) for field in differing}
        )
    config.model[kind].name, config.model[kind].pretrained = name, str(path)
    return train.train(config, workdir)


def assert_numbers(results: dict, workdir: Path) -> None:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses and all(map(math.isfinite, losses)) and results
    assert encoder.load(workdir).encode_text(["a red circle"]).shape[0] == 1


@pytest.mark.parametrize(
    ("library", "name", "kind"),
    [
        ("timm", "convnextv2_atto", "image"),
        ("transformers", "Dinov2WithRegisters, num_register_tokens=3", "image"),
        ("sentence_transformers", "Bert, cls, Normalize", "text"),
    ],
)
def test_a_tower(tiny_config: Callable, tmp_path: Path, library: str, name: str, kind: str) -> None:
    folder = write(tmp_path / "weights", library, name)
    config = tiny_config(**{"total_steps": 2, "checkpoint.every_steps": 2})
    assert_numbers(train_from(config, kind, folder, tmp_path / "run"), tmp_path / "run")


@pytest.mark.parametrize(
    ("library", "name", "objective"),
    [("transformers", "CLIP", "infonce"), ("transformers", "Siglip", "sigmoid")],
)
def test_two_towers(
    tiny_config: Callable,
    tmp_path: Path,
    tokenizer_folder: Path,
    library: str,
    name: str,
    objective: str,
) -> None:
    folder = write(tmp_path / "weights", library, name)
    encoder.copy_tokenizer(tokenizer_folder, folder)
    changes = {"objective.name": objective, "total_steps": 2, "checkpoint.every_steps": 2}
    config = tiny_config(**changes)
    with config.unlocked():
        for kind in ("image", "text"):
            tower = from_pretrained(folder, tower=kind)
            registry = {"image": IMAGE_TOWERS, "text": TEXT_TOWERS}[kind]
            config.model[kind].name, preset = next(
                (n, p) for n, p in registry.items() if p.tower is type(tower)
            )
            config.model[kind].overrides = ConfigDict(
                {f: getattr(tower.config, f) for f in preset.fields if f not in ("mean", "std")}
            )
            config.model[kind].projection = "pretrained"
    config.model.pretrained, config.model.embed_dim = str(folder), None
    config.data.image_size = config.data.max_tokens = None
    config.objective.initial_scale = None
    if objective == "sigmoid":
        config.objective.initial_bias = None
    config = starting_point.complete(config)
    whole = from_pretrained(folder)
    assert config.objective.initial_scale == pytest.approx(math.exp(float(whole.log_scale[...])))
    if objective == "sigmoid":
        assert config.objective.initial_bias == pytest.approx(float(whole.logit_bias[...]))
    assert_numbers(train.train(config, tmp_path / "run"), tmp_path / "run")
    described = json.loads((tmp_path / "run" / "data.json").read_text())["images"]
    assert described["image_size"] == 32 and described["mean"] == list(whole.image.mean)


@pytest.mark.parametrize("form", ["weights.safetensors", "weights.ckpt", "ds.pt"])
def test_a_lone_file(tiny_config: Callable, tmp_path: Path, form: str) -> None:
    """Also as Lightning and DeepSpeed wrap it."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    weights = write(tmp_path / "weights", "timm", "resnet14t") / "model.safetensors"
    state = safetensors.load_file(weights)
    path = tmp_path / form
    if path.suffix == ".safetensors":
        safetensors.save_file(state, path)
    elif path.suffix == ".ckpt":
        named = {f"model.{name}": array for name, array in state.items()}
        torch.save({"epoch": 3, "state_dict": named, "optimizer_states": []}, path)
    else:
        named = {f"module.{name}": array for name, array in state.items()}
        torch.save({"module": named, "global_steps": 7}, path)
    config = tiny_config(**{"total_steps": 2, "checkpoint.every_steps": 2})
    assert_numbers(train_from(config, "image", path, tmp_path / "run"), tmp_path / "run")
