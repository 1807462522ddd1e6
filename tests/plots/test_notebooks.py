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
import yaml

from dynasurge import Settings, UsageError
from dynasurge.cli.flags import DEFAULTS as FLAGS
from dynasurge.cli.flags import GROWMAP
from dynasurge.plots.notebooks import WIDGET, clean, run

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
PARAMETERS = sorted((NOTEBOOKS[0].parent / "parameters").glob("*.yaml"))
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
TINY = {"new_tokens": 6, "prompt_len": 24, "M": 200, "growmap": "2x2", "end": 2}
TUTORIALS = ("00_quickstart", "01_tree_construction")
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
def test_prose_stands_where_something_needs_it_and_code_is_short(path: Path) -> None:
    kinds = "".join(cell.cell_type[0] for cell in cells(path))
    assert re.fullmatch(r"m[mc]*m", kinds), "a beginning and an end in words"
    assert "mm" not in kinds, "one cell of prose at a time"
    assert "ccc" not in kinds
    code = [cell for cell in cells(path) if cell.cell_type == "code"]
    for cell in code:
        parameters = "parameters" in cell.metadata.get("tags", [])
        assert parameters or len(cell.source.splitlines()) <= 17
        own = "own" in cell.metadata.get("tags", [])  # what the reader is to change
        assert own or not re.search(r"sys\.path|^\s*(def|class) ", cell.source, re.MULTILINE), (
            "code belongs in the package"
        )


def test_parameters_are_explained_once_and_all_of_them() -> None:
    (table, *others) = [path for path in NOTEBOOKS if "| parameter |" in path.read_text()]
    assert not others
    explained = {
        name
        for line in re.findall(
            r"^\| (.*?) \|", "\n".join(c.source for c in cells(table)), re.MULTILINE
        )
        for name in re.findall(r"`(\w+)`", line)
    }
    assert explained == set(papermill.inspect_notebook(table))


@pytest.mark.parametrize("path", PARAMETERS, ids=[path.stem for path in PARAMETERS])
def test_parameter_files_fit_every_notebook(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    for notebook in NOTEBOOKS:
        own = set(papermill.inspect_notebook(notebook))
        assert "draft" not in own or set(values) <= own, "a notebook with models takes them all"
    names = {"draft", "target", "T", "P", "B", "M", "growmap", "policy", "new_tokens", "dataset"}
    Settings(
        **{name: value for name, value in values.items() if name in names - {"dataset"}}
        | {"mode": "sTree"}
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
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1_100_000


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
def test_it_runs_and_shows_what_is_committed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small parameters. Cells tagged `same` must show the committed output, cells tagged
    `close` the committed numbers up to what another number type changes."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny = {name: value for name, value in TINY.items() if name in papermill.inspect_notebook(path)}
    if path.stem in TUTORIALS:
        tiny = {"new_tokens": 32, "growmap": "2x2"}  # at the committed prompt
    done = run(path, tiny, output=tmp_path / path.name)
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert sum(bool(cell.outputs) for cell in code) > len(code) / 2
    shown = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert shown & {"image/svg+xml", "image/png"}
    committed = {cell.id: cell for cell in cells(path)}
    for cell in code:
        if "same" in cell.metadata.get("tags", []):
            assert [what(o) for o in clean(done).cells[done.cells.index(cell)].outputs] == [
                what(o) for o in committed[cell.id].outputs
            ], f"run: make notebooks ({cell.id})"
        if "close" in cell.metadata.get("tags", []):
            mine, theirs = values(cell), values(committed[cell.id])
            both = mine.keys() & theirs.keys()
            assert len(both) > 0.7 * len(theirs), f"run: make notebooks ({cell.id})"
            assert all(mine[key] == pytest.approx(theirs[key], abs=0.05) for key in both)


def what(output: Any) -> Any:
    """What a reader sees of an output: its picture, otherwise its text."""
    data = output.get("data", {})
    return data.get("image/png", output.get("text", data.get("text/plain")))


def values(cell: Any) -> dict[str, list[float]]:
    """The last two numbers of each line of a table, by the line's first words."""
    lines = (line.split() for line in what(cell.outputs[0]).splitlines()[1:])
    return {" ".join(words[:-2]): [*map(float, words[-2:])] for words in lines}
