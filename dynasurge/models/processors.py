"""The target's law at a node, where transformers' logits processors change it.

`generate` runs a stack of `LogitsProcessor`s over the logits before it draws: temperature, top-k,
penalties, bans. Many look at the text before the token. In a tree, the text before a node's
children is the text so far and the node's own path. So each node's logits go through the stack with
the node's own path, as they would if the path were text. What verification then accepts is, token
by token, what `generate` would draw.

transformers' own processors treat the rows of a batch one by one, so nodes of one depth go through
them together; and all nodes go together through those that do not look at the text, or only at
which tokens it has. These can be captured. A user's own processor gets one row at a time.
"""

from __future__ import annotations

import torch
from transformers import (
    EpsilonLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation import logits_process

from dynasurge.errors import UsageError

# Refused: they keep state from call to call, or look at more than ids and logits.
REFUSED = {
    "AlternatingCodebooksLogitsProcessor": "is for sound",
    "BarkEosPrioritizerLogitsProcessor": "is for sound",
    "ClassifierFreeGuidanceLogitsProcessor": "needs a second batch row (guidance_scale)",
    "DiaClassifierFreeGuidanceLogitsProcessor": "is for sound",
    "DiaEOSChannelFilterLogitsProcessor": "is for sound",
    "DiaEOSDelayPatternLogitsProcessor": "is for sound",
    "SynthIDTextWatermarkLogitsProcessor": "keeps state from call to call",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "runs the model itself (guidance_scale)",
    "WhisperNoSpeechDetection": "is for sound",
    "WhisperTimeStampLogitsProcessor": "is for sound",
}
# These do not look at the text, and read nothing on the host. (eta and top-h do not look at the text
# either, but read on the host.)
TEXTLESS = (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    MinPLogitsWarper,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
)
# These number the rows of a batch, or draw random numbers for them. (A repetition penalty that
# ignores a number of tokens for each row does, too.)
ONE_BY_ONE = {"PrefixConstrainedLogitsProcessor", "WatermarkLogitsProcessor"}


def check_processors(processors: LogitsProcessorList) -> None:
    """Raise UsageError if a processor is not a function of ids and logits."""
    for kind in (kind for processor in processors for kind in type(processor).__mro__):
        if kind.__module__ == logits_process.__name__ and kind.__name__ in REFUSED:
            reason, remedy = REFUSED[kind.__name__], "leave out what asks for it"
            raise UsageError("logits processor", kind.__name__, reason, remedy)


def captures(processors: LogitsProcessorList | None) -> bool:
    """Whether a stack can be captured: no processor looks at more of the text than which tokens it
    has, or reads values on the host."""
    return all(_textless(p) or _sees_set(p) for p in processors or ())


def processed(
    processors: LogitsProcessorList,
    text: torch.Tensor,
    paths: torch.Tensor,
    depth: torch.Tensor,
    logits: torch.Tensor,
) -> torch.Tensor:
    """The processed logits [n, V] of n nodes, float32 or better. text: int64 [length], up to the
    root; if `captures`, it may have a token of its own again and again at its end. paths: int64
    [n, D], the tokens from the root's child down to each node. depth: int64 [n], how many of them
    there are."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    if not len(scores):
        return scores
    paths = paths.clamp(min=0)  # -1: no token
    none = torch.zeros(len(scores), 0, dtype=torch.int64, device=scores.device)
    levels = None if captures(processors) else _levels(text, paths, depth)
    for processor in processors:
        if _textless(processor):
            scores = processor(none, scores)
        elif _sees_set(processor):
            there = torch.arange(paths.shape[1], device=paths.device) < depth[:, None]
            own = torch.where(there, paths, text[-1])
            scores = processor(torch.cat([text.expand(len(own), -1), own], dim=1), scores)
        else:
            assert levels is not None
            order, ids = levels
            parts = scores[order].split([len(own) for own in ids])
            done = [_run(processor, *pair) for pair in zip(ids, parts, strict=True)]
            scores = torch.empty_like(scores).index_copy(0, order, torch.cat(done))
    return scores


def drafted(
    processors: LogitsProcessorList,
    text: torch.Tensor,
    paths: torch.Tensor,
    depth: torch.Tensor,
    logits: torch.Tensor,
) -> torch.Tensor:
    """A draft's logits after the cheap ones of the processors: so it proposes what the target can
    accept. Arguments and result: see `processed`.

    A draft may have any law. So top-k keeps no more than k tokens if several are equally likely,
    and what comes after it sorts k tokens in place of the vocabulary.
    """
    cheap = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
    shared = [p for p in processors if type(p) in cheap or _sees_set(p)]
    first = next((n for n, p in enumerate(shared) if type(p) is TopKLogitsWarper), len(shared))
    before, after = LogitsProcessorList(shared[:first]), LogitsProcessorList(shared[first + 1 :])
    scores = processed(before, text, paths, depth, logits)
    if first == len(shared):
        return scores
    few, at = scores.topk(min(shared[first].top_k, scores.shape[1]))
    few = processed(after, text, paths, depth, few) if all(map(_textless, after)) else few
    return torch.full_like(scores, -torch.inf).scatter_(1, at, few)


def _levels(
    text: torch.Tensor, paths: torch.Tensor, depth: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The nodes [n] by depth, and the texts of those of one depth after the other."""
    depths, order = depth.sort(stable=True)
    ids, counts = [], depths.bincount().tolist()
    for level, rows in enumerate(order.split(counts)):
        if len(rows):
            ids.append(torch.cat([text.expand(len(rows), -1), paths[rows, :level]], dim=1))
    return order, ids


def _run(processor: LogitsProcessor, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """One processor over texts of one length [n, length]; a user's own gets one row at a time."""
    ignored = isinstance(getattr(processor, "prompt_ignore_length", None), torch.Tensor)
    if _is_own(processor) and type(processor).__name__ not in ONE_BY_ONE and not ignored:
        return torch.as_tensor(processor(ids, scores))
    rows = zip(ids.split(1), scores.split(1), strict=True)
    return torch.cat([processor(*row) for row in rows])


def _textless(processor: object) -> bool:
    """Whether a processor does not look at the text."""
    return type(processor) in TEXTLESS


def _sees_set(processor: object) -> bool:
    """Whether a processor only looks at which tokens a text has: then a text may have a token once
    more without effect."""
    known = type(processor) is RepetitionPenaltyLogitsProcessor
    return known and getattr(processor, "prompt_ignore_length", None) is None


def _is_own(processor: object) -> bool:
    """Whether a processor is transformers' own."""
    return type(processor).__module__ == logits_process.__name__
