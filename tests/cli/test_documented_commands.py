"""Every command that README, the guides and the growmaps' page show is run as it is written: in this
process, with a tiny pair and one prompt in the places of the models and the datasets that it names,
and for few tokens. Of commands of other programs the parts that are ours are checked."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dynasurge import Pair
from dynasurge.cli.main import main
from dynasurge.experiments.datasets import Prompt
from tools.train_draft.__main__ import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "growmaps/README.md", *sorted(ROOT.glob("docs/guides/*.md"))]
OURS = re.compile(r"^(?:dynasurge|python main\.py|accelerate launch .*-m dynasurge)(?: |$)")
TRAIN, OTHERS = "python -m tools.train_draft ", ("make ", "bash ", "jupyter lab ")
SMALL = "--start 0 --new-tokens 4 --prompt-len 6 --M 256 --device cpu --dtype float32"
BEFORE = {  # what a reader of the page has already
    "figures.md": ["sweep --mode auto dTree --T 0.6 --B 2 --output runs/mine"],
}
FILES = {  # what he wrote himself
    "law.md": ("mine.json", json.dumps({"do_sample": True, "temperature": 0.5})),
    "audit.md": (
        "my_module.py",
        "def my_rule(tree, p, q, chance):\n    return (), chance.token(p[0])",
    ),
}


def commands(page: Path) -> list[str]:
    """A page's commands in their order, without comments."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    found = []
    for line in re.findall(r"^    (.*)$", text, re.MULTILINE):
        if OURS.match(line) or line.startswith((TRAIN, *OTHERS)):
            found.append(shlex.join(shlex.split(line, comments=True)))
    return found


def small(line: str) -> list[str]:
    """A command of ours, with a size that a test can bear, as arguments: later flags win."""
    argv = shlex.split(re.sub(r"(--draft|--target) \.\.\.", r"\1 demo", OURS.sub("", line)))
    argv = [word for word in argv if word != "..."]
    argv = [word.replace("/shared/runs/", "runs/") for word in argv]
    decodes = not argv or argv[0].startswith("-") or argv[0] in ("sweep", "compare")
    rows = [] if "--prompt" in argv else ["--end", "1"]
    return [*argv, *([*SMALL.split(), *rows] if decodes else ())]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda p: p.stem)
def test_the_commands_of_a_page_run(
    page: Path, models: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "growmaps").symlink_to(ROOT / "growmaps")
    if page.name in FILES:
        name, text = FILES[page.name]
        (tmp_path / name).write_text(text)
    one = [Prompt(index=0, id="p", kind="", text="w3 w14 w15 w9 w26 w5")]
    for module in ("experiments.datasets", "experiments.baselines", "cli.calibrate"):
        monkeypatch.setattr(f"dynasurge.{module}.load_prompts", lambda *_, **__: one)
    monkeypatch.setattr("dynasurge.models.loading.load_generation_config", lambda *_, **__: {})
    monkeypatch.setattr(models.tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    for module in ("models.pair", "cli.calibrate", "cli.publish"):
        monkeypatch.setattr(f"dynasurge.{module}.load_pair", lambda **_: models)
    for line in [*BEFORE.get(page.name, []), *commands(page)]:
        if line.startswith(TRAIN):  # tests/tools runs them
            build_parser().parse_args(shlex.split(line.removeprefix(TRAIN)))
        elif line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif line.startswith(OTHERS):  # tests/cli/test_eval_sh.py; make notebooks
            assert (ROOT / shlex.split(line)[1 if line.startswith("bash") else 2]).is_file()
        else:
            assert main(small(line)) == 0, line
