"""A preallocated key/value cache that holds one committed text and, behind it, the nodes of a token tree.

Rows [0, length) belong to the committed text. Nodes of the tree being scored are appended behind them, in any order in
which a parent comes before its children. `commit` keeps the rows of one path, moved to the front, and drops the rest:

    rows:   0 ... length-1 | root  a  b  a1  b1      commit(root, b, b1)      0 ... length-1  root  b  b1 |

Only this file and engine.py touch the internals of transformers' caches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class TreeCacheLayer(CacheLayerMixin):
    """Keys and values of one attention layer: [1, heads, max_length, head size], of which `filled` rows are in use."""

    is_sliding = False

    def __init__(self, max_length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.max_length = max_length
        self.filled = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate on the first pass, when the layer's head count, device and dtype are known."""
        self.keys = key_states.new_zeros(*key_states.shape[:2], self.max_length, key_states.shape[-1])
        self.values = value_states.new_zeros(*value_states.shape[:2], self.max_length, value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append n rows [1, heads, n, head size] and return views of all rows in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        start, end = self.filled, self.filled + key_states.shape[-2]
        assert end <= self.max_length, f"cache of {self.max_length} rows asked to hold {end}"
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.filled = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, length: int, rows: Sequence[int]) -> None:
        """Rows [0, length) stay; `rows` follow them, in this order; all others are dropped."""
        end = length + len(rows)
        if self.is_initialized and list(rows) != list(range(length, end)):
            for buffer in (self.keys, self.values):
                assert buffer is not None
                index = torch.tensor(rows, device=buffer.device)
                buffer[:, :, length:end] = buffer.index_select(2, index)
        self.filled = end

    def get_seq_length(self) -> int:
        """Rows in use."""
        return self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the keys a pass over `query_length` new tokens attends to."""
        return self.filled + query_length, 0

    def get_max_length(self) -> int:
        """Rows allocated."""
        return self.max_length

    get_max_cache_shape = get_max_length  # its name before transformers 5.18


class TreeCache(Cache):
    """One `TreeCacheLayer` a layer; `length` rows are committed."""

    def __init__(self, layers: int, max_length: int) -> None:
        self.tree_layers = [TreeCacheLayer(max_length) for _ in range(layers)]
        super().__init__(layers=list(self.tree_layers))
        self.length = 0

    def commit(self, nodes: Sequence[int]) -> None:
        """Keep these of the appended nodes (0 is the first appended), a path in order, and drop the others."""
        for layer in self.tree_layers:
            layer.keep(self.length, [self.length + node for node in nodes])
        self.length += len(nodes)
