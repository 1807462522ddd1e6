"""A preallocated key/value cache. It holds one committed text and, after it, the nodes of a token
tree.

Rows [0, length) hold the committed text. Nodes of the tree being scored follow. A commit moves the
rows of one path to the front; what is behind them is overwritten later:

    rows:   0 ... length-1 | root  a  b  a1  b1      commit(root, b, b1)      0 ... length-1  root  b  b1 |

One tensor holds the keys and values of all layers that have the same number of heads, size and
device. So a commit is one gather and one copy for each such tensor, in a model of any depth.
(Values may be narrower than keys, and a model may be spread over devices.)

A pass writes to rows that a tensor names, and attention sees the first `shown` rows; the mask hides
those not in use. Inside a captured CUDA graph `shown` is always the same, so no shape changes from
pass to pass.

Only this file and models/engine.py touch the internals of transformers' caches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from dynasurge.models.failures import shrinking


class TreeCacheLayer(CacheLayerMixin):
    """One attention layer's view of the cache: keys and values [1, heads, max_length, head
    size]."""

    is_sliding = False

    def __init__(self, cache: TreeCache, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache, self.keys, self.values = cache, keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Do nothing: the rows exist already."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write n rows [1, heads, n, head size] where the cache says. Returns the rows that
        attention may see."""
        assert self.keys is not None
        assert self.values is not None
        rows, shown = self._cache.pass_rows
        rows = rows.to(self.keys.device)
        self.keys.index_copy_(2, rows, key_states)
        self.values.index_copy_(2, rows, value_states)
        return self.keys[:, :, :shown], self.values[:, :, :shown]

    def get_seq_length(self) -> int:
        """How many rows hold committed text."""
        return self._cache.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(length, offset) of the keys that a pass over `query_length` new tokens attends to."""
        return self._cache.length + query_length, 0

    def get_max_length(self) -> int:
        """How many rows are allocated."""
        return self._cache.max_length

    get_max_cache_shape = get_max_length  # the name before transformers 5.18


class TreeCache(Cache):
    """A cache with one layer for each of `sample` and `max_length` rows, of which `length` hold
    committed text."""

    def __init__(
        self,
        sample: Sequence[tuple[torch.Tensor, torch.Tensor]],
        max_length: int,
        beside: Sequence[torch.Tensor] = (),
    ) -> None:
        """sample: keys and values [1, heads, n, size] of some tokens, by layer; the cache takes
        their shapes, dtypes and devices. beside: what else is kept by row, each [max_length, size];
        it is moved and cleared like keys and values."""
        self.max_length, self.length = max_length, 0
        self._pass: tuple[torch.Tensor, int] | None = None
        states = [state for layer in sample for state in layer]
        shapes = [(s.device, s.dtype, s.shape[1], s.shape[3]) for s in states]
        with shrinking(
            "cache"
        ):  # zeros, not NaN: attention multiplies hidden rows by 0, and 0 * NaN is NaN
            stacks = {
                shape: torch.zeros(
                    count, shape[2], max_length, shape[3], dtype=shape[1], device=shape[0]
                )
                for shape, count in Counter(shapes).items()
            }
        self._stacks = list(stacks.values())  # [tensors of this shape, heads, max_length, size]
        self._stacks += [kept[None, None] for kept in beside]
        unused = {shape: iter(stack.split(1)) for shape, stack in stacks.items()}
        views = [next(unused[shape]) for shape in shapes]
        super().__init__(
            layers=[
                TreeCacheLayer(self, *pair) for pair in zip(views[::2], views[1::2], strict=True)
            ]
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(stack.nbytes for stack in self._stacks)

    def clear(self) -> None:
        """Forget everything and write zeros: a NaN left in a row would pass through any mask."""
        self.length = 0
        for stack in self._stacks:
            stack.zero_()

    def commit(self, nodes: Sequence[int]) -> None:
        """Make the rows of `nodes` (0: the first after the text), a path in order, part of the
        text."""
        if list(nodes) != list(range(len(nodes))):
            rows = torch.tensor([[self.length + node for node in nodes], [*range(len(nodes))]])
            self.move(rows[0], rows[1] + self.length)
        self.length += len(nodes)

    def cut(self, length: int) -> None:
        """Drop all but the first `length` rows of text, if there are more."""
        self.length = min(self.length, length)

    @property
    def pass_rows(self) -> tuple[torch.Tensor, int]:
        """The rows that the present pass writes, int64 [n], and how many rows it sees."""
        assert self._pass is not None, "a pass writes to rows that its engine names"
        return self._pass

    @contextmanager
    def writing_to(self, rows: torch.Tensor, shown: int) -> Iterator[None]:
        """Inside, a pass writes its n tokens to these rows, and sees the first `shown` rows."""
        self._pass = rows, shown
        try:
            yield
        finally:
            self._pass = None

    def move(self, rows: torch.Tensor, to: torch.Tensor) -> None:
        """Copy rows [m] to rows [m]. If both are on the device, nothing waits for it."""
        for stack in self._stacks:
            stack.index_copy_(2, to.to(stack.device), stack.index_select(2, rows.to(stack.device)))


def states_of(cache: Cache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The keys and values of every layer of one of transformers' caches. Raises ValueError if it
    holds anything else."""
    states = []
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            raise ValueError(f"{type(layer).__name__} holds more than keys and values")
        states.append((layer.keys, layer.values))
    return states
