"""Tests of reading arrays from files and folders, whatever is wrapped around them."""

import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from otter_jax.models.checkpoint_files import find_weights, read_checkpoint, strip_prefixes
from otter_jax.models.torch_files import LEGACY_MAGIC, LEGACY_PROTOCOL

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}


def write_sharded(folder: Path) -> Path:
    """A folder with its weights in two files, as Hugging Face writes it."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    places = {}
    for number, (name, array) in enumerate(ARRAYS.items(), start=1):
        places[name] = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: array}, folder / places[name])
    write_index(folder, places)
    return folder


def write_index(folder: Path, places: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_weights_in_several_files_are_put_together(tmp_path: Path):
    checkpoint = read_checkpoint(write_sharded(tmp_path / "model"))
    assert checkpoint.fields == {"model_type": "bert"}
    assert checkpoint.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(checkpoint.arrays[name], array)


def test_an_index_that_lies_is_refused(tmp_path: Path):
    folder = write_sharded(tmp_path / "model")
    save_file(ARRAYS, tmp_path / "outside.safetensors")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), 3):
        write_index(folder, {"b": name})
        with pytest.raises(ValueError, match="should map every weight to the name of a file"):
            read_checkpoint(folder)
    write_index(folder, {"b": "model-00009.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"lists model-00009\.safetensors, which is not"):
        read_checkpoint(folder)
    write_index(folder, {"c": "model-00001-of-00002.safetensors"})
    with pytest.raises(ValueError, match=r"lists c, which model-00001\S+ does not hold"):
        read_checkpoint(folder)


def test_safetensors_go_before_pickles(tmp_path: Path):
    folder = write_sharded(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert find_weights(folder).name == "model.safetensors.index.json"
    assert find_weights(tmp_path) is None


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a", "b.c"], ["a", "b.c"]),
        (["module.a", "module.b"], ["a", "b"]),
        (["module._orig_mod.a"], ["a"]),
        (["module.student.a", "module.teacher.a", "module.dist_loss.T_s"], ["a", "dist_loss.T_s"]),
        (["student.module.a", "teacher.module.a"], ["a"]),
        (["modules.a"], ["modules.a"]),
    ],
)
def test_prefixes_are_taken_off(names: list[str], wanted: list[str]):
    assert list(strip_prefixes({name: np.zeros(1) for name in names})) == wanted


@pytest.mark.parametrize("wrappers", [[], ["state_dict"], ["model"], ["model", "state_dict"]])
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pt", ".bin"])
def test_wrappers_are_taken_off(tmp_path: Path, wrappers: list[str], suffix: str):
    content: dict = {}
    for name in reversed(wrappers):
        content = {name: content, "epoch": 3, "optimizer": {"state": {}, "lr": [0.1]}}
    stream = io.BytesIO()
    for part in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True}, content, []):
        stream.write(pickle.dumps(part, 2))
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(stream.getvalue() + struct.pack("<q", 0))
    assert read_checkpoint(path).arrays == {}


def test_other_files_of_a_folder_give_hints(tmp_path: Path):
    folder = write_sharded(tmp_path / "model")
    assert read_checkpoint(folder).hints == {}
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    wanted = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert read_checkpoint(folder).hints == wanted
    (folder / "preprocessor_config.json").unlink()
    timm = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (folder / "config.json").write_text(json.dumps(timm))
    hints = read_checkpoint(folder).hints
    assert hints == {"mean": (0.1, 0.2, 0.3), "resize": ("shortest", 0.875, "bicubic")}


def test_a_folder_of_open_clip_has_its_own_description(tmp_path: Path):
    save_file(ARRAYS, tmp_path / "open_clip_model.safetensors")
    settings = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [1, 2, 3]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.fields is None and checkpoint.open_clip == settings
    assert checkpoint.hints == {"mean": (1, 2, 3), "resize": ("shortest", 1.0, "bicubic")}
