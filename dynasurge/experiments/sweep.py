"""Sweeps: every combination of modes, trees, rules, policies, temperatures, seeds and datasets, in
one run.

    plan = grid(T=[0.6, 1.0], growmap=["growmaps/4x8-tree.pt"], B=[16, 32], use_bfs=[False, True])
    frame = sweep(load_pair(), plan, {"cnn": load_prompts("cnn")}, Path("runs/study"))

`sweep` loads nothing and decides nothing. It runs an `Evaluation` (interleaved, resumable, shared
by processes) and writes its rows as one table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from dynasurge.experiments.datasets import Prompt
from dynasurge.experiments.records import write_output
from dynasurge.experiments.results_frame import load_frame, to_frame
from dynasurge.experiments.runner import Done, Evaluation
from dynasurge.experiments.workers import ALONE, Processes
from dynasurge.models.pair import Pair
from dynasurge.settings import Settings


def sweep(
    pair: Pair,
    plan: Sequence[Settings],
    data: Mapping[str, Sequence[Prompt]],
    output: Path,
    *,
    min_prompt_len: int = 1,
    processes: Processes = ALONE,
    every: int = 0,
    on_row: Callable[[Done], object] = lambda done: None,
) -> pd.DataFrame:
    """Run a plan over the prompts of datasets into a folder, or go on where it stopped.

    Returns one row a requested (settings, prompt), with the columns of `results_frame.to_frame`,
    and writes the same to `records.parquet` there. (`records.jsonl` also keeps the rows of earlier
    runs with other prompts or fewer settings.)

    Arguments and errors are those of `Evaluation`. Calls on_row with all that this process did or
    found finished. Of several processes the first writes the file, and all return the whole frame.
    """
    with Evaluation(
        pair, plan, data, output, min_prompt_len=min_prompt_len, processes=processes, every=every
    ) as evaluation:
        for done in evaluation.run():
            on_row(done)
        return write_frame(evaluation, output) if processes.main else to_frame(evaluation.rows())


def write_frame(evaluation: Evaluation, output: Path) -> pd.DataFrame:
    """Write the rows of a finished evaluation to `records.parquet`, whole or not at all, and return
    them."""
    path = output / "records.parquet"
    frame = to_frame(evaluation.rows())
    with write_output(path) as partial:
        frame.to_parquet(partial, index=False)
    return load_frame(path)
