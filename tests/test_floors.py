"""The floors of the house: no module imports from a room above its own, lazily or not."""

import ast
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "otter_jax"
FLOORS = [
    {"terminal", "json_files", "random_keys", "sharding"},
    {"objectives", "models", "data"},
    {"config", "preset_files"},
    {"runs"},
    {"embedding"},
    {"evaluation", "pictures"},
    {"training"},
    {"evaluate"},
    {"train"},
    {"commands"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_rooms(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and room of every import from the package, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == "otter_jax" and parts and parts[0] in FLOOR_OF:
                yield node.lineno, parts[0]


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upward(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for line, other in imported_rooms(ast.parse(path.read_text(encoding="utf-8"))):
        lower = FLOOR_OF[other] < FLOOR_OF[room]
        assert other == room or lower, f"{path}:{line} imports {other}, which is not below {room}"


# What every module of a kind offers under the same name.
COMMON = {"main", "load", "describe", "register"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


def test_a_name_means_one_thing_where_modules_meet() -> None:
    """No function or class is defined in two modules that import each other or meet in a third."""
    trees = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    defined = {
        name: {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
        } - COMMON
        for name, tree in trees.items()
    }  # fmt: skip
    clashes = set()
    for name, tree in trees.items():
        imported = {name}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                modules = {f"{node.module}.{alias.name}" for alias in node.names} & set(trees)
                imported |= modules or ({node.module} & set(trees))
        for one, other in itertools.combinations(sorted(imported), 2):
            shared = {each for each in defined[one] & defined[other] if each[0] != "_"}
            clashes |= {(one, other, each) for each in shared}
    assert not clashes


def test_no_two_test_files_are_called_alike() -> None:
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, times in names.items() if times > 1] == []  # pytest imports by name.
