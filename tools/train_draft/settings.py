"""All settings of one distillation run, in one frozen dataclass.

A run is a pure function of these settings, the target's weights and those that it starts from:
prompts, sampled tokens, epochs, loss temperatures and optimiser steps all follow from ``seed``. The
checkpoint stores the settings next to the weights, so a run can only be resumed with its own
settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from dynasurge.errors import UsageError, at_least, flag_of

__all__ = ["DistillSettings", "FeatureSettings", "learning_rate_scale", "tv_share"]


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Settings of a self-distillation run. The defaults are those of the demo draft that read
    tokens only."""

    # sampling: what the target writes
    seed: int = 20261123
    sample_tokens: int = 35_651_584  # rounded up to whole shards of rows * length tokens
    rows: int = 4096  # sequences sampled side by side; one shard
    length: int = 256  # tokens in a sequence
    sample_temperatures: tuple[float, ...] = (0.6, 0.8, 1.0, 1.15)

    # the draft's shape
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    mlp: int = 1024

    # training
    max_tokens: int = 209_349_969  # length of the schedule, in trained tokens
    batch_rows: int = 128  # sequences in an optimiser step
    long_every: int = 8  # every so many steps, `long_pack` sequences are joined end to end
    long_pack: int = 4
    loss_temperatures: tuple[float, ...] = (0.6, 0.8, 1.0)
    tv_start: float = (
        0.6  # share of the schedule after which total variation is blended in linearly
    )
    tv_end_weight: float = 0.75  # its share of the loss at the end
    tv_scale: float = (
        3.0  # total variation is smaller than KL; this makes their gradients comparable
    )
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    warmup_steps: int = 200
    decay_share: float = (
        0.65  # the last share of the schedule: learning rates fall linearly to zero
    )
    clip_norm: float = 1.0
    loss_chunk: int = 8192  # how many positions have their logits in memory at a time

    def __post_init__(self) -> None:
        """Raise UsageError for settings that cannot work. It names the field, the value and the
        remedy."""
        counts = (
            "sample_tokens",
            "rows",
            "hidden",
            "layers",
            "heads",
            "kv_heads",
            "mlp",
            "max_tokens",
        )
        for name in (*counts, "batch_rows", "long_every", "long_pack", "loss_chunk"):
            at_least(name, getattr(self, name), 1, getattr(type(self), name))
        at_least("length", self.length, 2, type(self).length)
        for name in ("sample_temperatures", "loss_temperatures"):
            values = getattr(self, name)
            if not values or min(values) <= 0:
                raise UsageError(
                    flag_of(name), values, "temperatures must be above 0", "give one or more"
                )
        for name, divisor in (
            ("batch_rows", "long_pack"),
            ("hidden", "heads"),
            ("heads", "kv_heads"),
        ):
            value, by = getattr(self, name), getattr(self, divisor)
            if value % by:
                raise UsageError(
                    flag_of(name),
                    value,
                    f"is not a multiple of {divisor}, {by}",
                    f"try {by * -(-value // by)}",
                )
        for name in ("tv_start", "tv_end_weight", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(
                    flag_of(name), getattr(self, name), "is a share", "give a number from 0 to 1"
                )

    @property
    def step_tokens(self) -> int:
        """How many tokens one optimiser step sees."""
        return self.batch_rows * self.length

    @property
    def steps(self) -> int:
        """How many optimiser steps the whole schedule has."""
        return max(1, self.max_tokens // self.step_tokens)

    @property
    def shards(self) -> int:
        """How many sample shards the whole run has."""
        return -(-self.sample_tokens // (self.rows * self.length))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Settings from plain values, as of ``as_dict`` or of a command line."""
        fixed: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fixed)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


@dataclass(frozen=True, kw_only=True)
class FeatureSettings(DistillSettings):
    """Settings of a draft that reads the target's hidden states (features.py). Its width, heads and
    vocabulary are the target's."""

    init: str = ""  # folder of a draft to train further, of the same shape; "": an untrained one
    taps: tuple[int, ...] = (6, 16, 30)  # after how many layers the residual stream is read
    layers: int = 1
    mlp: int = 1536
    inject: bool = False  # the past's keys and values come straight from features
    residual: str = "features"  # what a layer adds to: "features", or "both" (and the embedding)
    carry: bool = True  # deeper levels read what their parents carried; else the embedding alone
    draft_vocab: int = 0  # how many tokens the head knows, the most frequent ones; 0: all
    blind: bool = False  # features are zeros: the control that shows what they are worth
    loss: str = "tv"  # what KL is blended into: "tv", or "lk", minus the logarithm of the overlap
    optimizer: str = "muon"  # or "adamw", for matrices too, at adam_lr
    depths: int = 5  # how far a step is unrolled
    loss_every: int = 1  # a step takes the loss at every so many-th position, another each time
    depth_decay: float = 0.9  # weight of depth j in the loss: depth_decay ** (j - 1)
    muon_lr: float = 0.01

    def __post_init__(self) -> None:
        """Raise UsageError for settings that cannot work."""
        super().__post_init__()
        at_least("loss_every", self.loss_every, 1, 2)
        if self.length % self.loss_every:
            reason = f"does not divide the {self.length} tokens of a sequence"
            raise UsageError("--loss-every", self.loss_every, reason, "try --loss-every 1")


def learning_rate_scale(step: int, settings: DistillSettings) -> float:
    """The factor on learning rates: it rises linearly, stays at 1, and falls linearly to zero over
    the last ``decay_share`` of the schedule."""
    warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    left = (settings.steps - step) / settings.steps
    return warm * min(1.0, left / settings.decay_share if settings.decay_share else 1.0)


def tv_share(step: int, settings: DistillSettings) -> float:
    """The share of total variation in the loss: zero until ``tv_start``, then linear up to
    ``tv_end_weight``."""
    if settings.tv_start >= 1:
        return 0.0
    passed = (step / settings.steps - settings.tv_start) / (1 - settings.tv_start)
    return settings.tv_end_weight * min(1.0, max(0.0, passed))
