"""The engine of a draft that reads the target's hidden states (models/feature_draft.py).

It is an `Engine` with the target's engine beside it. What a token is read with depends on where it
stands:

- a token of the text, with the feature of the token before it, which the target's engine keeps by
  row. The text's rows are its positions. After a step the accepted tokens are read again, now with
  true features, so nothing of the tree is kept: `move` does nothing;
- a node of a tree, with what the draft carried out of its parent. The engine keeps that by row.

The first token of a text has no feature before it. The draft reads it with zeros only if it is the
root; later tokens do not see it. A draft that injects sees it, by its own feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from dynasurge.models.cuda_graphs import fused
from dynasurge.models.engine import Engine
from dynasurge.models.feature_draft import FeatureDraft

CHUNK = 1024  # tokens of a prompt that are read in one pass


class FeatureEngine(Engine):
    """A feature draft with room for `max_length` tokens of text and tree. Other arguments: see
    `Engine`."""

    model: FeatureDraft
    rereads = True

    def __init__(self, model: FeatureDraft, max_length: int, target: Engine, **how: Any) -> None:
        self._target, self._injects = target, bool(model.config.inject)
        super().__init__(model, max_length, **how)
        size = (self.max_length, int(model.config.hidden_size))
        self._carried = torch.zeros(size, dtype=model.dtype, device=model.device)
        self._root = torch.zeros(1, dtype=torch.int64, device=model.device)  # its position

    @torch.inference_mode()
    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append tokens (at least one) to the text; the target has read them. Returns the logits
        [V] after the last one."""
        assert tokens, "nothing to read"
        ids = torch.tensor(tokens, device=self.device)
        for part in ids.split(CHUNK):
            places = torch.arange(self.length, self.length + len(part), device=self.device)
            columns = torch.arange(int(places[-1]) + 1, device=self.device)
            logits = self.score(part, places, places, columns > places[:, None])
            self._inject(places[-1:], len(columns))  # from now on, it is read no more
            self._cache.length += len(part)
        return logits[-1]

    @torch.inference_mode()
    def along(self, tokens: Sequence[int], keep: int, levels: int = 1) -> torch.Tensor:
        """See `Engine.along`. The target has read the tokens. Where the text is shorter than a node
        is deep, its logits are those of the level above."""
        start = len(tokens) - keep
        first = max(0, start - levels + 1)
        if first:
            self.extend(tokens[:first])
        out: list[torch.Tensor] = [torch.empty(0)] * (levels * keep)
        for root in range(first, len(tokens)):
            for level, token in enumerate(tokens[root : root + levels]):
                place = torch.tensor([self.length + level], device=self.device)
                visible = torch.zeros(1, int(place) + 1, dtype=torch.bool, device=self.device)
                ids = torch.tensor([token], device=self.device)
                logits = self.score(ids, place, place, visible, place - 1 if level else None)[0]
                if 0 <= (at := root + level - start) < keep:
                    out[level * keep + at] = logits
            self.extend([tokens[root]])
        for at in range(keep, len(out)):
            out[at] = out[at] if len(out[at]) else out[at - keep]
        return torch.stack(out).view(levels, keep, -1)

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], parents: Sequence[int], *, keep: int = 0
    ) -> torch.Tensor:
        """Score nodes right below the text's last token, see `Engine.forward`. Raises ValueError for
        deeper ones: what is carried comes from level to level."""
        if any(parent != -1 for parent in parents):
            raise ValueError("a feature draft reads a tree level by level")
        count, length = len(tokens), self.length
        ids = torch.tensor([*tokens], device=self.device)
        rows = torch.arange(length, length + count, device=self.device)
        hidden = F.pad(~torch.eye(count, dtype=torch.bool, device=self.device), (length, 0))
        place = torch.full_like(rows, length)
        return self.score(ids, place, rows, hidden, place - 1)[-keep:]

    @torch.inference_mode()
    def score(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        hidden: torch.Tensor,
        parents: torch.Tensor | None = None,
        *,
        captured: bool = False,
    ) -> torch.Tensor:
        """Score nodes, see `Engine.score`; `parents` are their parents' rows. Without them, read the
        last tokens of the text, at rows that are their positions; then the logits [1, V] are those
        after the last one."""
        if parents is not None:
            features, keep = self._carried[parents], 0
        else:
            before = self._target.features[(positions - 1).clamp(min=0)]
            features, keep = torch.where(positions[:, None] > 0, before, 0), 1
            self._inject(rows[:-1], hidden.shape[1], captured)
            self._root.copy_(positions[-1:])
        if self._injects and parents is None:
            tokens, positions, rows = tokens[-1:], positions[-1:], rows[-1:]
            hidden, features = hidden[-1:], features[-1:]
        if not self._injects:
            first = torch.arange(hidden.shape[1], device=self.device) == 0
            later = self._root > 0 if parents is not None else positions > 0
            hidden = hidden | (first & later[:, None])
        how: dict[str, Any] = {"features": features[None], "own": parents is not None}
        with self._passing(rows, hidden.shape[1], captured):
            out = self._call(*self._read(tokens, positions), hidden, keep, **how)
        self._carried.index_copy_(0, rows, out.carried[0])
        return self._fitted(out.logits[0])

    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None:
        """Do nothing: accepted tokens are read again."""

    def _inject(self, rows: torch.Tensor, shown: int, captured: bool = False) -> None:
        """Write keys and values of these rows of the text from the target's features."""
        if self._injects and len(rows):
            with self._cache.writing_to(rows, shown):
                inject = fused(type(self.model).inject, captured and self.compiled)
                given = (self._target.features[rows][None], rows[None], self._cache)
                inject(self.model, *given)
