"""What docs/extending.md shows works: a project outside the repository trains with its files."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import flags_for

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"^```python\n# (\w+\.py)\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.M | re.S
)


@pytest.fixture
def project(tmp_path: Path, shape_pairs: list, tokenizer_folder: Path) -> Path:
    for name, code in BLOCKS:
        (tmp_path / name).write_text(code)
    rows = []
    for number, (image, caption) in enumerate(shape_pairs):
        (tmp_path / f"{number}.png").write_bytes(image)
        rows.append([f"{number}.png", caption, caption.split()[-1]])
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "classes.json").write_text(json.dumps(rows[::2]))
    # A small text tower, since the quickstart's is a package.
    text = dict(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=32, max_position_embeddings=32)  # fmt: skip
    (tmp_path / "small.py").write_text(
        "import experiment\n\n\ndef get_config():\n    config = experiment.get_config()\n"
        f"    with config.unlocked():\n        config.model.text.overrides.update({text})\n"
        "    config.model.text.pretrained, config.model.text.frozen = None, False\n"
        f"    config.model.text.tokenizer = {str(tokenizer_folder)!r}\n"
        "    config.model.embed_dim, config.batch_size, config.total_steps = 16, 16, 3\n"
        "    config.optimizer.warmup_steps = 0\n    return config\n"
    )
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "otter_jax", *arguments],
        cwd=project,
        env=os.environ | flags_for(devices=1) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_examples_are_short() -> None:
    assert {name for name, _ in BLOCKS} == {
        "experiment.py", "top_k.py", "patch_tower.py", "triples.py",
    }  # fmt: skip
    for name, code in BLOCKS:
        assert len([line for line in code.splitlines() if line.strip()]) <= 30, name


def test_a_project_of_its_own_trains_evaluates_and_is_loaded(project: Path) -> None:
    trained = run(project, "train", "--config=small.py", "--config.data.train=triples:train.json")
    assert trained.returncode == 0, trained.stderr
    results = json.loads((project / "runs" / "small" / "results.json").read_text())
    assert set(results["shapes:classes.json"]) == {
        "hit@1",
        "hit@2",
    }  # Of more classes than there are, nothing is told.
    assert (
        json.loads((project / "runs" / "small" / "config.json").read_text())["objective"]["k"] == 3
    )
    loaded = subprocess.run(
        [sys.executable, "-c", "import experiment, otter_jax; m = otter_jax.load('runs/small')\n"
         "m.save('exported')\nagain = otter_jax.load('exported')\n"
         "print(m.classify(['0.png'], ['ring', 'bar']).shape)\n"
         "print(abs(m.encode_image('0.png') - again.encode_image('0.png')).max() < 1e-6)"],
        cwd=project, env=os.environ | flags_for(devices=1) | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert loaded.stdout.split("\n")[:2] == ["(1, 2)", "True"], loaded.stderr


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.objective.epsilon=0.1", "top_k has no epsilon; otter, declip and slip have"),
        ("--config.objective.tile=8", "'top_k': its target TopK is not computed in tiles"),
        ("--config.data.train=triplets:train.json", "unknown data source 'triplets:train.json'"),
    ],
)
def test_what_does_not_fit_is_named(project: Path, argument: str, message: str) -> None:
    data = [] if "data.train" in argument else ["--config.data.train=triples:train.json"]
    result = run(project, "train", "--config=small.py", *data, argument)
    assert result.returncode != 0 and message in result.stderr
    assert "Traceback" not in result.stderr
