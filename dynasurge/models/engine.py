"""One model with one preallocated cache. The engine takes only token ids, positions and cache rows.

`extend(tokens)` reads text. `score` scores nodes of a token tree in one pass: each at a position, in
a cache row, with the rows that it must not see. `move` copies rows, as the commit of a path does.
All inputs of the last two are tensors, so a pass can be captured in a CUDA graph. `forward` and
`commit` do the same for a tree given as a list of parents.

With `taps`, the engine keeps for every row the residual stream after some of the layers, which a
feature draft reads (models/feature_engine.py).

The model is an unmodified transformers causal LM. The tree reaches it as additive masks
(models/attention_masks.py) and explicit position ids. The first pass over a text uses the model's
own masks, as `generate` does.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, PreTrainedModel

from dynasurge.errors import UsageError, described
from dynasurge.models.attention_masks import Masks
from dynasurge.models.compatibility import MODELS, cache_arguments, readable
from dynasurge.models.compiled_blocks import CompiledBlocks, blocks_of
from dynasurge.models.cuda_graphs import fused
from dynasurge.models.failures import no_numbers
from dynasurge.models.kv_cache import TreeCache, states_of
from dynasurge.models.model_changes import join_matrices
from dynasurge.models.tree_attention import reading_trees
from dynasurge.trees.token_tree import ancestor_mask, depths_of

ALIGNED = 64  # cache rows come in multiples of this: attention kernels are slow on odd lengths


def places(model: PreTrainedModel) -> set[int | str | torch.device]:
    """The devices of a model's parts, by its device map; empty without one."""
    return set(getattr(model, "hf_device_map", {}).values())


class Engine:
    """`model` with room for `max_length` tokens of text and tree together.

    static_length: how many cache rows captured passes see (None: all); fewer are faster. compiled:
    whether torch.compile fuses the small kernels of captured passes. vocab: the width of the returned
    logits, for a draft whose embedding table has another size than its target's. Extra columns are
    cut and missing ones are -inf; the draft never proposes such tokens. An id without an embedding
    is read as id 0. shared: bool [vocab], the tokens that a draft may propose (None: all); the
    logits of others are -inf. taps: after how many layers the residual stream is kept, its first
    `tap_width` numbers.

    rereads: whether accepted tokens are read again, with what is known of them then.

    Raises UsageError if there is no memory for the cache, or if the model has several kinds of
    layers but takes only one mask.
    """

    rereads = False

    def __init__(
        self,
        model: PreTrainedModel,
        max_length: int,
        *,
        static_length: int | None = None,
        vocab: int | None = None,
        shared: torch.Tensor | None = None,
        compiled: bool = False,
        taps: Sequence[int] = (),
        tap_width: int | None = None,
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
        width = tap_width or config.hidden_size
        self.features = torch.zeros(
            self.max_length, len(taps) * width, dtype=model.dtype, device=model.device
        )
        blocks = blocks_of(model) if taps else []
        kept = self.features.split(width, dim=1)
        self._taps = [(blocks[tap - 1], part) for tap, part in zip(taps, kept, strict=False)]
        with torch.inference_mode():
            beside = [self.features] if taps else []
            self._cache = TreeCache(self._sample(), self.max_length, beside)
        self._prepared = False  # for captured passes
        self._fuses = False  # whether the present pass is compiled
        self._compiled: CompiledBlocks | None = None

    @torch.inference_mode()
    def reset(self) -> None:
        """Forget the text and begin another."""
        self._texts += 1
        self._cache.clear()

    @property
    def texts(self) -> int:
        """How many texts were begun so far. A decoder sees from it that another text has begun."""
        return self._texts

    @property
    def device(self) -> torch.device:
        """The device of the logits."""
        return self.model.device

    @property
    def spread(self) -> bool:
        """Whether the model is spread over devices. Then its passes cannot be captured."""
        return len(places(self.model)) > 1

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
        if self.length == 0:
            return self._begin(list(tokens))
        logits = self.forward(tokens, range(-1, len(tokens) - 1), keep=1)
        self.commit(range(len(tokens)))
        return logits[-1]

    @torch.inference_mode()
    def _begin(self, tokens: list[int]) -> torch.Tensor:
        """Read the first tokens of a text, with the model's own masks."""
        ids = torch.tensor([self._known_ids(tokens)], device=self.device)
        rows = torch.arange(len(tokens), device=self.device)
        with self._cache.writing_to(rows, len(tokens)):
            logits = self._fitted(self._run(ids, rows[None], None, keep=1))[-1]
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
        """Score nodes after the text.

        tokens: n ids. parents: n node numbers, from 0; -1 for a node that follows the text
        directly. Returns logits [n, V]; with keep > 0, only those of the last `keep` nodes.
        """
        length, end = self.length, self.length + len(tokens)
        assert end <= self.max_length, f"cache of {self.max_length} rows asked to hold {end}"
        positions = [length + depth for depth in depths_of(parents)]
        ids = torch.tensor([self._known_ids(tokens), positions], device=self.device)
        hidden = F.pad(~ancestor_mask(parents), (length, 0)).to(self.device)
        with self._passing(torch.arange(length, end, device=self.device), end, False):
            return self._fitted(self._run(ids[:1], ids[1:], hidden, keep))

    def along(self, tokens: Sequence[int], keep: int, levels: int = 1) -> torch.Tensor:
        """The logits [levels, keep, V] after each of the last `keep` of these tokens, which follow
        the text. At level j the token is read as a node j - 1 levels below the root; to a model
        that reads tokens only, all levels are the same."""
        logits = self.forward(tokens, range(-1, len(tokens) - 1), keep=keep)
        return logits.expand(levels, *logits.shape)

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
        """Score nodes. All inputs are on the device.

        tokens, positions, rows: int64 [n]; keys and values are written to `rows`. hidden: bool [n,
        shown], True for rows that a node may not see; no node sees rows from `shown` on. captured:
        whether the pass is to be captured; then `shown` is static_length, and `prepare` was called.
        parents: the rows of the nodes' parents, for drafts that carry something from node to node.
        Returns logits [n, V].
        """
        with self._passing(rows, hidden.shape[1], captured):
            return self._fitted(self._run(*self._read(tokens, positions), hidden, 0))

    def _read(
        self, tokens: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model reads of these tokens and positions [n]; [1, n] each."""
        return fused(bounded, self._fuses)(tokens, positions, self._known, self._last)

    @contextmanager
    def _passing(self, rows: torch.Tensor, shown: int, captured: bool) -> Iterator[None]:
        """Inside, the model reads one token for each of `rows`, see `score`."""
        with ExitStack() as inside:
            inside.enter_context(self._cache.writing_to(rows, shown))
            if captured and self._compiled is not None:
                inside.enter_context(self._compiled.installed(len(rows)))
                self._fuses = True
                inside.callback(setattr, self, "_fuses", False)
            if captured or len(rows) > 1:  # one token has what it needs
                inside.enter_context(reading_trees(self.model, captured=captured))
            yield

    @torch.inference_mode()
    def prepare(self) -> None:
        """Prepare for captured passes, once, before the first: move matrices to their final place
        (models/model_changes.py), and compile if `compiled`. This writes to the last static row. A
        spread model stays as it is."""
        if self._prepared or self.spread:
            return
        one = torch.zeros(1, dtype=torch.int64, device=self.device)
        row = one + self.static_length - 1
        hidden = torch.arange(self.static_length, device=self.device)[None] < row[:, None]
        run = partial(self._run, one[None], one[None], hidden, 0)
        with self._passing(row, self.static_length, True):
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
        """Make the path `nodes` (numbers as in `forward`, parents first) part of the text; the
        other nodes are forgotten."""
        self._cache.commit(list(nodes))

    def _run(
        self, ids: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor | None, keep: int
    ) -> torch.Tensor:
        """Call the model. Returns logits [n, V]; with keep > 0, only those of the last `keep`
        nodes."""
        logits: torch.Tensor = self._call(ids, positions, hidden, keep).logits[0]
        return logits[-keep:]

    def _call(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor | None,
        keep: int,
        **more: Any,
    ) -> Any:
        """Call the model. ids, positions: int64 [1, n]. hidden: bool [n, cache rows], True for rows
        that a node may not see; None for the beginning of a text. keep: see `_run`. more: other
        arguments. Returns what the model returns."""
        arguments: dict[str, Any] = more | {
            "attention_mask": None if hidden is None else self._masks(hidden, compiled=self._fuses),
            "position_ids": positions,
            "use_cache": True,
        }
        arguments |= cache_arguments(type(self.model), self._cache)
        if self._keeps:
            arguments["logits_to_keep"] = keep
        with self._tapped():
            return self.model(input_ids=ids, **arguments)

    @contextmanager
    def _tapped(self) -> Iterator[None]:
        """Inside, each pass leaves the residual stream after some layers in `features`."""
        with ExitStack() as hooks:
            for block, kept in self._taps:
                keep = partial(self._keep, kept)
                hooks.callback(block.register_forward_hook(keep).remove)
            yield

    def _keep(self, kept: torch.Tensor, block: torch.nn.Module, given: Any, out: Any) -> None:
        stream = (out[0] if isinstance(out, tuple) else out)[0, :, : kept.shape[1]]
        rows, _ = self._cache.pass_rows
        kept.index_copy_(0, rows.to(kept.device), stream.to(kept.device, kept.dtype))

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
            reason = f"cannot read a tree ({described(error)})"
            raise UsageError("model", self.model.name_or_path, reason, MODELS) from error


def bounded(
    tokens: torch.Tensor, positions: torch.Tensor, known: int, last: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and positions [n] as a model can read them, [1, n] each: of `known` tokens others are
    0, and no position is after `last`."""
    readable = torch.where((tokens >= 0) & (tokens < known), tokens, 0)
    return readable[None], positions.clamp(max=last)[None]
