"""Whatever the pages name exists: links, headings, files, presets, keys, commands, programs."""

import re
from pathlib import Path

import pytest

from otter_jax import config
from otter_jax.commands.main import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
# It shows a project of its own, with a config and keys of its own; tests/test_extending.py runs it.
OURS = [page for page in PAGES if page.name != "extending.md"]
CHANGELOG = ROOT / "CHANGELOG.md"  # It also names what is no more.
# Where a path may begin whose beginning is left out.
FOLDERS = (ROOT, ROOT / "otter_jax", ROOT / "docs")
PLACEHOLDERS = {"NAME", "X"}  # Of a config's name.


def named(pattern: str, *files: Path) -> set[tuple[str, str]]:
    """Return the name of a file and what a pattern finds in it, for all files."""
    return {
        (file.name, found)
        for file in files
        for found in re.findall(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    }


def anchors(page: Path) -> set[str]:
    """Return the anchors that hosting sites make of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def is_dead(page: Path, link: str) -> bool:
    """Return whether a relative link leads to no file, or to no heading of a page."""
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return not target.exists() or bool(anchor and anchor not in anchors(target))


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and is_dead(page, link)] == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("## Which captions are wrong?\n")
    alive = ("page.md", "#which-captions-are-wrong", "page.md#which-captions-are-wrong")
    assert not any(is_dead(page, link) for link in alive)
    assert all(is_dead(page, link) for link in ("none.md", "#other", "page.md#other"))


def test_files_exist() -> None:
    found = named(r"(?<![\w/.{*-])((?:[a-z]\w*/)+\w+\.(?:py|sh|md|lock))\b", *PAGES)
    found = {each for each in found if Path(each[1]).stem not in PLACEHOLDERS}
    assert len(found) > 20
    assert {each for each in found if not any((at / each[1]).exists() for at in FOLDERS)} == set()


def test_the_rooms_exist() -> None:
    tree = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("## The floors")[0]
    rooms = {"    ": [], "      ": []}  # By indentation: in the repository, in the package.
    for indent, line in re.findall(r"^( {4}| {6})(\w.*)$", tree, re.MULTILINE):
        names = line.split("  ")  # Two spaces stand behind a name.
        rooms[indent] += [name for name in names if re.fullmatch(r"[\w/]+(\.py|/)", name)]
    missing = [name for name in rooms["    "] if not (ROOT / name).exists()]
    missing += [name for name in rooms["      "] if not (ROOT / "otter_jax" / name).exists()]
    assert len(rooms["    "]) >= 8 and len(rooms["      "]) >= 15
    assert missing == []


def test_presets_exist() -> None:
    files = [*OURS, *ROOT.glob("configs/*.py"), *ROOT.glob("launch/*")]
    found = {
        name for _, name in named(r"--config[= ](?:configs/)?(\w+)\b(?!/)", *files)
    } - PLACEHOLDERS
    assert {"quickstart", "otter_rn50"} <= found
    assert {name for name in found if not (ROOT / f"configs/{name}.py").exists()} == set()


def test_config_keys_exist() -> None:
    found = named(r"--config\.([a-z_.0-9]+)=", *OURS)
    groups = "data|model|objective|teacher|trust|optimizer|checkpoint|evaluate"
    found |= named(rf"`((?:{groups})\.[a-z_.0-9]+)(?:=[^`]*)?`", *OURS)
    files = (".csv", ".json", ".npz", ".parquet", ".png", ".py", ".md")
    keys = {key for _, key in found if not key.endswith(files)} - {"model.image", "model.text"}
    assert len(keys) > 20
    assert {key for key in keys if config.describe_unknown_key(key)} == set()


def test_commands_exist() -> None:
    found = {name for _, name in named(r"(?:`|^ +)otter-jax ([a-z]\w*)", *PAGES, CHANGELOG)}
    assert found >= {"train", "evaluate", "inspect", "prepare", "export", "compare"}
    assert found - set(COMMANDS) == set()


def test_programs_exist() -> None:
    found = named(r"python -m ((?:studies|otter_jax)[\w.]*\w)", *PAGES)
    assert found
    modules = [ROOT / f"{name.replace('.', '/')}.py" for _, name in found]
    assert [module for module in modules if not module.exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_index_has_every_page() -> None:
    linked = {name for _, name in named(r"\]\((\w+\.md)\)", ROOT / "docs/README.md")}
    assert {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"} <= linked
