"""A preallocated key/value cache that holds one committed text and, behind it, the nodes of a token tree.

Rows [0, length) belong to the committed text. Nodes of the tree being scored are appended behind them, in any order in
which a parent comes before its children. `commit` keeps the rows of one path, moved to the front, and drops the rest:

    rows:   0 ... length-1 | root  a  b  a1  b1      commit(root, b, b1)      0 ... length-1  root  b  b1 |

All layers live in one tensor, so a commit is one gather and one copy however deep the model is (one for each device, if
the model is spread over several). A pass either appends
(rows and what attention sees are plain slices) or, inside a captured CUDA graph, writes to rows named by a tensor and
shows attention every row, the mask hiding those not in use: then nothing about it changes shape from pass to pass.

Only this file and engine.py touch the internals of transformers' caches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from dynasurge.faults import shrinking


class TreeCacheLayer(CacheLayerMixin):
    """One attention layer's view of the cache: keys and values [1, heads, max_length, head size]."""

    is_sliding = False

    def __init__(self, cache: TreeCache, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache, self._number = cache, number

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take this layer's part of the cache on the first pass, when heads, device and dtype are known."""
        self.keys, self.values = self._cache.allocate(key_states, self._number)
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write n rows [1, heads, n, head size] where the cache says and return the rows that attention may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        rows = self._cache.rows
        if rows is not None:
            self.keys.index_copy_(2, rows, key_states)
            self.values.index_copy_(2, rows, value_states)
            return self.keys[:, :, : self._cache.shown], self.values[:, :, : self._cache.shown]
        start = self._cache.filled
        end = start + key_states.shape[-2]
        assert end <= self._cache.max_length, f"cache of {self._cache.max_length} rows asked to hold {end}"
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Rows in use."""
        return self._cache.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the keys a pass over `query_length` new tokens attends to."""
        return self._cache.filled + query_length, 0

    def get_max_length(self) -> int:
        """Rows allocated."""
        return self._cache.max_length

    get_max_cache_shape = get_max_length  # its name before transformers 5.18


class TreeCache(Cache):
    """`layers` layers of `max_length` rows; `length` of them are committed, `filled` are in use.

    A stack holds the keys and values of the layers from the first on its device; layers follow each other from device to
    device. rows: int64 [n] on the device, where the pass being captured or replayed writes; None to append.
    """

    def __init__(self, layers: int, max_length: int, shown: int | None = None) -> None:
        """shown: how many rows static passes look at, all if None."""
        super().__init__(layers=[TreeCacheLayer(self, number) for number in range(layers)])
        self.max_length, self.shown = max_length, shown or max_length
        self.length = self.filled = 0
        self.rows: torch.Tensor | None = None
        self._stacks: dict[torch.device, tuple[int, torch.Tensor]] = {}  # [layers, 2, heads, max_length, size]

    def allocate(self, states: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of one layer, in zeros at first. Attention never multiplies what it may not see by NaN."""
        heads, size = states.shape[1], states.shape[3]
        if states.device not in self._stacks:
            with shrinking("cache"):
                stack = states.new_zeros(len(self.layers) - layer, 2, heads, self.max_length, size)
            self._stacks[states.device] = layer, stack
        first, stack = self._stacks[states.device]
        assert stack.shape[2::2] == (heads, size), "layers differ in heads or head size"
        return stack[layer - first, :1], stack[layer - first, 1:]

    def clear(self) -> None:
        """Forget everything: a NaN left in a row would reach through any mask."""
        self.length = self.filled = 0
        for _, stack in self._stacks.values():
            stack.zero_()

    def append(self, count: int) -> None:
        """A pass has written `count` rows."""
        self.filled += count

    def commit(self, nodes: Sequence[int]) -> None:
        """Keep these of the appended nodes (0 is the first appended), a path in order, and drop the others."""
        end = self.length + len(nodes)
        if list(nodes) != list(range(len(nodes))):
            for device, (_, stack) in self._stacks.items():
                rows = torch.tensor([self.length + node for node in nodes]).to(device, non_blocking=True)
                stack[:, :, :, self.length : end] = stack.index_select(3, rows)
        self.length = self.filled = end

    def cut(self, length: int) -> None:
        """Drop all but the first `length` rows, if there are more."""
        self.length = self.filled = min(self.length, length)

    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None:
        """Copy rows [m] to rows [m], the device's numbers; the host does not know how long the text is now."""
        for device, (_, stack) in self._stacks.items():
            stack.index_copy_(3, to.to(device), stack.index_select(3, rows.to(device)))
