"""Faster than what? transformers' own ways to run the same weights, next to ours, prompt by prompt.

    python benchmarks/bench_peers.py --end 20 --B 8 auto --use_bfs --mode auto dTree --output runs/peers
    python benchmarks/bench_peers.py --target demo-7b --compile --B 64 --use_bfs --mode auto dTree --output runs/peers-7b

Flags, records and tables are those of `dynasurge sweep`, so a killed run can go on. `--peers` names
what also runs, through `model.generate`:

- `generate`: its default, a cache that grows; `compiled generate`: torch.compile and one static
  cache for all prompts (a new cache for each would record its CUDA graphs again), on a GPU;
- `assisted K`: assisted generation with the same draft, K tokens a pass; `assisted default`: up to
  20, until the draft's confidence is below 0.4. Compare with the best of these. A draft that reads
  hidden states cannot assist. (transformers applies the temperature to its draft twice, which is
  lossless but costs acceptance at T < 1; `chain3` of `--methods` is the same method without that);
- `lookup K`: prompt lookup, K tokens copied from the text.

All take the same prompt, at the same temperature and without top-k, before any takes the next. The
pass over the prompt gives a peer its first token. That pass's time is not counted, but the token
is, so peers' speeds are too high by up to one part in `--new-tokens`. After the tables of
`dynasurge sweep`, one line a setting says how many times as fast as `generate` it is. At T = 0
another says how many of its texts are those of `generate`, token for token: rounding decides
between tokens that are about equally likely (docs/concepts/lossless.md).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm
from transformers import StaticCache
from transformers.generation.streamers import BaseStreamer

from dynasurge import Pair, Settings, load_pair
from dynasurge.cli.flags import pair_options
from dynasurge.cli.main import guarded
from dynasurge.cli.run import plan_of, with_laws
from dynasurge.cli.sweep import sweep_parser
from dynasurge.decoding.engines import Engines
from dynasurge.decoding.loop import StepRecord
from dynasurge.decoding.session import Generation
from dynasurge.drafting.cost_model import Costs
from dynasurge.errors import UsageError
from dynasurge.experiments.baselines import baselines
from dynasurge.experiments.datasets import load_prompts
from dynasurge.experiments.runner import Decodes, Evaluation, make_session
from dynasurge.experiments.sweep import write_frame
from dynasurge.experiments.tables import against_table, results_table
from dynasurge.models.feature_draft import FeatureDraft
from dynasurge.trees.token_tree import TokenTree

GENERATE, COMPILED = "generate", "compiled generate"
PEERS = (
    GENERATE,
    COMPILED,
    *(f"assisted {k}" for k in (3, 5, 8, "default")),
    *(f"lookup {k}" for k in (3, 5, 10)),
)


class Arrivals(BaseStreamer):
    """Notes how many tokens each pass gave, and when the first pass ended."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.first = 0.0

    def put(self, value: torch.Tensor) -> None:
        self.counts.append(value.numel())
        if len(self.counts) == 2:  # the first is the prompt
            self.first = time.perf_counter()

    def end(self) -> None:
        pass


class Peer:
    """`model.generate` in the place of a `Session`."""

    capture_seconds = 0.0

    def __init__(self, pair: Pair, settings: Settings, longest: int) -> None:
        self._pair, self._settings = pair, settings
        self._k, self._cache, self._how = None, None, dict[str, Any]()
        self._warm = False
        name, _, k = str(settings.method).partition(" ")
        if settings.method == COMPILED:
            length = longest + settings.new_tokens
            self._cache = StaticCache(config=pair.target.config, max_cache_len=length)
            self._how["past_key_values"] = self._cache
        elif name == "assisted":
            self._how["assistant_model"] = pair.draft
            self._k = None if k == "default" else int(k)
        elif name == "lookup":
            self._how["prompt_lookup_num_tokens"] = int(k)
        self._how["repetition_penalty"] = settings.repetition_penalty
        if settings.T:
            sampling = {"do_sample": True, "temperature": settings.T, "top_p": settings.P}
            self._how |= sampling | {"top_k": settings.top_k, "min_p": settings.min_p or None}
        else:
            self._how["do_sample"] = False

    def generate(
        self, prompt: list[int], *, index: int = 0, new_tokens: int | None = None
    ) -> Generation:
        """Generate after a prompt, as `Session.generate` does. Of a step, only its tokens and an
        equal share of the time are known."""
        if not self._warm:  # the first call compiles, or starts libraries: not counted
            self._warm = True
            self.generate(prompt, new_tokens=16)
        torch.manual_seed(self._settings.seed + index)
        if "assistant_model" in self._how:
            drafting = self._pair.draft.generation_config
            drafting.num_assistant_tokens = self._k or 20  # 20 and 0.4: transformers' defaults
            drafting.num_assistant_tokens_schedule = "constant"
            drafting.assistant_confidence_threshold = 0.0 if self._k else 0.4
        if self._cache is not None:
            self._cache.reset()
        arrivals = Arrivals()
        ids = torch.tensor([prompt], device=self._pair.target.device)
        start = time.perf_counter()
        out = self._pair.target.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens or self._settings.new_tokens,
            streamer=arrivals,
            pad_token_id=0,
            **self._how,
        )[0, len(prompt) :].tolist()
        end = time.perf_counter()
        tokens, counts = out[arrivals.counts[1] :], arrivals.counts[2:]
        share = (end - arrivals.first) / max(1, len(counts))
        steps = []
        for count in counts:
            steps.append(_step(prompt[-1], tokens[:count], share))
            tokens = tokens[count:]
        return Generation(
            prompt_ids=prompt,
            output_ids=out,
            text=str(self._pair.tokenizer.decode(out)),
            steps=steps,
            prefill_seconds=arrivals.first - start,
            seconds=end - start,
        )


def _step(root: int, emitted: Sequence[int], seconds: float) -> StepRecord:
    """The record of a pass that accepted a chain: all that it emitted except the last token."""
    drafted = range(len(emitted) - 1)
    tree = TokenTree(
        tokens=(root, *emitted[:-1]),
        parents=(-1, *drafted),
        proposal=(1.0,) * len(emitted),
        point=(True,) * len(emitted),
    )
    ones = (1.0,) * len(emitted)
    return StepRecord(
        tree=tree,
        end=len(emitted) - 1,
        p=ones,
        q=ones,
        path=tuple(range(1, len(emitted))),
        emitted=tuple(emitted),
        stop=(*(0.0 for _ in drafted), 1.0),
        expected=float(len(drafted)),
        confidence=float("nan"),
        passes=0,
        draft_seconds=0.0,
        target_seconds=seconds,
        verify_seconds=0.0,
        other_seconds=0.0,
    )


def make(pair: Pair, settings: Settings, engines: Engines, longest: int, costs: Costs) -> Decodes:
    """A peer, or a session of ours."""
    if settings.method in PEERS:
        return Peer(pair, settings, longest)
    return make_session(pair, settings, engines, longest, costs)


def same_texts(frame: pd.DataFrame) -> str:
    """At T = 0: how many of each setting's texts are those of `generate`."""
    greedy = frame[frame["T"] == 0]
    plain = greedy[greedy["label"] == GENERATE].set_index(["dataset", "index"])["output_ids"]
    lines = []
    for label, rows in greedy.groupby("label", sort=False):
        mine = rows.set_index(["dataset", "index"])["output_ids"]
        both = mine.index.intersection(plain.index)
        same = sum(list(mine[key]) == list(plain[key]) for key in both)
        lines.append(f"{label}: {same} of {len(both)} texts are those of `{GENERATE}`")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = sweep_parser()
    parser.prog, parser.description, parser.epilog = "bench_peers", __doc__, None
    names = "default: all that the draft can assist"
    parser.add_argument("--peers", nargs="+", choices=PEERS, help=names)
    args = parser.parse_args(argv)
    if not args.output:
        raise UsageError("--output", None, "needs a folder for records", "try --output runs/peers")
    output, (plan, _) = Path(args.output), with_laws(args, plan_of(args))
    pair = load_pair(**pair_options(args), device_map=args.device_map)
    assists = not isinstance(pair.draft, FeatureDraft)
    able = [name for name in PEERS if assists or not name.startswith("assisted")]
    args.peers = args.peers or able
    if others := [name for name in args.peers if name not in able]:
        reason = f"assists no model of transformers, {others[0]} needs one that reads text"
        raise UsageError("--draft", args.draft, reason, "give such a draft, or other --peers")
    cuda = pair.target.device.type == "cuda"
    alone = {"mode": "auto", "use_bfs": False, "etv": "traversal", "policy": "sampled"}
    alone |= {"growmap": None, "B": "auto", "fill": False}
    bases = list(dict.fromkeys(replace(base, **alone) for base in plan))
    peers = [
        replace(base, method=name)
        for base in bases
        for name in args.peers
        if cuda or name != COMPILED
    ]
    rules = [False, True] if args.use_bfs else [False]
    plan = [*peers, *plan, *baselines(pair, args.methods, plan, args.B, rules)]
    data = {name: load_prompts(name, args.start, args.end) for name in args.dataset}
    least = args.prompt_len if COMPILED in args.peers and cuda else args.min_prompt_len
    # a static cache is compiled for one length
    with Evaluation(
        pair, plan, data, output, min_prompt_len=least, make_session=make
    ) as evaluation:
        for _ in tqdm(evaluation.run(), total=len(evaluation), disable=None):
            pass
        frame = write_frame(evaluation, output)
    print(results_table(frame))
    if GENERATE in args.peers:
        print(against_table(frame, [GENERATE]))
        print(same_texts(frame))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, "rows so far are kept; the same command goes on"))
