"""One model with one preallocated cache. The engine takes only token ids and node numbers.

Decoding needs three calls. `extend(tokens)` reads text. `forward(tokens, parents)` scores nodes of
a token tree in one pass: a node sees the committed text, its ancestors and itself, at the position
of its depth. `commit(nodes)` makes one path part of the text and drops the other nodes.

The model is an unmodified transformers causal LM. The tree reaches it as additive masks
(models/attention_masks.py) and explicit position ids. The first pass over a text uses the model's
own masks, as `generate` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel

from dynasurge.errors import UsageError
from dynasurge.models.attention_masks import Masks
from dynasurge.models.compatibility import MODELS, cache_arguments, readable
from dynasurge.models.compiled_blocks import CompiledBlocks
from dynasurge.models.failures import no_numbers
from dynasurge.models.kv_cache import TreeCache, states_of
from dynasurge.models.model_changes import join_matrices

# For static passes, whose mask covers the whole cache; the fastest first.
STATIC_ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ALIGNED = 64  # cache rows come in multiples of this: attention kernels are slow on odd lengths


class Engine:
    """`model` with room for `max_length` tokens of text and tree together.

    static_length: how many cache rows static passes use (None: all); fewer are faster. compiled:
    whether torch.compile fuses the small kernels of static passes. vocab: the width of the returned
    logits, for a draft whose embedding table has another size than its target's. Extra columns are
    cut and missing ones are -inf; the draft never proposes such tokens. An id without an embedding
    is read as id 0. shared: bool [vocab], the tokens that a draft may propose (None: all); the
    logits of others are -inf.

    Raises UsageError if there is no memory for the cache, or if the model has several kinds of
    layers but takes only one mask.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        max_length: int,
        *,
        static_length: int | None = None,
        vocab: int | None = None,
        shared: torch.Tensor | None = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.compiled = model, compiled
        self._texts = 0
        self.widest = max_length
        aligned = ALIGNED if model.device.type == "cuda" else 1
        self.static_length = -(-(static_length or max_length) // aligned) * aligned
        self.max_length = max(max_length, self.static_length)
        config = model.config.get_text_config()
        self.vocab = vocab or config.vocab_size
        self._known = config.vocab_size
        self._shared = shared.to(model.device) if shared is not None else None
        self._last = min(self.static_length, readable(config, self.static_length)) - 1
        self._masks = Masks(config, model.dtype)
        self._keeps = "logits_to_keep" in inspect.signature(type(model).forward).parameters
        with torch.inference_mode():
            self._cache = TreeCache(self._sample(), self.max_length, self.static_length)
        self._prepared = False  # for static passes
        self._compiled: CompiledBlocks | None = None
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._sees = np.zeros(
            (0, 0), dtype=bool
        )  # [nodes or more, same]: the ancestors of each node, itself included

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget the text and begin another."""
        self._texts += 1
        self._cache.clear()
        self._clear()

    @property
    def texts(self) -> int:
        """How many texts were begun so far. A decoder sees from it that another text has begun."""
        return self._texts

    @property
    def device(self) -> torch.device:
        """The device of the logits."""
        return self.model.device

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes of the weights, and of the cache, which is allocated as a whole."""
        weights = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        return weights, self._cache.nbytes

    @property
    def reach(self) -> int:
        """How many tokens a text may have: limited by the cache's rows and by the positions that
        the model can read."""
        return min(self.max_length, readable(self.model.config, 0))

    @property
    def length(self) -> int:
        """How many tokens of text the cache holds."""
        return self._cache.length

    def extend(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append tokens (at least one) to the text. Returns the logits [V] after the last one.
        Raises UsageError if the first logits of a text are no numbers."""
        assert tokens, "nothing to read"
        assert not self._parents, "text is extended between trees"
        if self.length == 0:
            return self._begin(list(tokens))
        logits = self.forward(tokens, range(-1, len(tokens) - 1), keep=1)
        self.commit(range(len(tokens)))
        return logits[-1]

    @torch.inference_mode()
    def _begin(self, tokens: list[int]) -> torch.Tensor:
        """Read the first tokens of a text, with the model's own masks."""
        numbers = torch.tensor([self._known_ids(tokens), [*range(len(tokens))]], device=self.device)
        logits = self._fitted(self._run(numbers[:1], numbers[1:], None, keep=1))[-1]
        self._cache.append(len(tokens))
        self._cache.commit(range(len(tokens)))
        if (
            not logits.amax().isfinite()
        ):  # NaN and inf survive amax; checked once a text, because it waits
            raise no_numbers("model", self.model.name_or_path)
        return logits

    def cut(self, length: int) -> None:
        """Forget the text after its first `length` tokens, if it has more."""
        self._cache.cut(length)

    @torch.inference_mode()
    def forward(
        self, tokens: Sequence[int], parents: Sequence[int], *, keep: int = 0
    ) -> torch.Tensor:
        """Score new nodes after the text and the present nodes.

        tokens: n ids. parents: n node numbers, counted from the first node since the last commit;
        -1 for a node that follows the text directly. Returns logits [n, V]; with keep > 0, only
        those of the last `keep` nodes.
        """
        first = len(self._parents)
        self._append(parents)
        logits = self._score(
            self._known_ids(tokens),
            [self.length + depth for depth in self._depths[first:]],
            torch.from_numpy(self._sees[first : len(self._parents), : len(self._parents)]),
            keep,
        )
        self._cache.append(len(tokens))
        return self._fitted(logits)

    @torch.inference_mode()
    def score_at(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor,
        hidden: torch.Tensor,
    ) -> torch.Tensor:
        """A static pass. All its inputs are on the device, so it can be captured in a CUDA graph.

        tokens, positions, rows: int64 [n]; keys and values are written to `rows`. hidden: bool [n,
        static_length], True for rows that a node may not see. Call `prepare` first. Returns logits
        [n, V].
        """
        known = torch.where((tokens >= 0) & (tokens < self._known), tokens, 0)
        where = positions.clamp(max=self._last)
        blocks = self._compiled.installed(len(tokens)) if self._compiled else nullcontext()
        attention = sdpa_kernel(STATIC_ATTENTION, set_priority=True)
        with self._cache.writing_to(rows), blocks, attention:
            return self._fitted(self._run(known[None], where[None], hidden, 0))

    @torch.inference_mode()
    def prepare(self) -> None:
        """Prepare for static passes, once, before any is captured: move matrices to their final
        place (models/model_changes.py), and compile if `compiled`. This writes to the last static
        row."""
        if self._prepared:
            return
        one = torch.zeros(1, dtype=torch.int64, device=self.device)
        row = one + self.static_length - 1
        hidden = torch.arange(self.static_length, device=self.device)[None] < row[:, None]
        run = partial(self._run, one[None], one[None], hidden, 0)
        with self._cache.writing_to(row), sdpa_kernel(STATIC_ATTENTION, set_priority=True):
            groups = join_matrices(self.model, run)
        if self.compiled:
            self._compiled = CompiledBlocks(self.model, self._cache, groups)
        self._prepared = True

    @torch.inference_mode()
    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None:
        """Copy cache rows [m] to rows [m], as the commit of a path does. Both tensors are on the
        device."""
        self._cache.move(rows, to)

    def _known_ids(self, tokens: Sequence[int]) -> list[int]:
        return [token if token < self._known else 0 for token in tokens]

    def _fitted(self, logits: torch.Tensor) -> torch.Tensor:
        if self.vocab != logits.shape[-1]:
            logits = F.pad(
                logits, (0, self.vocab - logits.shape[-1]), value=-torch.inf
            )  # a negative pad cuts
        return logits if self._shared is None else logits.masked_fill(~self._shared, -torch.inf)

    @torch.inference_mode()
    def commit(self, nodes: Sequence[int]) -> None:
        """Make the path `nodes` (numbers as in `forward`, parents first) part of the text; drop all
        other nodes."""
        assert all(self._parents[n] == p for n, p in zip(nodes, (-1, *nodes), strict=False)), (
            "nodes are not a path"
        )
        self._cache.commit(list(nodes))
        self._clear()

    def _append(self, parents: Sequence[int]) -> None:
        """Note new nodes and their ancestors."""
        end = len(self._parents) + len(parents)
        if end > len(self._sees):
            grown = np.zeros((2 * end, 2 * end), dtype=bool)
            grown[: len(self._sees), : len(self._sees)] = self._sees
            self._sees = grown
        for node, parent in enumerate(parents, start=len(self._parents)):
            self._sees[node] = self._sees[parent] if parent >= 0 else False
            self._sees[node, node] = True
            self._depths.append(self._depths[parent] + 1 if parent >= 0 else 0)
        self._parents.extend(parents)

    def _clear(self) -> None:
        self._parents.clear()
        self._depths.clear()

    def _score(
        self, tokens: list[int], positions: list[int], ancestors: torch.Tensor, keep: int
    ) -> torch.Tensor:
        """Run one pass. ancestors: bool [n, nodes], which nodes of the tree each new node sees,
        itself included."""
        numbers = torch.tensor([tokens, positions], device=self.device)
        hidden = F.pad(~ancestors, (self.length, 0))
        return self._run(numbers[:1], numbers[1:], hidden.to(self.device), keep)

    def _run(
        self, ids: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor | None, keep: int
    ) -> torch.Tensor:
        """Call the model. ids, positions: int64 [1, n]. hidden: bool [n, cache rows], True for rows
        that a node may not see; None for the beginning of a text. Returns logits [n, V]; with keep
        > 0, only those of the last `keep` nodes."""
        arguments: dict[str, Any] = {
            "attention_mask": self._masks(hidden) if hidden is not None else None,
            "position_ids": positions,
            "use_cache": True,
        }
        arguments |= cache_arguments(type(self.model), self._cache)
        if self._keeps:
            arguments["logits_to_keep"] = keep
        logits: torch.Tensor = self.model(input_ids=ids, **arguments).logits[0]
        return logits[-keep:]

    def _sample(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of one token, by layer. Raises UsageError if the model does not take its
        masks, or keeps anything besides keys and values."""
        cache, number = DynamicCache(), torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        mask = self._masks(torch.zeros(1, 1, dtype=torch.bool, device=self.device))
        try:
            room = cache_arguments(type(self.model), cache)
            self.model(
                input_ids=number, attention_mask=mask, position_ids=number, use_cache=True, **room
            )
            return states_of(cache)
        except (
            AttributeError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            NotImplementedError,
        ) as error:
            reason = (
                f"cannot read a tree ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            )
            raise UsageError("model", self.model.name_or_path, reason, MODELS) from error
