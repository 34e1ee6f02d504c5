"""What the site has beside the pages of docs/: the reference, made from docstrings and config keys.

The pages link to files of the repository, which are not on the site: there they are named only.
"""

import re
from itertools import groupby

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from otter_jax import config as config_lib

# What users call, in the order in which they meet it.
MODULES = (
    "otter_jax.embedding.encoder",
    "otter_jax.train",
    "otter_jax.evaluate",
    "otter_jax.objectives.methods",
    "otter_jax.objectives.targets",
    "otter_jax.objectives.sinkhorn",
    "otter_jax.objectives.losses",
    "otter_jax.objectives.declip",
    "otter_jax.data.sources",
    "otter_jax.evaluation.sets",
    "otter_jax.evaluation.metrics",
    "otter_jax.evaluation.comparison",
    "otter_jax.embedding.trust",
    "otter_jax.models.pretrained",
    "otter_jax.runs.history",
)
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]*\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for name, text in (("config", describe_config()), ("api", describe_modules())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name the files of the repository instead of linking to them."""
    return OUTSIDE.sub(lambda found: f"`{found[1].strip('`')}`", markdown)


def describe_config() -> str:
    """Return a table of the config's keys for each of its sections."""
    lines = [
        "# Config keys",
        "",
        "`--config.KEY=VALUE` sets one; `otter-jax train --help` lists all.",
    ]
    keys = list(config_lib.describe_keys())
    for section, found in groupby(keys, key=lambda entry: entry[0].rpartition(".")[0]):
        lines += [
            "",
            f"## {section or 'Of no section'}",
            "",
            "| key | default | meaning |",
            "|---|---|---|",
        ]
        lines += [f"| `{key}` | {_code(default)} | {_cell(text)} |" for key, default, text in found]
    return "\n".join(lines) + "\n"


def describe_modules() -> str:
    """Return a page that has every public name of the modules."""
    return "# Functions and classes\n\n" + "\n\n".join(
        f"## {module}\n\n::: {module}\n    options:\n      heading_level: 3" for module in MODULES
    )


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
