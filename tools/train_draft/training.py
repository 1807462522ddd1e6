"""The training loop: the target scores, the draft learns, and a stopped run can resume.

Each step takes ``batch_rows`` sequences. Every ``long_every``-th step joins ``long_pack`` of them
end to end, so that the draft also sees positions after the end of one sequence. (The target reads
the same joined context, so its distributions stay right.) The step gives each row a temperature and
makes one optimiser step on ``DistillLoss``. Matrices inside layers learn by Muon (orthogonalised
momentum), the embedding and the norms by AdamW.

On CUDA a step is two graphs (captured.py): the gradients, and what the optimisers make of them. The
learning rate changes from step to step, and a graph can't: so the optimisers step at their full
rates, and the weights go the present share of that way. (Both steps are linear in the rate.)

The sequences of a step follow from (seed, epoch). Temperatures come from one generator whose state
is in the checkpoint. So a run that was stopped and resumed makes the same draft as one that was
not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynasurge.errors import UsageError, flag_of
from dynasurge.files import write_whole
from tools.train_draft.captured import Captured
from tools.train_draft.llama import EAGER, Kernels, Llama, forward, view_of
from tools.train_draft.loss import DistillLoss, token_terms
from tools.train_draft.settings import DistillSettings, learning_rate_scale, tv_share

__all__ = ["Trainer"]


@dataclass
class Trainer:
    """One distillation run in progress: draft, optimisers, generator, step.

    ``target`` is a ``Llama`` view in the compute dtype. ``draft`` is a float32 module on the same
    device. ``sequences`` is [count, length], token ids from ``load_shards``.
    """

    target: Llama
    draft: Any
    sequences: np.ndarray
    settings: DistillSettings
    kernels: Kernels = EAGER
    terms: Callable[..., tuple[Tensor, Tensor, Tensor]] = token_terms
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    rank: int = 0
    world: int = 1  # processes that share each batch; their gradients are averaged

    def __post_init__(self) -> None:
        """Build optimisers and the generator. Raises UsageError if there are fewer sequences than
        one batch has."""
        settings = self.settings
        if len(self.sequences) < settings.batch_rows:
            reason = f"there are only {len(self.sequences)} sequences"
            raise UsageError(
                "--batch-rows", settings.batch_rows, reason, "sample more, or use smaller batches"
            )
        matrices = self.matrices()
        chosen = {id(p) for p in matrices}
        others = [p for p in self.draft.parameters() if id(p) not in chosen]
        fused = self.target.device.type == "cuda"
        adam: dict[str, Any] = {"lr": settings.adam_lr, "betas": (0.9, 0.95), "fused": fused}
        adam["capturable"] = fused
        rest = torch.optim.AdamW(others, weight_decay=0.0, **adam)
        if self.uses_muon:
            muon = torch.optim.Muon(matrices, lr=settings.muon_lr, momentum=0.95, weight_decay=0.01)
            self.optimizers: tuple[torch.optim.Optimizer, ...] = (muon, rest)
        else:
            self.optimizers = (torch.optim.AdamW(matrices, weight_decay=0.01, **adam), rest)
        parameters = [p for p in self.draft.parameters() if p.requires_grad]
        self._gradient = torch.zeros(sum(p.numel() for p in parameters), device=self.target.device)
        parts = self._gradient.split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
        self._parameters = parameters
        self._capture()
        self.generator = torch.Generator().manual_seed(settings.seed + 1)
        self.cached: Tensor | None = None
        self._order: tuple[int, np.ndarray] | None = None

    uses_muon = True

    def _capture(self) -> None:
        """Forget what was captured: it reads weights and optimisers where they were."""
        device = self.target.device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._gradients = Captured(self._accumulate, device)
        self._update = Captured(self._optimize, device)

    def matrices(self) -> list[Tensor]:
        """What Muon trains; AdamW trains the rest."""
        return [p for p in self.draft.model.layers.parameters() if p.ndim == 2]

    @torch.no_grad()
    def cache_target(self) -> None:
        """Keep the target's hidden states of all sequences on the device, so that later steps need
        not run the target.

        It costs one target pass over the samples and 2 * width bytes a token in bfloat16 (41 GB for
        the demo draft's 35.7 M tokens). Packed steps still run the target, because their contexts
        differ.
        """
        count, rows = len(self.sequences), self.settings.batch_rows
        width, device = self.target.embedding.shape[1], self.target.device
        self.cached = torch.empty(
            count, self.settings.length, width, dtype=self.target.dtype, device=device
        )
        for start in range(0, count, rows):
            part = slice(
                min(start, count - rows), min(start, count - rows) + rows
            )  # the last part overlaps, so that all have one shape
            batch = self._send(torch.from_numpy(self.sequences[part].astype(np.int64)))
            self.cached[part] = forward(self.target, batch, self.kernels)

    @property
    def tokens_seen(self) -> int:
        """How many tokens were trained so far."""
        return self.step * self.settings.step_tokens

    def _indices(self) -> np.ndarray:
        """The sequences of the current step. Each epoch is its own permutation, without its
        incomplete last batch."""
        per_epoch = len(self.sequences) // self.settings.batch_rows
        epoch, index = divmod(self.step, per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = (
                epoch,
                np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.sequences)),
            )
        start = index * self.settings.batch_rows
        return self._order[1][start : start + self.settings.batch_rows]

    def _send(self, values: Tensor) -> Tensor:
        """Send values to the device, on CUDA from pinned memory, so that the host does not wait for
        earlier work."""
        if self.target.device.type != "cuda":
            return values
        return values.pin_memory().to(self.target.device, non_blocking=True)

    def train_step(self) -> dict[str, Tensor]:
        """Make one optimiser step. Returns the loss and what ``loss`` measures beside it, as
        tensors, without a wait for the device."""
        settings = self.settings
        chosen = self._indices()
        batch = torch.from_numpy(self.sequences[chosen].astype(np.int64))
        packed = self.step % settings.long_every == settings.long_every - 1
        if packed:
            batch = batch.reshape(len(batch) // settings.long_pack, -1)
        choices = torch.tensor(settings.loss_temperatures)
        picked = choices[torch.randint(len(choices), (len(batch),), generator=self.generator)]
        mine = slice(self.rank, None, self.world)
        temperature = picked[mine][:, None].expand(-1, batch.shape[1]).reshape(-1, 1)
        share = tv_share(self.step, settings)
        blend = torch.tensor([1 - share, settings.tv_scale * share])
        scale = torch.tensor([learning_rate_scale(self.step, settings)])
        inputs = [batch[mine], temperature, blend, *self._more_inputs(chosen[mine], packed)]
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            losses = self._gradients(*map(self._send, inputs))
            losses = {name: value.clone() for name, value in losses.items()}
            if self.world > 1:
                torch.distributed.all_reduce(self._gradient)
            self._update(self._send(scale))
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
        self.step += 1
        return losses

    def _more_inputs(self, chosen: np.ndarray, packed: bool) -> list[Tensor]:
        """What `losses` gets beside batch, temperature and blend. chosen: which sequences these
        are. packed: whether they are joined."""
        return [] if self.cached is None or packed else [torch.from_numpy(chosen)]

    def _accumulate(self, batch: Tensor, *others: Tensor) -> dict[str, Tensor]:
        """Write the gradient of a batch's loss to the parameters. Arguments: see `losses`."""
        self._gradient.zero_()
        losses = self.losses(batch, *others)
        losses["loss"].backward()
        return {name: value.detach() for name, value in losses.items()}

    def _optimize(self, scale: Tensor) -> None:
        """Make an optimiser step with the gradient, the sum of all processes', at `scale` [1] of the
        full learning rates."""
        self._gradient.div_(self.world)
        torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.clip_norm)
        before = [parameter.detach().clone() for parameter in self._parameters]
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for parameter, old in zip(self._parameters, before, strict=True):
                parameter.copy_(old.lerp(parameter, scale))

    def losses(
        self, batch: Tensor, temperature: Tensor, blend: Tensor, chosen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The loss of a batch [rows, length] at temperature [rows * length, 1], with mean KL and
        overlap. blend: the weights of KL and TV [2]. ``chosen``: which sequences these are [rows],
        if the target's hidden states are kept."""
        settings = self.settings
        with torch.no_grad():
            if chosen is None:
                target_hidden = forward(self.target, batch, self.kernels).flatten(0, 1)
            else:
                assert self.cached is not None
                target_hidden = self.cached[chosen].flatten(0, 1)
        view = view_of(self.draft, self.target.dtype)
        draft_hidden = forward(view, batch, self.kernels).flatten(0, 1)
        loss, kl, shared = DistillLoss.apply(  # type: ignore[no-untyped-call]
            draft_hidden,
            self.draft.lm_head.weight,
            target_hidden,
            self.target.head,
            temperature,
            blend[0],
            blend[1],
            settings.loss_chunk,
            self.terms,
        )
        return {"loss": loss, "kl": kl, "overlap": shared}

    def run(
        self,
        *,
        until: int | None = None,
        log_every: int = 50,
        on_log: Callable[[dict[str, float]], None] = lambda record: None,
        eval_every: int = 0,
        evaluate: Callable[[Any], dict[str, float]] | None = None,
        save_every: int = 0,
        checkpoint: Path | None = None,
    ) -> None:
        """Train to ``until`` steps (default: the whole schedule); log, evaluate and save on the
        way. Raises UsageError if the loss is not finite."""
        settings = self.settings
        last = min(settings.steps, settings.steps if until is None else until)
        window: list[dict[str, Tensor]] = []
        clock, counted = time.perf_counter(), self.step
        while self.step < last:
            window.append(self.train_step())
            if self.step % log_every == 0 or self.step == last:
                means: dict[str, float] = {
                    name: torch.stack([entry[name] for entry in window]).mean(0).item()
                    for name in window[0]
                }
                now = time.perf_counter()
                speed = (self.step - counted) * settings.step_tokens / (now - clock)
                record: dict[str, float] = {"step": self.step, "tokens": self.tokens_seen, **means}
                record["tokens_per_s"] = speed
                window, clock, counted = [], now, self.step
                if not np.isfinite(means["loss"]):
                    reason = f"the loss is {means['loss']} at step {self.step}"
                    raise UsageError(
                        "--muon-lr", settings.muon_lr, reason, "lower it, or --adam-lr"
                    )
                on_log(record)
            if (
                evaluate is not None
                and eval_every
                and (self.step % eval_every == 0 or self.step == settings.steps)
            ):
                self.history.append(
                    {"step": self.step, "tokens": self.tokens_seen, **evaluate(self.draft)}
                )
                on_log(self.history[-1])
                clock, counted = time.perf_counter(), self.step
            if (
                checkpoint is not None
                and save_every
                and (self.step % save_every == 0 or self.step == last)
            ):
                self.save(checkpoint)

    def save(self, path: Path) -> None:
        """Write the whole state, or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": self.settings.as_dict(),
            "step": self.step,
            "draft": self.draft.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "history": self.history,
        }
        with write_whole(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Resume from a file of ``save``. Raises UsageError for a checkpoint with other
        settings."""
        state = torch.load(path, map_location=self.target.device, weights_only=True)
        ours = self.settings.as_dict()
        for key, theirs in (type(self.settings)().as_dict() | state["settings"]).items():
            if ours.get(key) != theirs:
                reason = f"{path} was made " + (f"with {theirs}" if theirs != "" else "without it")
                raise UsageError(flag_of(key), ours.get(key), reason, "use that, or a new folder")
        self.draft.load_state_dict(state["draft"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self._capture()
        self.step, self.history = state["step"], state["history"]
