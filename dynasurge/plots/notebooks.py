"""Notebooks as programs: run one with parameters, and keep the committed ones clean.

    python -m dynasurge.plots.notebooks notebooks/*.ipynb            # run each with its defaults, and clean it in place

A committed notebook has its outputs, so that it can be read without running it. It has nothing of
the machine that made them: no execution counts, timestamps, warnings or widget state. `make
notebooks` is this command. Tests compare the committed files with `clean`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import papermill
from nbformat import NotebookNode, writes

from dynasurge.errors import UsageError
from dynasurge.files import write_whole

WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def run(
    path: Path, parameters: Mapping[str, Any] | None = None, *, output: Path | None = None
) -> Any:
    """Execute a notebook in its own folder. Returns an nbformat notebook with outputs.

    parameters: values for names in its `parameters` cell. output: where to write it; None writes
    nothing. Raises UsageError for an unknown parameter, and papermill's PapermillExecutionError if
    a cell fails.
    """
    known = papermill.inspect_notebook(path)
    for name, value in (parameters or {}).items():
        if name not in known:
            raise UsageError(
                name, value, f"no parameter of {path.name}", f"choose one of {', '.join(known)}"
            )
    return papermill.execute_notebook(
        path,
        output,
        dict(parameters or {}),
        kernel_name=KERNEL["name"],
        cwd=path.parent,
        progress_bar=True,
    )


def clean(notebook: Any) -> Any:
    """A copy of an nbformat notebook without traces of the machine that ran it. Cells keep their
    tags."""
    notebook = deepcopy(notebook)
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(KERNEL), language_info=NotebookNode(name="python")
    )
    for cell in notebook.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag != "injected-parameters"]
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.execution_count = None
            kept = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" and not _bar(output)
            ]
            cell.outputs = [_clean_output(output) for output in kept]
    return notebook


def _bar(output: Any) -> bool:
    """Whether an output is a progress bar: a widget with no other data than text."""
    data = output.get("data", {})
    return WIDGET in data and data.keys() <= {WIDGET, "text/plain"}


def _clean_output(output: Any) -> Any:
    if "execution_count" in output:
        output.execution_count = None
    if "metadata" in output:
        output.metadata = NotebookNode()
    if len(output.get("data", {})) > 1:
        output.data.pop(
            WIDGET, None
        )  # without its state a widget is empty; the picture next to it stays
    return output


def main(paths: list[str]) -> None:
    """Run and clean these notebooks in place."""
    for path in map(Path, paths):
        notebook = clean(run(path))
        with write_whole(path) as partial:
            partial.write_text(writes(notebook), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
