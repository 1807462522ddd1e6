"""`dynasurge table`: pages hold what their commands print, and mistakes cost one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import assert_one_line
from readers import markdown

from dynasurge.cli.main import main
from dynasurge.cli.table import refreshed, table

ROOT = Path(__file__).parents[2]
PAGES = [
    page for page in sorted(ROOT.glob("docs/*/*.md")) if "<!-- dynasurge table" in page.read_text()
]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_a_page_shows_what_its_records_say(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert refreshed(page) == page.read_text(), "run: dynasurge table --refresh " + str(page)


def test_a_page_is_refreshed_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = tmp_path / "page.md"
    page.write_text(
        "Before\n\n<!-- dynasurge table docs/data/7b --T 1 -->\nold\n<!-- end -->\n\nAfter\n"
    )
    assert main(["table", "--refresh", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("Before\n\n")
    assert text.endswith("<!-- end -->\n\nAfter\n")
    assert "old" not in text
    (rows,) = markdown(text).values()
    assert {row["T"] for row in rows} == {"1"}


@pytest.mark.parametrize(
    "text",
    [
        "<!-- dynasurge table docs/data/7b -->\nold\n",
        "<!-- dynasurge table A -->\nText\n<!-- dynasurge table docs/data/7b -->\n<!-- end -->\n",
        "<!-- dynasurge table docs/data/7b 'x -->\n<!-- end -->\n",
        "<!-- dynasurge table --help -->\n<!-- end -->\n",
    ],
)
def test_a_page_that_cannot_be_refreshed_stays(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("<!-- dynasurge table docs/data/7b --T 1 -->\nold\n<!-- end -->\n")
    bad.write_text(text)
    assert main(["table", "--refresh", str(good), str(bad)]) == 2
    assert f"--refresh {bad}: " in capsys.readouterr().err
    assert bad.read_text() == text
    assert "old" in good.read_text(), "no page is written before all could be"


def test_rows_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (rows,) = markdown(
        table(["docs/data/7b", "--T", "0.6", "--labels", "auto", "dTree B=64"])
    ).values()
    assert [row["tree"] for row in rows] == ["auto", "dTree B=64"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "FOLDER None: a table is printed from a folder of records"),
        (["docs/data/7b", "--T", "1", "3"], "--T 3.0: is in no row; choose among: 0.0, 0.6, 1.0"),
        (["docs/data/7b", "--labels", "auto", "EAGLE"], "--labels EAGLE: is in no row; choose"),
        (["docs/data/7b", "--labels", "auto", "--trees"], "records auto alone: there is no tree"),
        (["docs/data/7b", "docs/data/trees"], "have different values of device: "),
        (
            ["docs/data/7b", "--labels", "auto", "chain3", "--predictions"],
            "records predicted: no row knows what its slots",
        ),
        (
            ["docs/data/7b", "--trees", "latency_per_token_s"],
            "invalid choice: 'latency_per_token_s'",
        ),
        (["docs/data/7b", "--trees", "--predictions"], "not allowed with argument --trees"),
        (["--refresh", "README.md", "--T", "1"], "--refresh and more: pages name their own"),
        (["docs/data/7b", "--against", "EAGLE"], "--against EAGLE: is no setting there"),
        (["nowhere"], "records nowhere: cannot be read"),
        (["--refresh", "nowhere.md"], "--refresh nowhere.md: cannot be read"),
    ],
)
def test_mistakes(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    assert main(["table", *flags]) == 2
    assert_one_line(message, capsys)
