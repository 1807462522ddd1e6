"""How good is a draft? Its overlap with the target on text that the target writes.

For each prompt the target reads its first ``prompt_tokens`` tokens (no start token added) and
samples ``new_tokens`` more at temperature T. On the positions that chose those tokens, with p and q
at the same T:

    overlap     mean of sum min(p, q): expected acceptance of one sampled draft token
    top1        how often p and q have the same likeliest token
    mass@k      target probability of the draft's k likeliest tokens: the most that k siblings can catch

Positions after the target has ended its text do not count. Scoring is always in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynasurge.errors import UsageError
from dynasurge.models.feature_draft import FeatureDraft
from tools.train_draft.features import aligned, unroll
from tools.train_draft.llama import Llama, forward, view_of
from tools.train_draft.loss import overlap
from tools.train_draft.sampling import Sampler

__all__ = ["Continuations", "continue_prompts", "measure", "measure_depths", "read_prompts"]


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """Prompts with the target's continuations at one temperature, and the target's hidden states on
    them."""

    name: str
    temperature: float
    tokens: Tensor  # [rows, prompt_tokens + new_tokens]
    rows: Tensor  # [n] row of each counted position
    positions: Tensor  # [n] the counted positions: those that chose a continued token
    hidden: Tensor  # [n, target width], float32: the target's normed hidden state there


def read_prompts(path: Path, tokenizer: Any, prompt_tokens: int) -> list[list[int]]:
    """Prompts of a JSONL file, one object a line with ``text`` (or token ``ids``), cut to
    ``prompt_tokens`` ids. Raises UsageError."""
    prompts = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = {
            number: json.loads(line) for number, line in enumerate(lines, start=1) if line.strip()
        }
    except (OSError, ValueError) as error:
        raise UsageError(
            "--prompts", path, f"cannot be read ({error})", "give a JSONL file"
        ) from error
    for number, row in rows.items():
        if "ids" in row:
            ids = list(row["ids"])
        elif "text" in row:
            ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        else:
            raise UsageError(
                "--prompts",
                path,
                f"line {number} has neither text nor ids",
                "give each line one of them",
            )
        if ids:
            prompts.append(ids[:prompt_tokens])
    if not prompts:
        raise UsageError(
            "--prompts", path, "holds no prompt", "give a JSONL file with at least one line"
        )
    return prompts


@torch.no_grad()
def continue_prompts(
    target: Llama,
    scorer: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    name: str,
    temperature: float,
    prompt_tokens: int,
    new_tokens: int,
    end_tokens: Sequence[int],
    seed: int,
    batch: int = 64,
) -> Continuations:
    """Sample continuations with ``target`` and keep the hidden states of ``scorer`` (the same model
    in float32)."""
    length = prompt_tokens + new_tokens
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler(
        target,
        rows=len(prompts),
        length=length,
        openers=len(prompts),
        opener_length=prompt_tokens,
        end_tokens=(),
    )
    uniform = torch.rand(length, len(prompts), generator=generator)
    tokens = sampler.launch(prompts, torch.full((len(prompts),), temperature), uniform).clone()
    starts = torch.tensor([min(len(p), prompt_tokens) for p in prompts], device=tokens.device)[
        :, None
    ]
    place = torch.arange(length, device=tokens.device)[None, :]
    chosen = (place >= starts) & (place < starts + new_tokens)  # the continued tokens
    ends = (
        torch.isin(tokens, torch.tensor(list(end_tokens), dtype=torch.int64, device=tokens.device))
        & chosen
    )
    alive = (ends.cumsum(-1) - ends.long()) == 0  # up to and including the end token
    rows, positions = ((chosen & alive)[:, 1:]).nonzero(
        as_tuple=True
    )  # position i chose token i + 1
    hidden = torch.cat([forward(scorer, part) for part in tokens.split(batch)])
    return Continuations(
        name=name,
        temperature=temperature,
        tokens=tokens,
        rows=rows,
        positions=positions,
        hidden=hidden[rows, positions].float(),
    )


@torch.no_grad()
def measure(
    draft: Any,
    scorer_head: Tensor,
    sets: Sequence[Continuations],
    *,
    chunk: int = 2048,
    batch: int = 64,
) -> dict[str, float]:
    """Overlap, top-1 agreement and mass@1/4/8 of a draft module on each set, with keys such as
    ``name/T=0.6/overlap``."""
    view = view_of(draft, torch.float32)
    results: dict[str, float] = {}
    for one in sets:
        hidden = torch.cat([forward(view, part) for part in one.tokens.split(batch)])[
            one.rows, one.positions
        ]
        totals = torch.zeros(5, dtype=torch.float64, device=hidden.device)
        for mine, theirs in zip(hidden.split(chunk), one.hidden.split(chunk), strict=True):
            p = torch.softmax(theirs @ scorer_head.T / one.temperature, dim=-1)
            q = torch.softmax(mine @ view.head.T / one.temperature, dim=-1)
            top = q.topk(min(8, q.shape[-1]), dim=-1).indices
            caught = p.gather(-1, top).double().cumsum(-1)
            same = (p.argmax(-1) == top[:, 0]).double()
            totals += torch.stack(
                [
                    overlap(p, q).double().sum(),
                    same.sum(),
                    *(caught[:, min(k, top.shape[-1]) - 1].sum() for k in (1, 4, 8)),
                ]
            )
        means = (totals / len(hidden)).tolist()
        for label, value in zip(
            ("overlap", "top1", "mass@1", "mass@4", "mass@8"), means, strict=True
        ):
            results[f"{one.name}/T={one.temperature:g}/{label}"] = value
        results[f"{one.name}/T={one.temperature:g}/positions"] = len(hidden)
    return results


@torch.no_grad()
def measure_depths(
    draft: FeatureDraft,
    scorer: Llama,
    sets: Sequence[Continuations],
    depths: int = 8,
    *,
    chunk: int = 2048,
    batch: int = 32,
) -> dict[str, float]:
    """Overlap of a feature draft by depth on each set, with keys such as ``name/T=0.6/overlap@1``.
    ``scorer`` is the target in float32."""
    results: dict[str, float] = {}
    ids = draft.ids
    head = scorer.head if ids is None else scorer.head[ids]
    for one in sets:
        parts = []
        for tokens in one.tokens.split(batch):
            _, taps = forward(scorer, tokens, taps=draft.config.taps)
            parts.append(aligned(unroll(draft, scorer, tokens, taps, depths)))
        hidden = torch.cat(parts, dim=1)[:, one.rows, one.positions]
        totals = torch.zeros(depths, dtype=torch.float64, device=hidden.device)
        for start in range(0, len(one.hidden), chunk):
            part = slice(start, start + chunk)
            p = torch.softmax(one.hidden[part] @ scorer.head.T / one.temperature, dim=-1)
            p = p if ids is None else p[:, ids]
            for depth in range(depths):
                mine = hidden[depth, part] @ head.T / one.temperature
                totals[depth] += overlap(p, torch.softmax(mine, dim=-1)).double().sum()
        for depth, value in enumerate((totals / len(one.hidden)).tolist(), start=1):
            results[f"{one.name}/T={one.temperature:g}/overlap@{depth}"] = value
    return results


def evaluator(
    sets: Sequence[Continuations], scorer_head: Tensor
) -> Callable[[Any], dict[str, float]]:
    """``measure`` with all arguments but the draft set, for ``Trainer.run``."""
    return lambda draft: measure(draft, scorer_head, sets)
