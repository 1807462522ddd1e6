"""Evaluation: prompts through one setting or several, interleaved, into records.

All settings take the same prompt before any takes the next, so that a machine that is slow for a minute slows them all
and ratios between them stay honest. Each setting first generates a few tokens that are not timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynasurge.config import Settings
from dynasurge.data import Prompt
from dynasurge.generation import Generation, Session, make_engines
from dynasurge.models import Pair
from dynasurge.records import RecordFile, Row, Summary, make_row, run_name, summarise

WARM_UP_TOKENS = 12


@dataclass(frozen=True, kw_only=True)
class Done:
    """One finished (prompt, setting): its row, and the generation itself unless the row was read from disk."""

    row: Row
    result: Generation | None


class Evaluation:
    """A plan of labelled settings over prompts. Construction checks everything that can be checked before running."""

    def __init__(
        self, pair: Pair, plan: Mapping[str, Settings], dataset: str, prompts: Sequence[Prompt], output: Path | None
    ) -> None:
        self._plan, self._dataset, self._prompts = plan, dataset, prompts
        engines = make_engines(pair, list(plan.values()))
        self._sessions = {label: Session(pair, settings, engines=engines) for label, settings in plan.items()}
        self._ids = {label: [s.encode(p.text) for p in prompts] for label, s in self._sessions.items()}
        self._runs = {label: run_name(settings, dataset) for label, settings in plan.items()}
        self.records = RecordFile(output, list(self._runs.values()))

    def __len__(self) -> int:
        return len(self._plan) * len(self._prompts)

    def run(self) -> Iterator[Done]:
        """Do what is not yet on disk, prompt by prompt; yields every (prompt, setting) once, finished ones included."""
        warm: set[str] = set()
        for number, prompt in enumerate(self._prompts):
            for label, settings in self._plan.items():
                ids = self._ids[label][number]
                if (row := self.records.find(self._runs[label], prompt, ids)) is not None:
                    yield Done(row=row, result=None)
                    continue
                session = self._sessions[label]
                if label not in warm:
                    session.generate(ids, new_tokens=min(WARM_UP_TOKENS, settings.new_tokens))
                    warm.add(label)
                result = session.generate(ids, index=prompt.index)
                row = make_row(label, self._runs[label], settings, self._dataset, prompt, result)
                self.records.append(row)
                yield Done(row=row, result=result)

    def summaries(self) -> list[Summary]:
        """One summary a setting, in the plan's order, over the prompts asked for."""
        wanted = {prompt.index for prompt in self._prompts}
        out = []
        for run in self._runs.values():
            out.append(summarise([row for row in self.records.rows if row["run"] == run and row["index"] in wanted]))
        return out
