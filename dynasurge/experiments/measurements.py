"""Probes: what a pair does at single positions of text that its target wrote. Measured after a
sweep, without decoding.

- `positions`: how much draft and target agree at every token of the text. The *overlap* sum(min(p,
  q)) is the probability that one sampled child is accepted there.
- `bounds`: how often a rule accepts one of k children, and what no lossless rule can exceed
  (verification/single_node_bound.py).
- `bias`: how far the original prototype's rule changes the next token's distribution
  (experiments/rule_bias.py).

Texts come from a sweep's rows. The results are numbers only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dynasurge.experiments.rule_bias import first_token_bias
from dynasurge.experiments.text_distributions import text_distributions
from dynasurge.generation_config import LAW_FIELDS
from dynasurge.models.law import Asked
from dynasurge.models.pair import Pair
from dynasurge.probabilities import Random
from dynasurge.settings import POLICIES, Settings
from dynasurge.verification.rules import RULES
from dynasurge.verification.single_node_bound import acceptance_bound, node_acceptance

CHILDREN = (1, 2, 4, 8)
Tick = Callable[[], object]


def positions(pair: Pair, frame: pd.DataFrame, *, on_text: Tick = lambda: None) -> pd.DataFrame:
    """One table row a token of text: dataset, kind, index, T, position (tokens), overlap, `agree`
    (whether both models have the same likeliest token), `confidence` (the draft's largest
    probability) and `certainty` (the target's). Calls on_text after each of `texts`."""
    lines = []
    for row in texts(frame):
        p, q = _distributions(pair, row)
        numbers = {
            "position": range(len(p)),
            "overlap": torch.minimum(p, q).sum(-1).tolist(),
            "agree": (p.argmax(-1) == q.argmax(-1)).tolist(),
            "confidence": q.amax(-1).tolist(),
            "certainty": p.amax(-1).tolist(),
        }
        lines.append(
            pd.DataFrame(numbers).assign(
                **{name: row[name] for name in ("dataset", "kind", "index", "T")}
            )
        )
        on_text()
    return pd.concat(lines, ignore_index=True)


def bounds(
    pair: Pair,
    frame: pd.DataFrame,
    *,
    nodes: int = 32,
    draws: int = 32,
    on_node: Tick = lambda: None,
) -> pd.DataFrame:
    """One table row a (T, policy, k, rule): `accepted`, the probability that one of k children of a
    node is accepted, and its `bound`. Both are means over `nodes` positions spread over the texts.
    The bound is exact; `accepted` is a mean over `draws` sets of children at each position, with the
    standard error `error`, so it may come out a little above the bound. `texts`: their datasets.

    All rules judge the same sets. Calls on_node after each position.
    """
    lines = []
    for T, rows in frame.groupby("T"):
        policies = POLICIES if T else ("topk",)  # greedy trees have no other children
        for node, p, q in _spread(pair, rows, nodes):
            for policy, k in product(policies, CHILDREN):
                bound = acceptance_bound(p, q, k, policy)
                for rule in RULES if policy == "sampled" else ("topdown", "traversal"):
                    chance, sets = (
                        Random.seeded(node),
                        1 if policy == "topk" else draws,
                    )
                    drawn = node_acceptance(RULES[rule], p, q, k, policy, sets, chance)
                    error = float(drawn.var()) / sets if sets > 1 else 0.0
                    lines.append((T, policy, k, rule, float(drawn.mean()), error, bound))
            on_node()
    columns = ["T", "policy", "k", "rule", "accepted", "error", "bound"]
    groups = pd.DataFrame(lines, columns=columns).groupby(columns[:4], sort=False)
    out = groups.agg(
        accepted=("accepted", "mean"),
        error=("error", "sum"),
        bound=("bound", "mean"),
        nodes=("bound", "size"),
    )
    error = out["error"] ** 0.5 / out["nodes"]
    return out.assign(error=error, texts=dataset_names(frame)).reset_index()


def bias(
    pair: Pair,
    frame: pd.DataFrame,
    *,
    contexts: int = 8,
    samples: int = 1000,
    on_context: Tick = lambda: None,
) -> pd.DataFrame:
    """`first_token_bias` at the first `contexts` prompts of these rows, with their datasets in the
    column `texts`. Calls on_context after each."""
    prompts = frame.drop_duplicates(["dataset", "index"]).head(contexts)
    ids = {
        number: [int(token) for token in row] for number, row in enumerate(prompts["prompt_ids"])
    }
    table = first_token_bias(pair, ids, samples=samples, on_context=on_context)
    return table.assign(texts=dataset_names(prompts))


def dataset_names(frame: pd.DataFrame) -> str:
    """The datasets of these rows, for a caption."""
    return ", ".join(Path(name).stem for name in frame["dataset"].unique())


def _spread(
    pair: Pair, frame: pd.DataFrame, nodes: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(number, p [V], q [V]) at up to `nodes` tokens, evenly spread over the texts."""
    rows, first = texts(frame), 0
    total = sum(len(row["output_ids"]) for row in rows)
    chosen = torch.linspace(0, total - 1, min(nodes, total)).long().unique().tolist()
    for row in rows:
        last = first + len(row["output_ids"])
        if here := [node for node in chosen if first <= node < last]:
            p, q = _distributions(pair, row)
            for node in here:
                yield node, p[node - first].cpu(), q[node - first].cpu()
        first = last


def texts(frame: pd.DataFrame) -> list[Any]:
    """A row for every prompt and temperature: one lossless text each, that of `auto` if it ran."""
    lossless = frame[frame["lossless"]]
    first = lossless.iloc[(lossless["mode"] != "auto").argsort(kind="stable")]
    return list(first.drop_duplicates(["dataset", "index", "law"]).to_dict(orient="records"))


def _distributions(pair: Pair, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """p and q [tokens, V] along the text of a row of `texts`."""
    prompt, output = ([int(token) for token in row[name]] for name in ("prompt_ids", "output_ids"))
    T, P, processors, _ = Asked(pair, _law(row)).after(prompt, len(output))
    return text_distributions(pair, prompt, output, T=T, P=P, processors=processors)


def _law(row: dict[str, Any]) -> Settings:
    """Settings with the law of a frame's row. A cell that is empty is None or NaN."""
    own = {name: row[name] for name in LAW_FIELDS if name in row and not pd.isna(row[name])}
    return Settings(**own | {"top_k": int(own.get("top_k", 0))}).under({})
