"""Prompts from the bundled set, from files of four formats, and from a hub that is replaced at its
boundary."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pytest
from huggingface_hub import HfApi

from dynasurge import UsageError
from dynasurge.experiments.datasets import HUB_DATASETS, HubDataset, load_prompts


def test_the_bundled_prompts() -> None:
    prompts = load_prompts("demo")
    assert len(prompts) >= 40
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == len(prompts)
    kinds = Counter(p.kind for p in prompts)
    assert set(kinds) == {
        "news",
        "encyclopedia",
        "story",
        "dialogue",
        "code",
        "table",
        "instruction",
    }
    assert set(kinds.values()) == {8}
    assert {p.kind for p in prompts[:7]} == set(kinds), "any seven in a row show every kind"
    assert min(len(p.text.split()) for p in prompts if p.kind not in ("code", "table")) >= 130


def test_ranges() -> None:
    everything = load_prompts("demo")
    assert load_prompts("demo", 3, 5) == everything[3:5]
    assert load_prompts("demo", 50) == everything[50:]
    with pytest.raises(UsageError, match=r"--end 57: --dataset demo has 56 rows; use --end 56"):
        load_prompts("demo", 0, 57)


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
def test_local_files(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts.{suffix}"
    frame = pd.DataFrame({"article": ["one café", "two", "three"]})
    if suffix == "txt":
        path.write_text("one café\n\ntwo\nthree\n", encoding="utf-8")
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    prompts = load_prompts(str(path), 0, 2)
    assert [(p.index, p.id, p.text) for p in prompts] == [(0, "0", "one café"), (1, "1", "two")]
    assert len(load_prompts(str(path))) == 3


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The hub as far as this project sees it: it tells a dataset's commit, and serves its rows,
    here from a folder.

    `datasets` itself streams them, so what is fetched can be counted where it reads lines.
    """

    def __init__(self, folder: Path, source: HubDataset, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Any] = []
        data = folder / "hub"
        data.mkdir()
        for number in range(2):  # two files, of which the second should never be opened
            rows = [
                json.dumps({source.field: f"row {100 * number + i}", "other": i})
                for i in range(100)
            ]
            (data / f"{source.split}-{number}.jsonl").write_text("\n".join(rows) + "\n")
        (data / f"{source.split}-1.jsonl").write_text("{torn")
        real = datasets.load_dataset

        def load_dataset(path: str, config: str | None, **options: Any) -> Any:
            self.asked.append(
                (path, config, options["split"], options["revision"], options["streaming"])
            )
            return real(str(data), split=options["split"], streaming=options["streaming"])

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(HfApi, "dataset_info", lambda _, path: SimpleNamespace(sha=COMMIT))


@pytest.mark.parametrize("name", HUB_DATASETS)
def test_hub_datasets_are_streamed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = HUB_DATASETS[name]
    hub = Hub(tmp_path, source, monkeypatch)
    prompts = load_prompts(name, 5, 8)
    assert hub.asked == [(source.path, source.config, source.split, COMMIT, True)]
    assert [(p.index, p.text) for p in prompts] == [(5, "row 5"), (6, "row 6"), (7, "row 7")]
    assert {p.revision for p in prompts} == {COMMIT}


def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(tmp_path, HUB_DATASETS["c4"], monkeypatch)
    assert len(load_prompts("c4", 0, 100)) == 100, "the second file, which is torn, is not opened"
    with pytest.raises(UsageError, match="cannot be fetched from the hub"):
        load_prompts("c4", 0, 101)


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach the hub\nwith details")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    with pytest.raises(UsageError) as caught:
        load_prompts("cnn")
    line = str(caught.value)
    assert line.startswith("--dataset cnn: ")
    assert "Couldn't reach the hub" in line
    assert "--dataset demo" in line, "what needs no network"
    assert "\n" not in line


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    (first,) = load_prompts(str(path))
    path.write_text("two\n")
    (second,) = load_prompts(str(path))
    assert first.revision.startswith("sha256:")
    assert first.revision != second.revision


def test_odd_but_valid_files(tmp_path: Path) -> None:
    bom, csv = tmp_path / "bom.jsonl", tmp_path / "ids.csv"
    bom.write_text('{"text": "one\u2028line"}\n', encoding="utf-8-sig")
    csv.write_text("id,kind,text\n,,first\nb,news,second\n")
    assert [p.text for p in load_prompts(str(bom))] == ["one\u2028line"]
    assert [(p.id, p.kind) for p in load_prompts(str(csv))] == [("0", ""), ("b", "news")]
    csv.write_text("id,text\nNA,null\n,None\n")
    assert [(p.id, p.text) for p in load_prompts(str(csv))] == [("NA", "null"), ("1", "None")]
    lists = tmp_path / "lists.parquet"
    pd.DataFrame({"id": [["a", "b"]], "text": ["one"]}).to_parquet(lists)
    assert [p.text for p in load_prompts(str(lists))] == ["one"]


@pytest.mark.parametrize("content", ['{"text": "\\ud800"}', "[" * 100_000])
def test_files_that_are_no_text_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(UsageError, match="cannot be read"):
        load_prompts(str(tmp_path / "bad.jsonl"))
