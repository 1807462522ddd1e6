"""The cost of a pass: the latency curve t(n) against the memory floor, and whether decoding uses
more and more memory.

    python benchmarks/bench_passes.py --target demo-7b --engines eager graphs compiled --widths 1 17 65
    python benchmarks/bench_passes.py             # the demo pair, on this machine's own device

The floor is that of models/memory_floor.py. Engines: `eager` calls the model; `graphs` replays
captured passes; `compiled` lets torch.compile fuse small kernels first. `--steps` then decodes so
many steps of filled trees and prints whether memory grew. (`dynasurge sweep` shows where the time
of a step goes.)
"""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable
from functools import partial

import torch

from dynasurge import Settings, load_pair
from dynasurge.cli.flags import Parser, model_flags, pair_options
from dynasurge.cli.main import guarded
from dynasurge.decoding.engines import engines_of
from dynasurge.decoding.latency import CAPTURED_WIDTHS, WIDTHS
from dynasurge.decoding.session import Session
from dynasurge.errors import UsageError
from dynasurge.experiments.datasets import load_prompts
from dynasurge.models.cuda_graphs import Captured, Graphs
from dynasurge.models.engine import Engine
from dynasurge.models.memory_floor import bandwidth, timed, weight_bytes
from dynasurge.models.pair import Pair

TEXT = 256  # tokens in the cache
WIDEST = max(WIDTHS + CAPTURED_WIDTHS)
ROOM = TEXT + WIDEST


def one_pass(engine: Engine, n: int) -> None:
    """Score n nodes right below the text, and forget them."""
    engine.forward([7] * n, [-1] * n)


def captured(engine: Engine, n: int, graphs: Graphs) -> Captured[torch.Tensor]:
    """A static pass over n nodes after the text, captured."""
    rows = TEXT + torch.arange(n, device=engine.device)
    hidden = torch.arange(engine.static_length, device=engine.device) > rows[:, None]
    tokens, parents = torch.full_like(rows, 7), torch.full_like(rows, TEXT - 1)
    return graphs.capture(lambda: engine.score(tokens, rows, rows, hidden, parents, captured=True))


def curves(pair: Pair, kinds: list[str], widths: list[int]) -> None:
    """Print the milliseconds of a pass by model, width and engine. A draft's pass is one level."""
    print(f"\n| ms a pass | {' | '.join(f'n = {n}' for n in widths)} | captured in |")
    print("|---" * (len(widths) + 2) + "|")
    for kind in kinds:
        gc.collect()  # a cache and its layers refer to each other
        how = {"vocab": pair.vocab, "compiled": kind == "compiled"}
        target, draft = engines_of(pair, ROOM, ROOM, **how)
        assert draft is not None
        for name, engine in (("target", target), ("draft", draft)):
            graphs = Graphs(engine.device)
            if kind != "eager":
                engine.prepare()
            engine.extend(range(5, 5 + TEXT))
            seconds = []
            for n in widths:
                work: Callable[[], object] = partial(one_pass, engine, n)
                if kind != "eager":
                    work = captured(engine, n, graphs).replay
                seconds.append(timed(work, engine.device))
            cells = " | ".join(f"{1e3 * s:.2f}" for s in seconds)
            took = "" if kind == "eager" else f"{graphs.seconds:.1f} s"
            print(f"| {name}, {kind} | {cells} | {took} |", flush=True)


def memory(device: torch.device) -> int:
    """Bytes in use on a GPU; on a CPU the most that the process ever used."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def growth(pair: Pair, compiled: bool, count: int) -> None:
    """Print memory before and after so many steps: a GPU's, or on a CPU the most that the process
    ever used."""
    settings = Settings(
        T=1.0,
        P=1.0,
        prompt_len=128,
        new_tokens=256,
        B=32,
        fill=True,
        use_bfs=True,
        compile=compiled,
    )
    session = Session(pair, settings)
    ids = session.encode(load_prompts("demo", 0, 1)[0].text)
    session.generate(ids)
    before, done, number = memory(pair.target.device), 0, 0
    while done < count:
        done += len(session.generate(ids, index=number).steps)
        number += 1
    after = memory(pair.target.device)
    print(
        f"\nmemory after {done} steps: {after / 2**20:.1f} MiB, before them {before / 2**20:.1f} MiB"
    )


def main() -> int:
    parser = Parser(prog="bench_passes", description=__doc__)
    model_flags(parser)
    add = parser.add_argument
    add("--engines", nargs="+", choices=("eager", "graphs", "compiled"))
    add("--widths", type=int, nargs="+", default=list(WIDTHS))
    add("--steps", type=int, default=0, help="decode so many steps and see whether memory grew")
    args = parser.parse_args()
    if not 0 < min(args.widths) <= max(args.widths) <= WIDEST:
        remedy = f"name some of 1 to {WIDEST}"
        raise UsageError("--widths", args.widths, "are not all in range", remedy)
    pair = load_pair(**pair_options(args))
    device = pair.target.device
    kinds = args.engines or (["eager", "graphs"] if device.type == "cuda" else ["eager"])
    speed, weights = bandwidth(device), weight_bytes(pair.target)
    print(
        f"reads {speed / 1e12:.3f} TB/s; the target's {weights / 1e9:.2f} GB of {pair.target.dtype} "
        f"weights take {1e3 * weights / speed:.2f} ms at least"
    )
    curves(pair, kinds, args.widths)
    if args.steps:
        growth(pair, "compiled" in kinds, args.steps)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, "nothing was written"))
