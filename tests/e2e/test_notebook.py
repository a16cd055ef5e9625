"""A run in a notebook, executed as Jupyter does."""

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat

CODE = """
from evolora import evolve, resume
result = evolve(model={model!r}, data={data!r}, reward={reward!r}, gens=2, pop=2, elites=1, rl_steps=1, out={out!r})
"""


def test_a_notebook_shows_what_a_terminal_shows(toy: Any, tmp_path: Path) -> None:
    cells = [
        CODE.format(model=str(toy.model), data=str(toy.data), reward=toy.reward, out=str(tmp_path / "run")),
        f"resume({str(tmp_path / 'run')!r}, gens=3, view=None).history[-1]['generation']",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    done = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown, silent = (cell["outputs"] for cell in done["cells"])
    (picture,) = [output for output in shown if output["output_type"] == "display_data"]
    text = re.sub(r"<[^>]*>", "", picture["data"]["text/html"])
    for said in ("generation 2 of 2", "ended", "100%", "reward", "base", "validation", "prompt", "Translate"):
        assert said in text, text
    lines = "".join(output["text"] for output in shown if output["output_type"] == "stream").splitlines()
    assert [line.split()[1] for line in lines if line.startswith("gen ")] == ["1/2", "2/2"]
    assert [output["data"]["text/plain"] for output in silent if "data" in output] == ["3"]
    assert all(output["output_type"] != "stream" for output in silent), silent
    assert "Loading weights" not in str(shown)
