"""Does a sweep that is killed at random moments end with the rows of one that was left alone?

    python benchmarks/killed_sweep.py --kills 20

Two tiny random models decode a grid of at least 1,000 (settings, prompt) pairs, once undisturbed
and once killed (SIGKILL) after random times, by default twenty times; every other life is a launch
of two processes of which one is killed. Rows are compared in all that does not depend on the clock:
settings, prompts, tokens, and what every step accepted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB, PROMPTS = 96, 24
SAME = (
    "label",
    "run",
    "dataset",
    "index",
    "prompt_ids",
    "output_ids",
    "accepted",
    "ranks",
    "children",
    "tree_size",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args.kills, random.Random(args.seed))


def run(root: Path, kills: int, chance: random.Random) -> None:
    """Sweep twice, and compare."""
    command = make_study(root)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command, str(root / "whole")],
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - start
    whole = rows(root / "whole")
    print(f"undisturbed: {len(whole)} rows in {seconds:.0f} s")
    cut = root / "cut"
    cut.mkdir()
    (cut / "costs.json").write_bytes(
        (root / "whole" / "costs.json").read_bytes()
    )  # a machine has one price list
    for life in range(kills):
        before = count(cut)
        wanted = chance.randrange(
            2 * len(whole) // (kills + 2)
        )  # so that every kill finds work to do
        killed = one_life(command, cut, before + wanted, chance.random(), launched=life % 2 == 1)
        print(f"life {life + 1}: {killed}, {count(cut) - before} rows more", flush=True)
    subprocess.run(
        [sys.executable, *command, str(cut)], env=ENVIRONMENT, check=True, capture_output=True
    )
    found = rows(cut)
    print(
        f"killed {kills} times: {len(found)} rows, {'the same' if sorted(found) == sorted(whole) else 'OTHERS'}"
    )
    if sorted(found) != sorted(whole):
        sys.exit(1)


def one_life(
    command: list[str], folder: Path, wanted: int, moment: float, *, launched: bool
) -> str:
    """Run until there are so many rows and, for as long as a row takes, a `moment` longer, then
    kill: the process, or one of two. Until any row is there, the kill falls anywhere in loading."""
    start = [sys.executable, *(LAUNCH if launched else []), *command, str(folder)]
    process = subprocess.Popen(
        start, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    loading = wanted == count(folder)
    while process.poll() is None and count(folder) < wanted:
        time.sleep(0.002)
    time.sleep(moment * (5.0 if loading else 0.05))
    if process.poll() is not None:
        return "finished before the kill"
    victim = process.pid
    if launched:
        children = Path(f"/proc/{victim}/task/{victim}/children").read_text().split()
        victim = int(children[int(moment * len(children))]) if children else victim
    os.kill(victim, signal.SIGKILL)
    process.wait()
    return f"killed{', one of two' if launched else ''}{', while loading' if loading else ''}"


def make_study(root: Path) -> list[str]:
    """A random pair, prompts, and the command of a sweep over 44 settings but for the output
    folder."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for name, layers in (("draft", 1), ("target", 2)):
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
                             num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2)  # fmt: skip
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
        model.save_pretrained(root / name)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(
            root / name
        )
    lines = [
        {"text": " ".join(f"w{3 + (i * 7 + j) % 90}" for j in range(20))} for i in range(PROMPTS)
    ]
    (root / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [
        "--M",
        "64",
        "--prompt-len",
        "12",
        "--new-tokens",
        "10",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    flags += [
        "--T",
        "0.6",
        "0.9",
        "--seed",
        "0",
        "1",
        "--B",
        "4",
        "8",
        "auto",
        "--use_bfs",
        "--policy",
        "sampled",
    ]
    flags += [
        "--growmap",
        "growmaps/2x2.pt",
        "growmaps/4x8-tree.pt",
        "--dataset",
        str(root / "prompts.jsonl"),
    ]
    pair = ["--draft", str(root / "draft"), "--target", str(root / "target")]
    return ["-m", "dynasurge", "sweep", *pair, *flags, "--output"]


def rows(folder: Path) -> list[str]:
    """What must not depend on the clock, a line a row."""
    lines = (folder / "records.jsonl").read_text().splitlines()
    return [json.dumps({name: json.loads(line)[name] for name in SAME}) for line in lines]


def count(folder: Path) -> int:
    """Whole lines in all files of records."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("records*.jsonl"))


if __name__ == "__main__":
    main()
