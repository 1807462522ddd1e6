"""The target's law at a node, where transformers' logits processors change it.

`generate` runs a stack of `LogitsProcessor`s over the logits before it draws: temperature, top-k,
penalties, bans. Many look at the text before the token. In a tree, the text before a node's
children is the text so far and the node's own path. So each node's logits go through the stack with
the node's own path, as they would if the path were text. What verification then accepts is, token
by token, what `generate` would draw.

transformers' own processors treat the rows of a batch one by one, so nodes of one depth go through
them together, and all nodes if no processor looks at the text. A user's own processor gets one row
at a time.
"""

from __future__ import annotations

import torch
from transformers import (
    EpsilonLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MinPLogitsWarper,
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
# The draft's logits go through these, too: so it proposes what the target can accept.
DRAFTS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
# These do not look at the text, and read nothing on the host: they can be captured. (eta and top-h
# do not look at the text either, but read on the host.)
TEXTLESS = (
    *DRAFTS,
    TypicalLogitsWarper,
    EpsilonLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
)
# These number the rows of a batch, or draw random numbers for them.
ONE_BY_ONE = {"PrefixConstrainedLogitsProcessor", "WatermarkLogitsProcessor"}


def check_processors(processors: LogitsProcessorList) -> None:
    """Raise UsageError if a processor is not a function of ids and logits."""
    for processor in processors:
        name = type(processor).__name__
        if _is_own(processor) and name in REFUSED:
            raise UsageError("logits processor", name, REFUSED[name], "leave out what asks for it")


def is_textless(processors: LogitsProcessorList | None) -> bool:
    """Whether no processor looks at the text, or reads values on the host."""
    return all(type(processor) in TEXTLESS for processor in processors or ())


def drafted(processors: LogitsProcessorList, logits: torch.Tensor) -> torch.Tensor:
    """A draft's logits [n, V] after those processors that it shares with the target (DRAFTS)."""
    shared = LogitsProcessorList([p for p in processors if type(p) in DRAFTS])
    return textless(shared, logits)


def textless(processors: LogitsProcessorList, logits: torch.Tensor) -> torch.Tensor:
    """The processed logits [n, V], float32 or better, where no processor looks at the text."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    none = torch.zeros(len(logits), 0, dtype=torch.int64, device=logits.device)
    return _run(processors, none, scores)


def processed(
    processors: LogitsProcessorList,
    text: torch.Tensor,
    paths: torch.Tensor,
    depth: torch.Tensor,
    logits: torch.Tensor,
) -> torch.Tensor:
    """The processed logits [n, V] of n nodes, float32 or better. text: int64 [length], up to the
    root. paths: int64 [n, D], the tokens from the root's child down to each node. depth: int64 [n],
    how many of them there are."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    for level in depth.unique().tolist():
        rows = (depth == level).nonzero()[:, 0]
        ids = torch.cat([text.expand(len(rows), -1), paths[rows, :level]], dim=1)
        scores[rows] = _run(processors, ids, scores[rows])
    return scores


def _run(processors: LogitsProcessorList, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    for processor in processors:
        if _is_own(processor) and type(processor).__name__ not in ONE_BY_ONE:
            scores = processor(ids, scores)
        else:
            rows = [
                processor(one, own) for one, own in zip(ids.split(1), scores.split(1), strict=True)
            ]
            scores = torch.cat(rows)
    return scores


def _is_own(processor: object) -> bool:
    """Whether a processor is transformers' own."""
    return type(processor).__module__ == logits_process.__name__
