"""Evaluation: prompts through one setting or several, interleaved, into records.

All settings take the same prompt before any takes the next. So a machine that is slow for a minute
slows them all, and ratios between them stay right. Each setting first generates a few tokens that
are not timed. All settings share the models and their caches.

With `every`, trees are compared at the same places instead. The target writes a text. After every
`every` of its tokens each setting makes one step, learns from it, and goes on along that text. A
step then counts as the mean number of tokens that it emits, exact for its tree. So neither the luck
of draws nor that of texts is in the comparison.

Several processes (experiments/workers.py) share the prompts. The cost of trees is measured once for
each output folder and stored in its `costs.json`. So a run that goes on, or with other processes,
grows the same trees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from dynasurge.decoding.engines import Engines, check_positions, make_engines
from dynasurge.decoding.latency import load_costs, read_costs, widths_of
from dynasurge.decoding.session import Generation, Session, follow
from dynasurge.decoding.tree_room import most_nodes
from dynasurge.drafting.cost_model import Costs
from dynasurge.errors import UsageError
from dynasurge.experiments.datasets import Prompt
from dynasurge.experiments.provenance import provenance
from dynasurge.experiments.records import RecordFile, write_output
from dynasurge.experiments.row_maker import make_row, run_name
from dynasurge.experiments.schema import Row, Summary, summarise
from dynasurge.experiments.tasks import Task, make_tasks
from dynasurge.experiments.workers import ALONE, Processes
from dynasurge.generation_config import LAW_FIELDS
from dynasurge.models.pair import Pair
from dynasurge.settings import PHASES, Settings

WARM_UP_TOKENS = 12
UNMEASURED = Costs(
    widths=(1,), target_seconds=(1.0,), draft_seconds=(1.0,)
)  # used if no tree depends on costs


@dataclass(frozen=True, kw_only=True)
class Done:
    """One finished (prompt, setting): its row, and the generation, unless the row was read from
    disk."""

    row: Row
    result: Generation | None


class Decodes(Protocol):
    """What an evaluation needs of a `Session`. benchmarks/bench_peers.py has other decoders."""

    @property
    def capture_seconds(self) -> float: ...

    def generate(
        self, prompt: list[int], *, index: int = 0, new_tokens: int | None = None
    ) -> Generation: ...


MakeSession = Callable[[Pair, Settings, Engines, int, Costs], Decodes]


def make_session(
    pair: Pair, settings: Settings, engines: Engines, longest: int, costs: Costs
) -> Session:
    """A session for prompts of up to `longest` tokens, which shares engines and costs."""
    return Session(pair, settings, engines=engines, longest=longest, costs=costs)


class Evaluation:
    """A plan of settings over the prompts of datasets, to be used in a `with`.

    Construction checks all that can be checked before running. `skipped`: by dataset, the indices
    of prompts with fewer than `min_prompt_len` tokens; they are left out. `cut`: by dataset, how
    many prompts were longer than `prompt_len` and are cut to it. `engines`: the engines of all
    settings.
    """

    def __init__(
        self,
        pair: Pair,
        plan: Sequence[Settings],
        data: Mapping[str, Sequence[Prompt]],
        output: Path | None,
        *,
        min_prompt_len: int = 1,
        processes: Processes = ALONE,
        every: int = 0,
        make_session: MakeSession = make_session,
    ) -> None:
        """plan: different settings with one prompt_len and chat. data: prompts by dataset. output: None
        keeps no records. every: see above; with 0 each setting decodes its own text.

        Raises UsageError if the models cannot run a setting, if no prompt is long enough, and for
        the errors of `RecordFile`.
        """
        plan = [settings.under(pair.generation_config) for settings in plan]
        self._pair, self._plan, self._processes, self._every = pair, plan, processes, every
        self._about, self._warm = provenance(pair), set[int]()
        self._tasks, self.skipped, self.cut = make_tasks(
            pair, data, plan[0].prompt_len, min_prompt_len, chat=plan[0].chat
        )
        longest = max(len(task.ids) for task in self._tasks)
        for settings in plan:
            settings.check_room(settings.prompt_len or longest, most_nodes(settings))
            for size in {len(task.ids) for task in self._tasks}:
                check_positions(pair, size, settings.new_tokens)
        self.engines = engines = make_engines(pair, plan, longest)
        self._runs = {
            dataset: [run_name(settings, dataset, every) for settings in plan] for dataset in data
        }
        self.records = RecordFile(
            output, {run for runs in self._runs.values() for run in runs}, processes
        )
        try:
            self._check_texts()
            costs = self._costs(engines)
            self._sessions = [
                make_session(pair, settings, engines, longest, costs) for settings in plan
            ]
            texts = {_text_of(settings) for settings in plan} if every else ()
            self._writers = {
                settings: Session(pair, settings, engines=engines, longest=longest)
                for settings in texts
            }
        except BaseException:
            self.records.close()
            raise
        left = [task for task in self._tasks if not self._finished(task)]
        mine = {id(task) for task in processes.share(left)}
        self._todo = [task for task in self._tasks if self._finished(task) or id(task) in mine]

    @property
    def law(self) -> str:
        """The laws of all settings, in words."""
        return "; ".join(dict.fromkeys(settings.law for settings in self._plan))

    @property
    def capture_seconds(self) -> float:
        """The seconds that capturing the steps of all settings took; 0 without a GPU."""
        return sum(session.capture_seconds for session in self._sessions)

    def __enter__(self) -> Evaluation:
        return self

    def __exit__(self, *_: object) -> None:
        self.records.close()

    def __len__(self) -> int:
        """How many items `run` yields in this process."""
        return len(self._plan) * len(self._todo)

    def run(self) -> Iterator[Done]:
        """Do what is not yet on disk, prompt by prompt. Yields every (prompt, setting) once,
        finished ones included.

        Of several processes each yields what was finished before and what it did itself. Then all
        records are merged.
        """
        for task in self._todo:
            if self._every:
                yield from self._along(task)
                continue
            for number in self._turns(task):
                run = self._runs[task.dataset][number]
                if (row := self.records.find(run, task.prompt, task.ids)) is not None:
                    yield Done(row=row, result=None)
                    continue
                self._warm_up(number, task)
                result = self._sessions[number].generate(task.ids, index=task.prompt.index)
                yield self._done(task, self._plan[number], result)
        self.records.merge()

    def _along(self, task: Task) -> Iterator[Done]:
        """The steps of every setting along one text of each temperature, top-p and seed."""
        for text_of, writer in self._writers.items():
            todo: list[int] = []
            for number in self._turns(task):
                if _text_of(self._plan[number]) != text_of:
                    continue
                run = self._runs[task.dataset][number]
                if (row := self.records.find(run, task.prompt, task.ids)) is not None:
                    yield Done(row=row, result=None)
                else:
                    todo.append(number)
            if not todo:
                continue
            for number in todo:
                self._warm_up(number, task)
            written = writer.generate(task.ids, index=task.prompt.index)
            sessions = [self._sessions[number] for number in todo]
            walks = follow(
                [session for session in sessions if isinstance(session, Session)],
                task.ids,
                written.output_ids,
                index=task.prompt.index,
                every=self._every,
            )
            for number, steps in zip(todo, walks, strict=True):
                seconds = sum(
                    getattr(step, f"{phase}_seconds") for step in steps for phase in PHASES
                )
                result = replace(written, steps=steps, prefill_seconds=0.0, seconds=seconds)
                yield self._done(task, self._plan[number], result)

    def _warm_up(self, number: int, task: Task) -> None:
        """Let a setting generate a few tokens that are not timed, once."""
        if number not in self._warm:
            few = min(WARM_UP_TOKENS, self._plan[number].new_tokens)
            self._sessions[number].generate(task.ids, new_tokens=few)
            self._warm.add(number)

    def _done(self, task: Task, settings: Settings, result: Generation) -> Done:
        """Write down what a setting did."""
        row = make_row(settings, task.dataset, task.prompt, result, self._about, self._every)
        self.records.append(row)
        return Done(row=row, result=result)

    def _turns(self, task: Task) -> list[int]:
        """The numbers of the plan for one prompt. Another setting begins each time, so no setting
        always follows the same one or always meets a machine that has cooled down."""
        first = task.prompt.index % len(self._plan)
        return [*range(first, len(self._plan)), *range(first)]

    def rows(self) -> Iterator[Row]:
        """The rows of the requested prompts and settings, by dataset, setting and prompt, after
        `run` has ended."""
        for dataset, runs in self._runs.items():
            yield from self.records.rows(runs, self._indices(dataset))

    def summaries(self) -> list[Summary]:
        """One summary a setting, in the plan's order, dataset by dataset, over the requested
        prompts."""
        out = []
        for dataset, runs in self._runs.items():
            rows = [list(self.records.rows([run], self._indices(dataset))) for run in runs]
            out += [summarise(own, rows[0]) for own in rows]
        return out

    def _indices(self, dataset: str) -> list[int]:
        return [task.prompt.index for task in self._tasks if task.dataset == dataset]

    def _check_texts(self) -> None:
        """Raise UsageError if a finished row has another text than the dataset has now."""
        for task in self._tasks:
            for run in self._runs[task.dataset]:
                self.records.find(run, task.prompt, task.ids)

    def _finished(self, task: Task) -> bool:
        return all(self.records.has(run, task.prompt.index) for run in self._runs[task.dataset])

    def _costs(self, engines: Engines) -> Costs:
        """The latency curve of this folder, which the first process of its first run measures.
        Raises UsageError if rows here used a curve that is lost."""
        paying = [number for number, settings in enumerate(self._plan) if settings.pays]
        if engines.draft is None or not paying:
            return UNMEASURED
        path = self.records.folder / "costs.json"
        kept = read_costs(path)
        lost = kept is None or len(kept.widths) == 1
        if lost and any(
            self.records.has(self._runs[task.dataset][number], task.prompt.index)
            for task in self._tasks
            for number in paying
        ):
            reason = "is missing, damaged or too short, and rows here went by it"
            raise UsageError("--output", path, reason, "put it back, or name another folder")
        if self._processes.main and (kept is None or kept.widths[-1] < widths_of(engines)[-1]):
            costs = load_costs(engines)
            if kept is not None:  # a wider grid: the widths that trees used so far keep their costs
                costs = kept.extended(costs)
            with write_output(path) as partial:
                partial.write_text(json.dumps(asdict(costs)) + "\n")
        self._processes.wait()
        agreed = read_costs(path)
        assert agreed is not None, "written above"
        return agreed


def _text_of(settings: Settings) -> Settings:
    """The settings that write the text along which these settings are compared."""
    names = (*LAW_FIELDS, "seed", "prompt_len", "new_tokens", "draft", "target", "M", "compile")
    return Settings(mode="auto", **{name: getattr(settings, name) for name in names})
