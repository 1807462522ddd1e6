"""The notebooks: they run, their parameters are the command's, and what is committed is light and
free of machine noise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest

from dynasurge import UsageError
from dynasurge.cli.flags import DEFAULTS as FLAGS
from dynasurge.cli.flags import GROWMAP
from dynasurge.plots.notebooks import WIDGET, clean, run

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
DEFAULTS = FLAGS | {
    "dataset": "demo",
    "start": 0,
    "end": None,
    "growmap": Path(GROWMAP).stem.removesuffix(
        "-tree"
    ),  # where a notebook draws static trees, it needs one
    "records": "",  # what `make figures` sets: a folder to draw from
    "output": None,
}
TINY = {"new_tokens": 12, "prompt_len": 24, "M": 200, "growmap": "2x2", "end": 2}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def cells(path: Path) -> list[Any]:
    return list(nbformat.read(path, as_version=4).cells)


@each
def test_parameters_have_the_commands_names_and_defaults(path: Path) -> None:
    parameters = papermill.inspect_notebook(path)
    assert parameters
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells(path)) == 1
    defaults = DEFAULTS | {"T": 0.6, "P": 1.0}  # the law that the notebooks show
    for name, about in parameters.items():
        assert name in DEFAULTS, f"{name} is no flag"
        assert about["default"] == repr(defaults[name]).replace("'", '"')


@each
def test_prose_surrounds_short_code(path: Path) -> None:
    kinds = "".join(cell.cell_type[0] for cell in cells(path))
    assert re.fullmatch(r"(mmc)+m", kinds), "two cells of prose to each of code, and one at the end"
    code = [cell.source for cell in cells(path) if cell.cell_type == "code"]
    for number, source in enumerate(code):
        assert len(source.splitlines()) <= (20 if number == 1 else 16), (
            "parameters are as many as they are"
        )
        assert not re.search(r"sys\.path|^\s*(def|class) ", source, re.MULTILINE), (
            "code belongs in the package"
        )


@each
def test_what_is_committed_has_outputs_and_nothing_of_the_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook == clean(notebook), "run: make notebooks"
    text = path.read_text(encoding="utf-8")
    assert not re.search(
        r"/(home|root|tmp|work|Users|usr)/|Warning|Traceback|image/svg\+xml\": \[\]", text
    )
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_the_hook_would_change_nothing() -> None:
    """The pre-commit hook and `clean` agree on what a committed notebook is."""
    command = [
        sys.executable,
        "-m",
        "nbstripout",
        "--keep-output",
        "--keep-id",
        "--verify",
        *map(str, NOTEBOOKS),
    ]
    assert subprocess.run(command, check=False).returncode == 0


def test_all_that_is_committed_stays_light() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1_000_000


def test_cleaning_keeps_what_readers_see_and_drops_the_rest() -> None:
    output = nbformat.v4.new_output(
        "execute_result",
        {"text/plain": "VBox()", "image/svg+xml": "<svg/>", WIDGET: {"model_id": "1"}},
        execution_count=7,
        metadata={"isolated": True},
    )
    noise = nbformat.v4.new_output("stream", name="stderr", text="a warning")
    cell = nbformat.v4.new_code_cell("1", outputs=[noise, output], execution_count=7)
    cell.metadata = nbformat.from_dict({"tags": ["parameters"], "papermill": {"duration": 0.1}})
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {}, "widgets": {}})
    (kept,) = clean(notebook).cells
    assert kept.execution_count is None
    assert kept.metadata == {"tags": ["parameters"]}
    assert [sorted(out.data) for out in kept.outputs] == [["image/svg+xml", "text/plain"]]
    assert "widgets" not in clean(notebook).metadata
    assert cell.execution_count == 7, "the original is left alone"


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"budget 4: no parameter of 00_quickstart\.ipynb; choose one of .*growmap"
    ):
        run(NOTEBOOKS[0], {"budget": 4})


@pytest.mark.slow
@each
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parameters = {
        name: value for name, value in TINY.items() if name in papermill.inspect_notebook(path)
    }
    done = run(path, parameters, output=tmp_path / path.name)
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 2
    shown = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert shown & {"image/svg+xml", "image/png"}
