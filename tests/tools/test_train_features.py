"""Training of drafts that read the target's hidden states: what is unrolled is what decodes, the
loss and its gradient, runs that go on."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model, tiny_tokenizer
from torch import Tensor
from torch.distributed.run import get_args_parser
from transformers import LlamaForCausalLM

from dynasurge.errors import UsageError
from dynasurge.models.engine import Engine
from dynasurge.models.feature_engine import FeatureEngine
from tools.train_draft.__main__ import build_parser, main
from tools.train_draft.evaluation import Continuations, measure_depths
from tools.train_draft.feature_training import FeatureTrainer
from tools.train_draft.features import (
    DepthLoss,
    FeatureKernels,
    aligned,
    depth_weights,
    new_features,
    unroll,
)
from tools.train_draft.llama import forward, view_of
from tools.train_draft.loss import kl_divergence, overlap
from tools.train_draft.pair import load_draft, new_draft, save_draft, save_features
from tools.train_draft.settings import DistillSettings, FeatureSettings

ROOT = Path(__file__).parents[2]
SMALL = {
    "length": 16,
    "batch_rows": 4,
    "long_every": 2,
    "long_pack": 2,
    "max_tokens": 4 * 16 * 8,
    "warmup_steps": 2,
    "loss_chunk": 24,
    "taps": (1, 2, 4),
    "depths": 3,
    "mlp": 48,
}
EAGLE = FeatureSettings(**SMALL)
OURS = FeatureSettings(**SMALL, layers=2, inject=True, residual="both")
ALONE = FeatureSettings(**SMALL, inject=True, residual="both", carry=False, optimizer="adamw")
FEW = FeatureSettings(**SMALL, layers=2, inject=True, residual="both", draft_vocab=40)
FORMS = pytest.mark.parametrize(
    "settings", [EAGLE, OURS, ALONE, FEW], ids=["eagle", "ours", "alone", "few"]
)


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    return tiny_model("llama", layers=4).requires_grad_(False)


def sequences(count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 96, (count, 16)).astype(np.uint16)


def random_draft(target: Any, settings: FeatureSettings) -> Any:
    draft = new_features(target, settings, sequences())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in draft.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2, generator=generator)
    return draft


@FORMS
def test_what_is_unrolled_is_what_decodes(settings: FeatureSettings, target: Any) -> None:
    """Every start t and depth j: the logits that the engine gives after x_0 .. x_{t+1} and a chain
    of the next j - 1 tokens."""
    draft = random_draft(target, settings).eval()
    view, tokens = view_of(target, torch.float32), torch.from_numpy(sequences(1).astype(np.int64))
    with torch.no_grad():
        _, taps = forward(view, tokens, taps=settings.taps)
        found = [one[0] @ view.head.T for one in unroll(draft, view, tokens, taps, 3)]
    if draft.ids is not None:
        unknown = ~torch.isin(torch.arange(96), draft.ids)
        found = [one.masked_fill(unknown, -torch.inf) for one in found]
    draft.attach(target)
    text = tokens[0].tolist()
    reader = Engine(target, 32, taps=settings.taps)
    reader.extend(text)
    for t in (0, 1, 5, 9):
        engine = FeatureEngine(draft, 32, reader)
        engine.extend(text[: t + 1])
        row = torch.tensor([t + 1])
        for depth in (1, 2, 3):
            place = row + depth - 1
            seen = torch.arange(t + 1 + depth)[None] > place[:, None]
            parents = None if depth == 1 else place - 1
            logits = engine.score(tokens[0, place], place, place, seen, parents)
            if t or settings.inject:  # the first token is not read here, but in training
                torch.testing.assert_close(logits[-1], found[depth - 1][t], rtol=0, atol=2e-4)


@pytest.mark.parametrize("lk", [False, True])
@pytest.mark.parametrize("few", [False, True])
def test_the_loss_and_its_gradient_are_those_of_autograd(lk: bool, few: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden, theirs, head = (noise(2, 10, 8) / 4).requires_grad_(), noise(10, 8) / 4, noise(30, 8)
    weights, T = depth_weights(2, 5, 2, 0.9), noise(10, 1).exp()
    ids = torch.tensor([0, 3, 4, 11, 29]) if few else torch.arange(30)
    shares = (weights, T, torch.tensor(0.7), torch.tensor(1.5), 4, FeatureKernels(), lk)
    loss, kl, shared = DepthLoss.apply(hidden, theirs, head, ids if few else None, *shares)
    loss.backward()
    found = hidden.grad.clone()
    p = torch.softmax(theirs @ head.T / T, -1)[:, ids]
    q = torch.softmax(hidden @ head[ids].T / T, -1)
    kls, tv = kl_divergence(p, q), 1 - overlap(p, q)
    hidden.grad = None
    expected = (weights * (0.7 * kls + 1.5 * (-(1 - tv).log() if lk else tv))).sum()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, hidden.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(kl, (weights * kls).sum(1) / weights.sum(1))
    torch.testing.assert_close(shared, 1 - (weights * tv).sum(1) / weights.sum(1))
    assert weights[0, 0] == weights[1, 1] == 0 < weights[1, 2] < weights[0, 1]


@FORMS
def test_a_resumed_run_equals_one_that_was_not_stopped(
    settings: FeatureSettings, target: Any, tmp_path: Path
) -> None:
    def trainer() -> FeatureTrainer:
        view = view_of(target, torch.float32)
        return FeatureTrainer(
            view, new_features(target, settings, sequences()), sequences(), settings
        )

    whole = trainer()
    whole.run(log_every=1)
    first = trainer()
    first.run(until=5, checkpoint=tmp_path / "c.pt", save_every=5)
    second = trainer()
    second.load(tmp_path / "c.pt")
    second.run()
    for mine, theirs in zip(whole.draft.parameters(), second.draft.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@FORMS
def test_a_share_of_a_full_step_is_a_step_at_that_rate(
    settings: FeatureSettings, target: Any
) -> None:
    """Two steps: of the second, momentum and second moments are part."""
    view = view_of(target, torch.float32)
    run = FeatureTrainer(view, random_draft(target, settings), sequences(), settings)
    plain = random_draft(target, settings)
    matrices = [p for p in plain.parameters() if p.ndim == 2]
    others = [p for p in plain.parameters() if p.ndim != 2]
    adam: dict[str, Any] = {"lr": settings.adam_lr, "betas": (0.9, 0.95)}
    steps: list[Any] = [torch.optim.AdamW(others, weight_decay=0.0, **adam)]
    if settings.optimizer == "muon":
        steps.append(torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=0.01))
    else:
        steps.append(torch.optim.AdamW(matrices, weight_decay=0.01, **adam))
    generator = torch.Generator().manual_seed(3)
    for scale in (1.0, 0.3):
        for mine, theirs in zip(run.draft.parameters(), plain.parameters(), strict=True):
            mine.grad.copy_(torch.randn(mine.shape, generator=generator) / 100)
            theirs.grad = mine.grad.clone()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), settings.clip_norm)
        run._optimize(torch.tensor([scale]))
        for step in steps:
            for group in step.param_groups:
                group["lr"] *= scale
            step.step()
    for mine, theirs in zip(run.draft.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@FORMS
def test_captured_steps_train_as_eager_ones(
    settings: FeatureSettings, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = []
    for eager in (100, 1):
        monkeypatch.setattr("tools.train_draft.captured.EAGER_CALLS", eager)
        view = view_of(copy.deepcopy(target).cuda(), torch.float32)
        draft = new_features(target, settings, sequences()).cuda()
        run = FeatureTrainer(view, draft, sequences(), settings)
        run.run()
        drafts.append(draft)
    for mine, theirs in zip(*(draft.parameters() for draft in drafts), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3)


@FORMS
def test_the_loss_at_some_positions_is_the_whole_loss_in_the_mean(
    settings: FeatureSettings, target: Any
) -> None:
    """The loss and its gradient over all first positions."""
    batch = torch.from_numpy(sequences(4).astype(np.int64))
    temperature, blend = torch.full((batch.numel(), 1), 0.8), torch.tensor([0.7, 1.5])
    found = []
    for every in (1, 4):
        own = FeatureSettings.from_dict(settings.as_dict() | {"loss_every": every})
        draft = random_draft(target, own)
        run = FeatureTrainer(view_of(target, torch.float32), draft, sequences(), own)
        losses = [
            run._accumulate(batch, temperature, blend, torch.tensor([first]))["loss"]
            for first in range(every)
        ]
        gradient = torch.zeros_like(run._gradient)
        for first in range(every):
            run._accumulate(batch, temperature, blend, torch.tensor([first]))
            gradient += run._gradient / every
        found.append((torch.stack(losses).mean(), gradient))
    for whole, mean in zip(*found, strict=True):
        torch.testing.assert_close(mean, whole, rtol=1e-4, atol=1e-5)


@FORMS
def test_overlap_rises_at_all_depths(settings: FeatureSettings, target: Any) -> None:
    long = FeatureSettings.from_dict(
        settings.as_dict() | {"max_tokens": 4 * 16 * 150, "loss_every": 2}
    )
    run = FeatureTrainer(
        view_of(target, torch.float32), new_features(target, long, sequences()), sequences(), long
    )
    values = [run.train_step() for _ in range(long.steps)]
    for name in ("overlap", "overlap_3"):
        own = [float(value[name]) for value in values]
        assert np.mean(own[-10:]) > np.mean(own[:10]) + 0.1


@FORMS
def test_a_saved_draft_measures_the_same(
    settings: FeatureSettings, target: Any, tmp_path: Path
) -> None:
    draft, view = random_draft(target, settings), view_of(target, torch.float32)
    save_features(draft, tmp_path, torch.float32)
    tokens = torch.from_numpy(sequences(3).astype(np.int64))
    rows, positions = torch.tensor([0, 0, 2]), torch.tensor([8, 9, 15])
    hidden, taps = forward(view, tokens, taps=settings.taps)
    one = Continuations(
        name="x",
        temperature=0.8,
        tokens=tokens,
        rows=rows,
        positions=positions,
        hidden=hidden[rows, positions],
    )
    found = measure_depths(load_draft(tmp_path, target), view, [one], depths=4)
    assert found == measure_depths(draft, view, [one], depths=4)
    second = aligned(unroll(draft, view, tokens, taps, 2))[1][rows, positions]
    ids = torch.arange(96) if draft.ids is None else draft.ids
    p = torch.softmax(one.hidden @ view.head.T / 0.8, -1)[:, ids]
    expected = overlap(p, torch.softmax(second @ view.head[ids].T / 0.8, -1)).mean()
    assert found["x/T=0.8/overlap@2"] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.slow
def test_two_processes_train_as_one(target: Any, tmp_path: Path) -> None:
    folder, samples = tmp_path / "target", tmp_path / "samples"
    target.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    samples.mkdir()
    np.save(samples / "shard-00000.npy", sequences())
    found = []
    for count in (1, 2):
        out = tmp_path / f"run-{count}"
        line = f"-m torch.distributed.run --nproc_per_node {count} --master_port 29611"
        line += f" -m tools.train_draft train-features --target {folder} --device cpu"
        line += f" --samples {samples} --out {out} --max-tokens 512 --batch-rows 8 --inject"
        line += " --warmup-steps 1 --taps 1 2 4 --mlp 32 --depths 2"
        subprocess.run([sys.executable, *line.split()], check=True, cwd=ROOT)
        found.append(load_draft(out / "draft", target))
    for one, two in zip(*(draft.parameters() for draft in found), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=5e-3)  # saved in bfloat16


def test_no_flag_is_one_of_the_launcher_shortened() -> None:
    """torchrun reads what comes after the module's name, too, as far as it looks like its own."""
    commands: Any = build_parser()._subparsers._group_actions[0].choices
    for name, command in commands.items():
        for flag in command._option_string_actions:
            own = ["-m", "tools.train_draft", name, flag]
            assert get_args_parser().parse_args(own).training_script_args == own[2:], flag


def test_the_command_trains_and_goes_on(
    target: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, samples = tmp_path / "target", tmp_path / "samples"
    target.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    samples.mkdir()
    np.save(samples / "shard-00000.npy", sequences())
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"ids": [5, 6, 7, 8]}\n')
    line = f"train-features --target {folder} --device cpu --samples {samples} --out {tmp_path / 'run'}"
    line += " --max-tokens 256 --batch-rows 8 --warmup-steps 1 --taps 1 2 4 --mlp 32 --depths 2"
    line += f" --prompts {prompts} --prompt-tokens 4 --new-tokens 6 --eval-every 2 --inject"
    assert main(line.split()) == 0
    assert main(line.split()) == 0  # nothing is left to do
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "prompts/T=0.6/overlap@8" in log
    draft = tmp_path / "run" / "draft"
    measured = f"evaluate --target {folder} --device cpu --draft {draft} --prompts {prompts}"
    assert main([*measured.split(), "--prompt-tokens", "4", "--new-tokens", "6"]) == 0
    further = line.replace("/run ", "/further ").split()
    assert main([*further, "--init", str(samples)]) == 2
    assert "--init" in capsys.readouterr().err
    assert main([*further, "--init", f"{draft}/"]) == 0
    shutil.rmtree(draft)  # a run that has begun needs it no more
    assert main([*further, "--init", str(draft)]) == 0
    assert main(further) == 2


@FORMS
def test_a_saved_draft_is_trained_further(
    settings: FeatureSettings, target: Any, tmp_path: Path
) -> None:
    """Its first step has the loss that the saved weights have; another shape is refused."""
    saved = random_draft(target, settings)
    save_features(saved, tmp_path, torch.float32)
    further = FeatureSettings.from_dict(settings.as_dict() | {"init": str(tmp_path)})
    losses, view = [], view_of(target, torch.float32)
    for draft in (saved, new_features(target, further, sequences()[:1])):
        before = [parameter.detach().clone() for parameter in draft.parameters()]
        run = FeatureTrainer(view, draft, sequences(), further)
        losses.append(run.train_step()["loss"])
        pairs = zip(before, draft.parameters(), strict=True)
        assert all(not torch.equal(old, new) for old, new in pairs)
    torch.testing.assert_close(*losses)
    other = FeatureSettings.from_dict(further.as_dict() | {"mlp": 64})
    with pytest.raises(UsageError, match=r"is 48, this run's 64; give the --mlp of its training"):
        new_features(target, other, sequences())


def test_what_cannot_be_trained_further_is_one_line(target: Any, tmp_path: Path) -> None:
    alone = FeatureSettings.from_dict(OURS.as_dict() | {"init": str(tmp_path / "alone")})
    save_draft(new_draft(target, DistillSettings(hidden=32)), tmp_path / "alone")
    with pytest.raises(UsageError, match=r"--init .* is no draft of this kind; give a folder that"):
        new_features(target, alone, sequences())
    run = FeatureTrainer(
        view_of(target, torch.float32), random_draft(target, OURS), sequences(), OURS
    )
    run.save(tmp_path / "c.pt")
    later = FeatureTrainer(
        view_of(target, torch.float32), random_draft(target, OURS), sequences(), alone
    )
    with pytest.raises(UsageError, match=r"--init .*alone: .* was made without it"):
        later.load(tmp_path / "c.pt")
