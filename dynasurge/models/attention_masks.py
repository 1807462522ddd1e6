"""What each kind of attention layer may see, as masks over the rows of a tree cache.

In a layer of full attention a node sees the text, its ancestors and itself. A *sliding* layer sees
only the last W of these. A *chunked* layer sees only those in its own chunk of C positions. Windows
and chunks count positions, not cache rows: two siblings have one position and two rows. But no
positions are needed here. The rows that a node sees in full attention are one path, in the order in
which they were written. So the k-th of them is at position k - 1:

    rows         t0 t1 t2 | root a  b  a1        a1 sees t0 t1 t2 root a a1: positions 0 1 2 3 4 5
    W = 3                                        ... of which a sliding layer sees          root a a1
"""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from dynasurge.models.cuda_graphs import fused

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
KINDS = (FULL, SLIDING, CHUNKED)  # the kinds of layers that a mask can serve
SIZES = {
    SLIDING: "sliding_window",
    CHUNKED: "attention_chunk_size",
}  # the field of a config that has the size


def layer_kinds(config: PreTrainedConfig) -> dict[str, int | None]:
    """The kinds of a model's layers (`config.layer_types`; without it all layers are of one kind),
    each with the size of its window or chunk, None for full attention."""
    config = config.get_text_config()
    window = (
        getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True)
        else None
    )
    chunk = getattr(config, "attention_chunk_size", None)
    sizes = {FULL: None, SLIDING: window, CHUNKED: chunk}
    alike = SLIDING if window is not None else CHUNKED if chunk is not None else FULL
    return {kind: sizes.get(kind) for kind in getattr(config, "layer_types", None) or [alike]}


def hidden_in(kind: str, size: int | None, hidden: torch.Tensor) -> torch.Tensor:
    """The rows that nodes may not see in one kind of layer, bool [n, rows]. hidden: bool [n, rows],
    True for rows that full attention hides. The result also hides rows outside the window or chunk
    of `size` positions."""
    if size is None or hidden.shape[-1] <= size:
        return hidden
    place = (~hidden).cumsum(
        -1
    )  # place of a visible row in its path, from 1; the node itself is last
    own = place[:, -1:]
    outside = place <= own - size if kind == SLIDING else (place - 1) // size != (own - 1) // size
    return hidden | outside


class Masks:
    """Additive attention masks for one model: 0 = may attend, finfo.min = may not.

    One tensor [1, 1, n, rows] if all layers are of one kind. Otherwise a dict of tensors by kind;
    transformers' models with several kinds of layers take it as `attention_mask`.
    """

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype) -> None:
        self._kinds, self._dtype = layer_kinds(config), dtype

    def __call__(
        self, hidden: torch.Tensor, *, compiled: bool = False
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """The masks for `hidden`, bool [n, rows], True for rows that full attention hides.
        compiled: whether torch.compile fuses the small kernels."""
        masks = {
            kind: fused(additive, compiled)(kind, size, hidden, self._dtype)
            for kind, size in self._kinds.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))


def additive(kind: str, size: int | None, hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask of one kind of layer, see `hidden_in` and `Masks`."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden_in(kind, size, hidden), torch.finfo(dtype).min)[None, None]
