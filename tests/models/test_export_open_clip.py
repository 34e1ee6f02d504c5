"""What is written for open_clip says what the model is, in open_clip's own arithmetic."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from models.test_export import dual_encoder

from otter_jax.models import open_clip_files
from otter_jax.models.dual_encoder import DualEncoder
from otter_jax.models.export_open_clip import export_open_clip


def change(model: DualEncoder, **settings: Any) -> None:
    """Give both towers' descriptions other settings, and leave the weights as they are."""
    for tower in (model.image, model.text):
        names = {field.name for field in dataclasses.fields(tower.config)}
        known = {name: value for name, value in settings.items() if name in names}
        tower.config = dataclasses.replace(tower.config, **known)


def written(model: DualEncoder, folder: Path) -> dict[str, Any]:
    assert export_open_clip(model, folder, {})
    return json.loads((folder / "open_clip_config.json").read_text())


@pytest.mark.parametrize("inside", [61, 104, 115])
def test_a_perceptron_is_as_wide_in_open_clip(tmp_path: Path, inside: int) -> None:
    model = dual_encoder("clip vit", "clip text", "linear_no_bias")
    change(model, hidden_size=14, num_attention_heads=2, intermediate_size=inside)
    described = written(model, tmp_path)["model_cfg"]
    for part in ("vision_cfg", "text_cfg"):  # As open_clip's transformer reckons.
        assert int(described[part]["width"] * described[part]["mlp_ratio"]) == inside


@pytest.mark.parametrize("strip", [False, True])
def test_captions_are_read_as_here(tmp_path: Path, strip: bool) -> None:
    model = dual_encoder("clip vit", "clip text", "linear_no_bias")
    change(model, cleaning="canonical", strip_separator=strip)
    text = open_clip_files.describe("text", written(model, tmp_path))
    assert text.settings == {"cleaning": "canonical", "strip_separator": strip}
