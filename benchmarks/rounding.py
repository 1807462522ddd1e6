"""How often a text at T = 0 is, token for token, the one of transformers' `generate`: a question of
rounding.

    python benchmarks/rounding.py --dtype bfloat16 --new-tokens 64

Passes of different widths round differently. Where two tokens are about as likely, that decides
which one is written, and the text goes on from there. `generate` itself is in the table, too: a
text of it decoded beside another one, in a batch of two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from tqdm import tqdm

from dynasurge import Session, Settings, load_pair
from dynasurge.experiments.datasets import load_prompts

MODES = {
    "auto": {"mode": "auto"},
    "dTree B=auto": {},
    "dTree B=16, filled, +ETV": {"B": 16, "fill": True, "use_bfs": True},
    "sTree 4x8": {"mode": "sTree", "growmap": "growmaps/4x8-tree.pt"},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--end", type=int, default=None)
    parser.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    pair, new = load_pair(dtype=args.dtype), args.new_tokens
    prompts = [pair.encode(prompt.text)[:128] for prompt in load_prompts("demo", 0, args.end)]
    sessions = {
        name: Session(pair, Settings(T=0, new_tokens=new, prompt_len=128, **own))
        for name, own in MODES.items()
    }

    def plain(*texts: list[int]) -> list[int]:
        with torch.inference_mode():
            ids = torch.tensor(texts, device=pair.target.device)
            out = pair.target.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=new,
                eos_token_id=None,
            )
        return out[0, ids.shape[1] :].tolist()  # type: ignore[no-any-return]

    ways: dict[str, Callable[[list[int]], list[int]]] = {
        "generate, beside another text": lambda ids: plain(ids, ids[::-1])
    }
    for name, session in sessions.items():
        ways[name] = lambda ids, session=session: [  # type: ignore[misc]
            token for step in session.stream(ids, eos=frozenset()) for token in step.emitted
        ]
    same: dict[str, list[int]] = {name: [] for name in ways}
    for ids in tqdm(prompts, unit="prompt", disable=None):
        expected = plain(ids)
        for name, way in ways.items():
            pairs = zip(way(ids), expected, strict=True)
            same[name].append(next((at for at, (a, b) in enumerate(pairs) if a != b), new))
    print(f"{pair.target.dtype}, {len(prompts)} prompts, {new} new tokens, T = 0")
    for name, lengths in same.items():
        whole = sum(length == new for length in lengths)
        print(
            f"{name:30} {whole:3} of {len(lengths)} texts identical; {sum(lengths) / len(lengths):.1f} tokens on average"
        )


if __name__ == "__main__":
    main()
