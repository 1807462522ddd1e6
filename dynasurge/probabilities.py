"""Distributions and draws: the only place where logits become probabilities and where random
numbers enter.

Every random number comes from one explicit CPU `torch.Generator`. The few uniforms of a draw move
to the device of the probabilities. A seed means the same on every CPU, and on every GPU with Triton
(whose kernel cuts the vocabulary into other blocks). Code that draws gets a
`Chance`: `Random` in use; in tests that enumerate all outcomes, a script that names the next one.
Losslessness rests on two facts of this file:

- `to_probs` works in float32 or better. In half precision a token whose probability rounds to zero
  can still be drawn, and a drawn token with q = 0 would always be accepted.
- A token of probability zero is never drawn (see `invert`), and a draw uses the same numbers that
  verification reads. So the proposal that a rule gets is the distribution that the token was drawn
  from.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

LEAST = 1e-30  # the least divisor; so even a sum of such quotients does not overflow


class NoMassError(ValueError):
    """A distribution without mass: the model's logits are NaN, or all -inf."""

    def __init__(self) -> None:
        super().__init__(
            "cannot draw: the distribution has no mass (the model's logits are NaN or all -inf)"
        )


def to_probs(logits: torch.Tensor, T: float, P: float = 1.0) -> torch.Tensor:
    """Next-token distributions after temperature `T` and top-p `P`.

    logits: [..., V], any float type. Returns [..., V], float32 (float64 stays float64). T = 0 puts
    all mass on the argmax. A row of NaN or of -inf gets no mass, so that a draw from it fails. P <
    1 keeps the smallest set of likeliest tokens whose mass reaches P (with the token that crosses
    P; Holtzman et al., arXiv 1904.09751) and renormalises.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if T == 0:
        best, at = logits.max(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(
            -1, at, (best > -torch.inf).to(logits.dtype)
        )  # False for NaN too
    if T < 1e-3:  # keep logits / T within range
        logits = logits - logits.amax(-1, keepdim=True)
    probs = torch.softmax(logits / T if T != 1 else logits, dim=-1)
    if P >= 1:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True)
    outside = ordered.cumsum(-1) - ordered >= P  # the mass before a token already reaches P
    outside[..., 0] = False
    ordered = ordered.masked_fill(outside, 0.0)
    probs = torch.zeros_like(probs).scatter_(-1, order, ordered)
    return probs / probs.sum(-1, keepdim=True)


def to_proposal(logits: torch.Tensor, T: float, P: float = 1.0) -> torch.Tensor:
    """The distribution that a draft's children are proposed from: `to_probs`, but at T = 0 the
    draft's own distribution. There any proposal is lossless, and point children need the draft's
    ranking of tokens."""
    return to_probs(logits, T or 1.0, P if T else 1.0)


class Chance(Protocol):
    """Decides what is drawn."""

    def draw(self, probs: torch.Tensor, k: int) -> torch.Tensor:
        """Up to `k` different tokens from each row of probs [m, V]: each draw from what the earlier
        ones left, renormalised. Returns int64 [m, k] in drawing order; -1 if a row has fewer than k
        tokens of positive probability."""
        ...

    def pick(self, weights: torch.Tensor) -> torch.Tensor:
        """One place by weight. weights: float64 [n]. Returns int64 [1], -1 if no weight is
        positive."""
        ...


class StepChance(Protocol):
    """Decides what is drawn in one step of decoding."""

    def rows(self, rows: torch.Tensor | slice) -> Chance:
        """For the children of these rows of a growing tree (drafting/growth.py)."""
        ...

    @property
    def end(self) -> Chance:
        """For the node where the path ends."""
        ...

    @property
    def bonus(self) -> Chance:
        """For the bonus token."""
        ...


class Source(Chance, Protocol):
    """Gives every step its chance, and decides what is drawn besides."""

    def step(self, numbers: torch.Tensor, prepared: StepUniforms) -> StepChance:
        """The chance of the next step. `prepared` draws with what is written to `numbers`, float64
        [n] on the host."""
        ...


class Random:
    """Draws with the numbers of a generator. It is a `Chance` and a `Source`."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    @classmethod
    def seeded(cls, seed: int) -> Random:
        """A `Random` with its own generator, seeded with `seed`."""
        return cls(torch.Generator().manual_seed(seed))

    def draw(self, probs: torch.Tensor, k: int) -> torch.Tensor:
        """Draw up to k tokens a row, see `Chance.draw`. The generator gives 2 k uniforms a row."""
        return self._some(len(probs), k, probs.device).draw(probs, k)

    def pick(self, weights: torch.Tensor) -> torch.Tensor:
        """Pick one place, see `Chance.pick`."""
        return self._some(1, 1, weights.device).pick(weights)

    def step(self, numbers: torch.Tensor, prepared: StepUniforms) -> StepUniforms:
        """Fill in the numbers of a step, see `Source`."""
        torch.rand(len(numbers), generator=self.generator, dtype=torch.float64, out=numbers)
        return prepared

    def _some(self, rows: int, k: int, device: torch.device) -> Uniforms:
        numbers = torch.rand(rows, k, 2, generator=self.generator, dtype=torch.float64)
        return Uniforms(numbers.to(device, non_blocking=True))


class Uniforms:
    """Draws with numbers that were drawn before: float64 [m, k or more, 2] in [0, 1), on the device
    of the probabilities. It never waits for the device."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers

    def draw(self, probs: torch.Tensor, k: int) -> torch.Tensor:
        """Draw up to k tokens a row, see `Chance.draw`."""
        return draw_by(probs, self.numbers[:, :k])

    def pick(self, weights: torch.Tensor) -> torch.Tensor:
        """Pick one place, see `Chance.pick`."""
        place, none = invert(weights[None], self.numbers[:1, 0, 0])
        return torch.where(none, -1, place)


class StepUniforms:
    """A step's chance by numbers that were drawn before it. tree: float64 [R, k, 2], for k children
    of R rows. last: float64 [2, 2], for the end of the path and the bonus token."""

    def __init__(self, tree: torch.Tensor, last: torch.Tensor) -> None:
        self._tree = tree
        self.end, self.bonus = Uniforms(last[:1, None]), Uniforms(last[1:, None])

    def rows(self, rows: torch.Tensor | slice) -> Uniforms:
        """See `StepChance.rows`."""
        return Uniforms(self._tree[rows])


def draw_by(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw with uniforms [m, k, 2] as `Chance.draw` does, without a wait for the device.

    The vocabulary is cut into about sqrt(V) blocks. A draw picks a block by its mass, then a token
    inside it, and sets that token to zero. One pass over the vocabulary serves all k draws.
    """
    m, vocab = probs.shape
    width = math.ceil(math.sqrt(vocab))
    blocks = F.pad(probs, (0, -vocab % width)).view(m, -1, width)
    if (
        blocks.data_ptr() == probs.data_ptr()
    ):  # F.pad by 0 returns its input, which must not be written to
        blocks = blocks.clone()
    mass = blocks.sum(-1, dtype=torch.float64)
    return (_draw_on_cpu if probs.device.type == "cpu" else _draw_on_gpu)(blocks, mass, uniforms)


def _draw_on_gpu(blocks: torch.Tensor, mass: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The loop of `draw_by` without a wait for the device. It overwrites blocks [m, blocks, width]
    and mass."""
    rows, zero = (
        torch.arange(len(blocks), device=blocks.device),
        blocks.new_zeros(()),
    )  # made on the device: nothing comes from the host
    tokens = torch.empty(uniforms.shape[:2], dtype=torch.int64, device=blocks.device)
    for j in range(uniforms.shape[1]):
        block, exhausted = invert(mass, uniforms[:, j, 0])
        inside, _ = invert(blocks[rows, block].double(), uniforms[:, j, 1])
        tokens[:, j] = torch.where(exhausted, -1, block * blocks.shape[-1] + inside)
        blocks[rows, block, inside] = zero
        mass[rows, block] = blocks[rows, block].sum(-1, dtype=torch.float64)
    return tokens


def _draw_on_cpu(blocks: torch.Tensor, mass: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The loop of `draw_by` in numpy: for arrays of a few hundred numbers it takes a third of the
    time of tensors. It overwrites blocks and mass."""
    inner, outer, numbers = blocks.numpy(), mass.numpy(), uniforms.numpy()
    rows, width = np.arange(len(inner)), inner.shape[-1]
    tokens = np.empty((len(inner), numbers.shape[1]), dtype=np.int64)
    with np.errstate(invalid="ignore"):  # NaN and inf make an exhausted row, as on a GPU
        for j in range(numbers.shape[1]):
            block, exhausted = _invert_on_cpu(outer, numbers[:, j, 0])
            chosen = inner[rows, block]
            inside, _ = _invert_on_cpu(chosen.astype(np.float64), numbers[:, j, 1])
            tokens[:, j] = np.where(exhausted, -1, block * width + inside)
            inner[rows, block, inside] = chosen[rows, inside] = 0.0
            outer[rows, block] = chosen.sum(-1, dtype=np.float64)
    return torch.from_numpy(tokens)


def draw(probs: torch.Tensor, chance: Chance) -> int:
    """Draw one token from a distribution [V], and wait for it. Raises NoMassError if it has no mass
    (NaN logits end here)."""
    token = int(chance.draw(probs[None], 1)[0, 0])
    if token < 0:
        raise NoMassError
    return token


def invert(weights: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF draw of one column a row, by weight. weights: float64 [m, w]; uniform: [m] in [0,
    1).

    Returns (column int64 [m], row has no weight bool [m]). The threshold stays strictly below the
    total, so the first column whose cumulative weight exceeds it exists and has positive weight.
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    threshold = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    column = (cumulative <= threshold[:, None]).sum(-1)
    empty = ~(total > 0)
    return torch.where(empty, 0, column).clamp_(max=weights.shape[-1] - 1), empty


def _invert_on_cpu(weights: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`invert` with numpy arrays: the same arguments and results."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    threshold = np.minimum(uniform * total, np.nextafter(total, 0.0))
    column = (cumulative <= threshold[:, None]).sum(-1)
    empty = ~(total > 0)
    return np.minimum(np.where(empty, 0, column), weights.shape[-1] - 1), empty
