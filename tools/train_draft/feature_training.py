"""Training of a draft that reads the target's hidden states: one target pass, all depths at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tools.train_draft.features import (
    DepthLoss,
    FeatureKernels,
    aligned,
    depth_weights,
    unroll,
)
from tools.train_draft.llama import forward
from tools.train_draft.settings import FeatureSettings
from tools.train_draft.training import Trainer

__all__ = ["FeatureTrainer"]


@dataclass
class FeatureTrainer(Trainer):
    """A run that trains a ``FeatureDraft``."""

    settings: FeatureSettings
    feature_kernels: FeatureKernels = field(default_factory=FeatureKernels)
    _weights: dict[torch.Size, Tensor] = field(default_factory=dict, init=False)  # by shape

    @property
    def uses_muon(self) -> bool:  # type: ignore[override]
        """Whether matrices learn by Muon."""
        return self.settings.optimizer == "muon"

    def matrices(self) -> list[Tensor]:
        """Every matrix of the draft."""
        return [p for p in self.draft.parameters() if p.ndim == 2]

    def _more_inputs(self, chosen: np.ndarray, packed: bool) -> list[Tensor]:
        """The first position of which the loss is taken [1]; none if it is taken of all."""
        every = self.settings.loss_every
        return [torch.tensor([self.step % every])] if every > 1 else []

    def _some(self, values: Tensor, first: Tensor | None, dim: int = 0) -> Tensor:
        """Every ``loss_every``-th entry from ``first`` [1] on; all without it."""
        if first is None:
            assert self.settings.loss_every == 1
            return values
        grouped: Tensor = values.unflatten(dim, (-1, self.settings.loss_every))  # type: ignore[no-untyped-call]
        return grouped.index_select(dim + 1, first).squeeze(dim + 1)

    def losses(
        self, batch: Tensor, temperature: Tensor, blend: Tensor, first: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss over all depths, with KL and overlap at the first and the last. The loss is that
        of every ``loss_every``-th position from ``first`` [1] on, times ``loss_every``: its mean
        over all first positions is the whole loss. Most of a step's work is the head's, and
        positions of one text teach much the same."""
        settings = self.settings
        if batch.shape not in self._weights:
            rows, length = batch.shape
            weights = depth_weights(rows, length, settings.depths, settings.depth_decay)
            self._weights[batch.shape] = self._send(weights)
        with torch.no_grad():
            hidden, taps = forward(self.target, batch, self.kernels, settings.taps)
            taps = torch.zeros_like(taps) if settings.blind else taps
        outputs = unroll(
            self.draft, self.target, batch, taps, settings.depths, self.feature_kernels
        )
        loss, kl, shared = DepthLoss.apply(  # type: ignore[no-untyped-call]
            self._some(aligned(outputs).flatten(1, 2), first, dim=1),
            self._some(hidden.flatten(0, 1), first),
            self.target.head,
            self.draft.ids,
            self._some(self._weights[batch.shape], first, dim=1) * settings.loss_every,
            self._some(temperature, first),
            blend[0],
            blend[1],
            settings.loss_chunk,
            self.feature_kernels,
            settings.loss == "lk",
        )
        return {
            "loss": loss,
            "kl": kl[0],
            "overlap": shared[0],
            f"kl_{settings.depths}": kl[-1],
            f"overlap_{settings.depths}": shared[-1],
        }
