"""Decoding in the background: one thread, one prompt at a time; every step can be shown as soon as
it is decoded.

A `Run` is one generation in progress. It is cancelled between two steps, so a reader who keeps
changing settings never waits for more than one step. Waiting runs take turns in the order of their
start, because they share the models and their caches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

from dynasurge.decoding.engines import Engines, make_engines
from dynasurge.decoding.session import Session
from dynasurge.decoding.trace import LIKELY, StepView, watch
from dynasurge.errors import UsageError
from dynasurge.models.pair import Pair
from dynasurge.settings import Settings


@dataclass(kw_only=True, eq=False)
class Run:
    """title: its settings in words. prompt: the text as the models read it. note: a remark for the
    reader. steps: those decoded so far. error: why there are no more, one line. finished: also True
    for a cancelled run."""

    title: str = ""
    prompt: str = ""
    note: str = ""
    steps: list[StepView] = field(default_factory=list)
    finished: bool = False
    cancelled: bool = False
    error: str = ""


class Background:
    """The thread, and the engines that all its runs share.

    roomiest: settings whose engines are large enough for every run. The thread calls on_change,
    with `changed` held, at every progress of a run that is not cancelled.
    """

    def __init__(self, pair: Pair, roomiest: Settings, on_change: Callable[[], None]) -> None:
        self._pair, self._roomiest, self._on_change = pair, roomiest, on_change
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dynasurge")
        self.changed = threading.Condition()  # hold it to read a run
        self._closed = False

    def start(self, prompt: str, settings: Settings) -> Run:
        """Decode after a prompt. Returns the run, which waits for its turn."""
        run = Run(title=settings.arguments)
        if self._closed:
            return Run(finished=True, error="closed")
        self._worker.submit(self._decode, run, prompt, settings)
        return run

    def wait(self, runs: Sequence[Run], step: int, timeout: float | None) -> bool:
        """Block until every run has this step or has ended, or until `close`. Returns False if
        `timeout` seconds pass first."""
        with self.changed:
            return self.changed.wait_for(
                lambda: self._closed or all(run.finished or len(run.steps) > step for run in runs),
                timeout,
            )

    def close(self) -> None:
        """Start no more runs, and end all waits."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    @cached_property
    def _engines(self) -> Engines:
        return make_engines(self._pair, [self._roomiest])

    def _decode(self, run: Run, prompt: str, settings: Settings) -> None:
        error = ""
        try:
            if not run.cancelled:
                session = Session(self._pair, settings, engines=self._engines, likely=LIKELY)
                ids = session.encode(prompt)
                run.prompt = str(self._pair.tokenizer.decode(ids))
                if len(self._pair.encode(prompt, chat=settings.chat)) > len(ids):
                    run.note = f"prompt cut to its first {len(ids)} tokens"
                for step in watch(session, ids):
                    if run.cancelled:
                        break
                    with self.changed:
                        run.steps.append(step)
                        self._tell(run)
        except UsageError as mistake:
            error = str(mistake)
        except Exception as fault:
            # no caller sees this thread's exceptions, so the run must show them
            error = f"{type(fault).__name__}: {fault}"
        with self.changed:
            run.finished, run.error = True, error
            self._tell(run)

    def _tell(self, run: Run) -> None:
        if not run.cancelled:
            try:
                self._on_change()
            finally:
                self.changed.notify_all()
        else:
            self.changed.notify_all()
