"""The notebooks agree with their scripts, hold no outputs, and run from top to bottom."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
NAMES = [path.stem for path in SCRIPTS]
pytestmark = pytest.mark.notebooks


def sources(notebook: dict) -> list[tuple[str, str]]:
    return [(cell["cell_type"], cell["source"]) for cell in notebook["cells"]]


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_notebook_is_what_its_script_says(script: Path) -> None:
    import jupytext
    import nbformat

    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    assert sources(notebook) == sources(jupytext.read(script))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "%pip install" in code[0].source and "runtime" in notebook.cells[0].source


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_notebook_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    # As on a machine of one's own: neither the suite's eight devices nor its slower machine code.
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTTER_JAX_SMALL", "1")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
