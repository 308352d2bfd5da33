"""The notebook runs from top to bottom, and is kept without outputs."""

import json

import pytest


def test_outputs_are_not_kept(root):
    for path in (root / "docs").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        kept = [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")]
        assert not kept, f"{path.name} has outputs in {kept}; clear them before the notebook is committed"


@pytest.mark.slow
def test_the_notebook_runs(root, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("GLOBALVIT_NOTEBOOK_EPOCHS", "1")
    notebook = nbformat.read(root / "docs" / "finetune.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "finetune_work" / "preview.png").is_file()
    images = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "image/png" in out.get("data", {})]
    assert len(images) >= 4
