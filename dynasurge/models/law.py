"""The law that settings ask for: what tokens are drawn from after a prompt, and where a text ends.

Temperature and top-p are computed by probabilities.py. All else is what transformers' `generate`
builds from a generation config: a stack of logits processors, and stopping criteria. `generate`
itself is asked for them: it runs with a loop that only returns what it was given.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from dynasurge.errors import UsageError
from dynasurge.models.pair import Pair, token_ids
from dynasurge.models.processors import captures, check_processors, processed
from dynasurge.settings import Settings

Stops = Callable[[Sequence[int]], bool]
"""Whether a text, prompt included, ends after its last token."""


class Law(NamedTuple):
    """What tokens are drawn from. T (0: greedy), P: temperature and top-p. processors: what the
    target's logits go through instead, None if T and P say all; T then only says whether text is
    greedy. stops: where a text ends besides end tokens; None if nowhere."""

    T: float
    P: float
    processors: LogitsProcessorList | None = None
    stops: Stops | None = None


def law_of(samples: bool, processors: LogitsProcessorList) -> Law:
    """The law of a stack that `generate` built. Raises UsageError if a processor is not a function
    of ids and logits."""
    check_processors(processors)
    T, P, rest = (1.0 if samples else 0.0), 1.0, False
    for processor in processors:
        if type(processor) is TemperatureLogitsWarper and P == 1.0:
            T *= processor.temperature
        elif type(processor) is TopPLogitsWarper and P == 1.0 and processor.min_tokens_to_keep == 1:
            P = processor.top_p
        else:
            rest = True
    return Law(T, P, processors if rest else None)


class Asked:
    """The law that settings ask for, prompt by prompt.

    first: after a prompt of one token. fixed: whether every prompt has this law. eos: the tokens
    that end a text.
    """

    def __init__(
        self,
        pair: Pair,
        settings: Settings,
        processors: LogitsProcessor | LogitsProcessorList | None = None,
    ) -> None:
        """settings: with a whole law. processors: a user's own, which `generate` puts after its
        other ones, but before those that only sampling has. Raises UsageError if the settings ask
        for what `generate` or a tree cannot do."""
        assert settings.T is not None
        assert settings.P is not None
        entries = json.loads(settings.generation_config or "{}")
        ends = entries.pop("eos_token_id", None)
        self.eos = pair.eos if ends is None else token_ids(ends, "eos_token_id")
        if isinstance(processors, LogitsProcessor):
            processors = LogitsProcessorList([processors])
        self._pair, self._own = pair, processors
        self._strings = entries.pop("stop_strings", None)
        more = {"top_k": settings.top_k, "min_p": float(settings.min_p or 0.0) or None}
        penalty = float(settings.repetition_penalty or 1.0)
        self.first, self.fixed = Law(settings.T, settings.P), True
        if not (entries or processors or self._strings or any(more.values()) or penalty != 1.0):
            return
        entries |= {"repetition_penalty": penalty}
        if settings.T > 0:
            sampling = {"temperature": float(settings.T), "top_p": float(settings.P)}
            entries |= sampling | more | {"do_sample": True}
        known = sorted(self.eos)
        entries |= {"eos_token_id": known or None, "pad_token_id": known[0] if known else None}
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            ids = token_ids(entries.get(name), name)
            if ids and not 0 <= min(ids) <= max(ids) < pair.vocab:
                reason = f"the target knows ids 0 to {pair.vocab - 1}"
                raise UsageError(name, sorted(ids), reason, "correct that entry")
        self._entries = entries
        # the same model and weights, without its own config, which `generate` would add
        self._model = copy.copy(pair.target)
        self._model.generation_config = GenerationConfig()
        self.first, self.fixed = self._try(settings.new_tokens), False
        # what can be captured does not depend on the prompt
        self.fixed = captures(self.first.processors) and self.first.stops is None

    def after(self, prompt: list[int], new_tokens: int) -> Law:
        """The law after a prompt, for a text of so many new tokens."""
        return self.first if self.fixed else self._ask(prompt, new_tokens)

    def _try(self, new_tokens: int) -> Law:
        """The law after a prompt of one token, used at its start and at its end. Raises UsageError
        for values that transformers cannot use."""
        try:
            law = self._ask([0], new_tokens)
            own = list(self._own or ())  # may need a longer text
            built = LogitsProcessorList([p for p in law.processors or () if p not in own])
            for length in (1, max(1, new_tokens)):
                text = torch.zeros(length, dtype=torch.int64, device=self._model.device)
                logits = torch.zeros(1, self._pair.vocab, device=text.device)
                depth = torch.zeros(1, dtype=torch.int64, device=text.device)
                processed(built, text, text[None, :0], depth, logits)
            _ = law.stops is not None and law.stops([0])
        except UsageError:
            raise
        except Exception as error:  # what a value may break has no common type
            reason = f"transformers cannot use it ({' '.join(str(error).split())[:160]})"
            entries = self._entries | {"stop_strings": self._strings}
            told = {name: value for name, value in entries.items() if value is not None}
            remedy = "correct that entry"
            raise UsageError("generation config", str(told)[:200], reason, remedy) from error
        return law

    def _ask(self, prompt: list[int], new_tokens: int) -> Law:
        given: list[Any] = []

        def loop(
            model: Any,
            input_ids: torch.Tensor,
            logits_processor: Any,
            stopping_criteria: Any,
            generation_config: Any,
            **_: Any,
        ) -> torch.Tensor:
            given.extend((logits_processor, stopping_criteria))
            return input_ids

        stops = StoppingCriteriaList()
        if self._strings is not None:
            stops.append(StopStringCriteria(self._pair.tokenizer, self._strings))
        text = torch.tensor([prompt], device=self._model.device)
        generate: Any = self._model.generate
        with warnings.catch_warnings(action="ignore"):
            generate(
                text,
                attention_mask=torch.ones_like(text),
                generation_config=GenerationConfig(**self._entries, max_new_tokens=new_tokens),
                logits_processor=self._own,
                stopping_criteria=stops,
                custom_generate=loop,
            )
        processors, criteria = given
        known = (MaxLengthCriteria, EosTokenCriteria)  # the loop's own work
        rest = StoppingCriteriaList([c for c in criteria if not isinstance(c, known)])
        law = law_of(self.first.T > 0, processors)
        return law._replace(stops=_stops(rest, text.device) if rest else None)


def _stops(criteria: StoppingCriteriaList, device: torch.device) -> Stops:
    def ended(text: Sequence[int]) -> bool:
        return bool(criteria(torch.tensor([text], device=device), None).all())

    return ended
