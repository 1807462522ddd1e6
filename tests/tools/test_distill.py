"""Self-distillation on models of a few thousand weights: sampling, loss, training, evaluation,
command line."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dynasurge.errors import UsageError
from tools.train_draft.__main__ import main
from tools.train_draft.evaluation import continue_prompts, measure, read_prompts
from tools.train_draft.llama import decode_step, forward, new_cache, view_of
from tools.train_draft.loss import DistillLoss, kl_divergence, overlap, token_terms
from tools.train_draft.pair import load_draft, new_draft, principal_embedding, save_draft
from tools.train_draft.prompts import KINDS, TEMPLATES, openers, write_opener
from tools.train_draft.sampling import Sampler, draw_tokens, load_shards, shard_draws, write_shard
from tools.train_draft.settings import DistillSettings, learning_rate_scale, tv_share
from tools.train_draft.training import Trainer

SETTINGS = DistillSettings(
    seed=5,
    sample_tokens=384,
    rows=8,
    length=16,
    hidden=16,
    layers=2,
    heads=2,
    kv_heads=1,
    mlp=24,
    max_tokens=8 * 4 * 16,
    batch_rows=4,
    long_every=2,
    long_pack=2,
    tv_start=0.5,
    warmup_steps=2,
    loss_chunk=24,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, after three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {
        token: place
        for place, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])
    }
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )


@pytest.fixture(scope="module")
def target() -> LlamaForCausalLM:
    """A random target with grouped keys and peaked, varied distributions."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def target_folder(target, tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    target.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sequences(count: int = 12, length: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 259, (count, length)).astype(np.uint16)


def trainer(target, settings: DistillSettings = SETTINGS) -> Trainer:
    return Trainer(
        view_of(target, torch.float32), new_draft(target, settings), sequences(), settings
    )


# --- the functional LLaMA
# ------------------------------------------------------------------------------------------


def test_forward_gives_the_logits_of_the_module(target):
    tokens = torch.from_numpy(sequences(3).astype(np.int64))
    view = view_of(target, torch.float32)
    torch.testing.assert_close(
        forward(view, tokens) @ view.head.T, target(tokens).logits, rtol=0, atol=2e-5
    )


def test_decode_step_by_step_gives_the_whole_pass(target):
    tokens = torch.from_numpy(sequences(3).astype(np.int64))
    view = view_of(target, torch.float32)
    cache = new_cache(view, 3, 16)
    steps = torch.stack([decode_step(view, tokens[:, i], i, cache) for i in range(16)], dim=1)
    torch.testing.assert_close(steps, forward(view, tokens), rtol=0, atol=2e-5)


def test_gradients_reach_the_module_and_equal_its_own(target):
    draft = new_draft(target, SETTINGS)
    with torch.no_grad():
        for block in draft.model.layers:
            block.mlp.down_proj.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
            block.self_attn.o_proj.weight.normal_(
                0, 0.2, generator=torch.Generator().manual_seed(2)
            )
    tokens = torch.from_numpy(sequences(2).astype(np.int64))
    found = []
    for run in (
        lambda: draft(tokens).logits,
        lambda: forward(view_of(draft, torch.float32), tokens) @ draft.lm_head.weight.T,
    ):
        draft.zero_grad()
        torch.logsumexp(run(), dim=-1).sum().backward()
        found.append({name: p.grad.clone() for name, p in draft.named_parameters()})
    for name, grad in found[0].items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], grad, rtol=1e-3, atol=1e-4)


def test_other_architectures_are_refused(target):
    class Other:
        config = type("Config", (), {"model_type": "gpt2"})()

    with pytest.raises(ValueError, match="gpt2"):
        view_of(Other(), torch.float32)


# --- loss
# ----------------------------------------------------------------------------------------------------------


def test_overlap_and_kl_by_hand():
    p, q = torch.tensor([0.5, 0.3, 0.2, 0.0]), torch.tensor([0.25, 0.25, 0.25, 0.25])
    assert overlap(p, q).item() == pytest.approx(0.25 + 0.25 + 0.2)
    expected = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.8)
    assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-6)
    assert kl_divergence(p, p).item() == 0
    assert overlap(p, p).item() == pytest.approx(1)


def test_token_terms_equal_the_definitions_at_each_temperature():
    generator = torch.Generator().manual_seed(0)
    z_target, z_draft = (
        torch.randn(5, 11, generator=generator) * 3,
        torch.randn(5, 11, generator=generator),
    )
    tau = torch.tensor([0.6, 0.8, 1.0, 1.0, 2.0])[:, None]
    kl, shared, _ = token_terms(z_target, z_draft, tau, torch.tensor(1.0), torch.tensor(0.0))
    p, q = torch.softmax(z_target / tau, -1), torch.softmax(z_draft / tau, -1)
    torch.testing.assert_close(kl, kl_divergence(p, q))
    torch.testing.assert_close(shared, overlap(p, q))


def test_loss_gradient_equals_automatic_differentiation_for_any_chunk():
    generator = torch.Generator().manual_seed(3)
    h_target, head_target = (
        torch.randn(7, 6, generator=generator),
        torch.randn(13, 6, generator=generator),
    )
    tau = torch.tensor([0.6, 0.8, 1.0, 0.6, 0.8, 1.0, 1.0])[:, None]
    kl_weight, tv_weight = torch.tensor(0.4), torch.tensor(1.7)
    start_h, start_head = (
        torch.randn(7, 4, generator=generator),
        torch.randn(13, 4, generator=generator),
    )

    h, head = start_h.clone().requires_grad_(), start_head.clone().requires_grad_()
    p, q = torch.softmax(h_target @ head_target.T / tau, -1), torch.softmax(h @ head.T / tau, -1)
    expected = (kl_weight * kl_divergence(p, q) + tv_weight * (1 - overlap(p, q))).mean()
    expected.backward()
    for chunk in (2, 7, 100):
        mine_h, mine_head = start_h.clone().requires_grad_(), start_head.clone().requires_grad_()
        loss, _, _ = DistillLoss.apply(
            mine_h, mine_head, h_target, head_target, tau, kl_weight, tv_weight, chunk, token_terms
        )
        (2 * loss).backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(mine_h.grad, 2 * h.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mine_head.grad, 2 * head.grad, rtol=1e-4, atol=1e-6)


# --- sampling
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab", "block"), [(16, 4), (10, 4), (5, 256)])
def test_draw_tokens_inverts_the_distribution_function(vocab, block):
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(1)) * 2
    tau, grid = 0.7, torch.linspace(0.0005, 0.9995, 1000)
    drawn = draw_tokens(logits.expand(1000, vocab), torch.full((1000,), tau), grid, block)
    share = torch.bincount(drawn, minlength=vocab) / 1000
    assert drawn.diff().min() >= 0
    torch.testing.assert_close(share, torch.softmax(logits[0] / tau, -1), rtol=0, atol=0.0015)


def test_draw_tokens_stays_inside_the_vocabulary_at_the_ends():
    logits = torch.tensor([[0.0, 1.0, 2.0, float("-inf"), float("-inf")]] * 2)
    drawn = draw_tokens(logits, torch.ones(2), torch.tensor([0.0, 1 - 2**-24]), block=2)
    assert drawn.tolist() == [0, 2]


def test_rows_start_from_openers_and_go_on_with_new_ones_after_the_end(target):
    rows, length, end = 4, 24, set(range(3, 200))  # nearly every drawn token ends the text
    lists = [[200 + i] * (i % 3 + 1) for i in range(12)]
    sampler = Sampler(
        view_of(target, torch.float32),
        rows=rows,
        length=length,
        openers=12,
        opener_length=3,
        end_tokens=sorted(end),
    )
    uniform = torch.rand(length, rows, generator=torch.Generator().manual_seed(0))
    tokens = sampler.launch(lists, torch.ones(rows), uniform).tolist()
    restarts = 0
    for row in range(rows):
        place, opener = 0, row
        while place < length:
            expected = lists[opener % 12][: length - place]
            assert tokens[row][place : place + len(expected)] == expected
            place += len(expected)
            while place < length and tokens[row][place] not in end:
                place += 1
            place += 1
            opener += rows
            restarts += 1
    assert restarts > 2 * rows


def test_sampled_tokens_follow_the_target(target):
    view = view_of(target, torch.float32)
    sampler = Sampler(view, rows=3000, length=3, openers=1, opener_length=2, end_tokens=())
    uniform = torch.rand(3, 3000, generator=torch.Generator().manual_seed(0))
    tokens = sampler.launch([[7, 9]], torch.full((3000,), 0.6), uniform)
    p = torch.softmax(target(torch.tensor([[7, 9]])).logits[0, -1] / 0.6, -1)
    share = torch.bincount(tokens[:, 2], minlength=259) / 3000
    assert 0.5 * (share - p).abs().sum() < 0.12
    assert p.max() > 0.02
    assert torch.unique(tokens[:, :2], dim=0).tolist() == [[7, 9]]


def test_sampler_refuses_wrong_openers(target):
    sampler = Sampler(
        view_of(target, torch.float32), rows=2, length=4, openers=2, opener_length=2, end_tokens=()
    )
    with pytest.raises(ValueError, match="built for 2"):
        sampler.launch([[3]], torch.ones(2), torch.rand(4, 2))
    with pytest.raises(ValueError, match="empty"):
        sampler.launch([[3], []], torch.ones(2), torch.rand(4, 2))


def test_shards_are_whole_and_in_order(tmp_path):
    with pytest.raises(UsageError, match="sample command"):
        load_shards(tmp_path)
    for shard in (2, 0, 1):
        write_shard(tmp_path, shard, torch.full((2, 3), shard + 40_000))
    loaded = load_shards(tmp_path)
    assert loaded.dtype == np.uint16
    assert loaded[:, 0].tolist() == [40_000, 40_000, 40_001, 40_001, 40_002, 40_002]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"shard-0000{i}.npy" for i in range(3)]


def test_shard_draws_depend_on_seed_and_shard_only():
    first, again, other = (
        shard_draws(SETTINGS, 3),
        shard_draws(SETTINGS, 3),
        shard_draws(SETTINGS, 4),
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert set(first[0].tolist()) <= set(torch.tensor(SETTINGS.sample_temperatures).tolist())


# --- openers
# -------------------------------------------------------------------------------------------------------


def test_openers_are_deterministic_distinct_and_bounded(tokenizer):
    first = openers(tokenizer, 1, 0, 400, 32)
    assert first == openers(tokenizer, 1, 0, 400, 32)
    assert first != openers(tokenizer, 1, 1, 400, 32)
    assert first != openers(tokenizer, 2, 0, 400, 32)
    assert all(1 <= len(ids) <= 32 for ids in first)
    assert 0.05 < sum(len(ids) == 1 for ids in first) / 400 < 0.2


def test_every_template_fills_and_the_grammar_is_large():
    assert sum(KINDS.values()) == pytest.approx(1)
    assert set(TEMPLATES) == set(KINDS) - {"bare"}
    rng = random.Random(0)
    for kind in TEMPLATES:
        texts = {write_opener(kind, rng) for _ in range(300)}
        assert all(text and "{first" not in text and "{city" not in text for text in texts)
        assert len(texts) > 80, kind
    assert len({write_opener("news", rng) for _ in range(5000)}) > 4300


# --- training
# ------------------------------------------------------------------------------------------------------


def test_principal_embedding_keeps_all_geometry_at_full_width():
    matrix = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    full, part = principal_embedding(matrix, 6), principal_embedding(matrix, 2)
    torch.testing.assert_close(full @ full.T, matrix @ matrix.T, rtol=1e-4, atol=1e-4)
    singular = torch.linalg.svdvals(matrix)
    assert part.norm().item() == pytest.approx(singular[:2].norm().item(), rel=1e-4)


def test_schedules():
    settings = DistillSettings(
        max_tokens=1000 * 128 * 256, warmup_steps=10, decay_share=0.5, tv_start=0.6
    )
    assert settings.steps == 1000
    assert learning_rate_scale(0, settings) == pytest.approx(0.1)
    assert learning_rate_scale(300, settings) == 1
    assert learning_rate_scale(750, settings) == pytest.approx(0.5)
    assert tv_share(599, settings) == 0
    assert tv_share(800, settings) == pytest.approx(0.375)
    assert tv_share(1000, settings) == pytest.approx(0.75)


def test_loss_falls_on_repeated_text(target):
    settings = DistillSettings(
        **{**SETTINGS.as_dict(), "max_tokens": 120 * 64, "sample_temperatures": (1.0,)}
    )
    run = trainer(target, settings)
    values = [run.train_step() for _ in range(settings.steps)]
    kl = [value["kl"].item() for value in values]
    shared = [value["overlap"].item() for value in values]
    assert np.mean(kl[-6:]) < 0.7 * np.mean(kl[:6])
    assert np.mean(shared[-6:]) > np.mean(shared[:6]) + 0.05


def test_resumed_run_equals_uninterrupted_run_exactly(target, tmp_path):
    whole = trainer(target)
    whole.run(log_every=1)
    assert whole.step == 8
    first = trainer(target)
    first.run(until=5, checkpoint=tmp_path / "c.pt", save_every=5)
    second = trainer(target)
    second.load(tmp_path / "c.pt")
    assert second.step == 5
    second.run()
    for name, value in whole.draft.state_dict().items():
        assert torch.equal(value, second.draft.state_dict()[name]), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt"]


def test_resume_refuses_other_settings_and_too_few_sequences(target, tmp_path):
    run = trainer(target)
    run.save(tmp_path / "c.pt")
    other = trainer(target, DistillSettings(**{**SETTINGS.as_dict(), "muon_lr": 0.5}))
    with pytest.raises(ValueError, match=r"--muon-lr 0\.5"):
        other.load(tmp_path / "c.pt")
    with pytest.raises(UsageError, match="--batch-rows 4: there are only 2"):
        Trainer(view_of(target, torch.float32), new_draft(target, SETTINGS), sequences(2), SETTINGS)


def test_cached_target_states_give_the_same_training(target):
    plain, cached = trainer(target), trainer(target)
    cached.cache_target()
    assert cached.cached.shape == (12, 16, 32)
    for _ in range(4):
        one, other = plain.train_step(), cached.train_step()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_epochs_visit_every_sequence_once(target, monkeypatch):
    run, seen = trainer(target), []

    def read(model, tokens, kernels):
        if model is run.target:
            seen.extend(tokens.reshape(-1, 16).tolist())  # every other step has them end to end
        return forward(model, tokens, kernels)

    monkeypatch.setattr("tools.train_draft.training.forward", read)
    run.run(until=6)  # 12 sequences, 4 a step
    for epoch in (seen[:12], seen[12:]):
        assert sorted(epoch) == sorted(sequences().tolist())
    assert seen[:12] != seen[12:], "in another order"


def test_saved_draft_loads_plainly_in_bfloat16(target, tmp_path):
    draft = new_draft(target, SETTINGS)
    save_draft(draft, tmp_path)
    loaded = load_draft(tmp_path, target, torch.bfloat16)
    assert loaded.config.vocab_size == 259
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(
        loaded.model.embed_tokens.weight, draft.model.embed_tokens.weight.to(torch.bfloat16)
    )
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


# --- evaluation
# ----------------------------------------------------------------------------------------------------


def test_a_draft_equal_to_the_target_overlaps_fully(target):
    view = view_of(target, torch.float32)
    prompts = [[5, 6, 7, 8], [9, 10]]
    one = continue_prompts(
        view,
        view,
        prompts,
        name="x",
        temperature=0.6,
        prompt_tokens=4,
        new_tokens=5,
        end_tokens=(),
        seed=1,
    )
    assert one.rows.tolist() == [0] * 5 + [1] * 5
    assert one.positions.tolist() == [3, 4, 5, 6, 7, 1, 2, 3, 4, 5]
    assert one.tokens[0, :4].tolist() == prompts[0]
    assert one.tokens[1, :2].tolist() == prompts[1]
    numbers = measure(target, view.head, [one])
    assert numbers["x/T=0.6/overlap"] == pytest.approx(1, abs=1e-5)
    assert numbers["x/T=0.6/top1"] == 1
    assert numbers["x/T=0.6/positions"] == 10
    assert numbers["x/T=0.6/mass@1"] < numbers["x/T=0.6/mass@4"] < numbers["x/T=0.6/mass@8"] <= 1


def test_measure_equals_a_direct_computation_and_stops_at_the_end_token(target):
    view, draft = view_of(target, torch.float32), new_draft(target, SETTINGS)
    ends = tuple(range(3, 60))
    one = continue_prompts(
        view,
        view,
        [[70, 80, 90]] * 6,
        name="y",
        temperature=1.0,
        prompt_tokens=3,
        new_tokens=8,
        end_tokens=ends,
        seed=2,
    )
    shared, same = [], []
    for row in one.tokens:
        p = torch.softmax(target(row[None]).logits[0], -1)
        q = torch.softmax(draft(row[None]).logits[0], -1)
        for position in range(2, 10):
            shared.append(overlap(p[position], q[position]).item())
            same.append(float(p[position].argmax() == q[position].argmax()))
            if row[position + 1].item() in ends:
                break
    numbers = measure(draft, view.head, [one])
    assert numbers["y/T=1/positions"] == len(shared) < 48
    assert numbers["y/T=1/overlap"] == pytest.approx(np.mean(shared), abs=1e-5)
    assert numbers["y/T=1/top1"] == pytest.approx(np.mean(same))


def test_read_prompts(tokenizer, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "abcdef"}\n\n{"ids": [4, 5, 6, 7]}\n')
    assert read_prompts(path, tokenizer, 3) == [tokenizer("abc")["input_ids"], [4, 5, 6]]
    path.write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(UsageError, match="line 2"):
        read_prompts(path, tokenizer, 3)


# --- command line
# --------------------------------------------------------------------------------------------------


def test_commands_from_end_to_end_and_sampling_resumes(target_folder, tmp_path, capsys):
    base = ["--target", str(target_folder), "--device", "cpu", "--seed", "5"]
    sample = [
        *base,
        "--out",
        str(tmp_path / "s"),
        "--sample-tokens",
        "384",
        "--rows",
        "8",
        "--length",
        "16",
    ]
    assert main(["sample", *sample]) == 0
    files = sorted((tmp_path / "s").iterdir())
    before = [path.read_bytes() for path in files]
    assert [path.name for path in files] == [
        "shard-00000.npy",
        "shard-00001.npy",
        "shard-00002.npy",
    ]
    files[1].unlink()
    kept = files[0].stat().st_mtime_ns
    assert main(["sample", *sample]) == 0
    assert [path.read_bytes() for path in sorted((tmp_path / "s").iterdir())] == before
    assert files[0].stat().st_mtime_ns == kept

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text": "hello there"}\n{"text": "good day"}\n')
    shape = ["--hidden", "16", "--layers", "2", "--heads", "2", "--kv-heads", "1", "--mlp", "24"]
    measured = ["--prompts", str(prompts), "--prompt-tokens", "6", "--new-tokens", "4"]
    train = [
        *base,
        "--samples",
        str(tmp_path / "s"),
        "--out",
        str(tmp_path / "run"),
        "--max-tokens",
        "256",
        *shape,
        *measured,
    ]
    assert (
        main(["train", *train, "--batch-rows", "8", "--save-every", "1", "--eval-every", "2"]) == 0
    )
    records = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    ]
    assert records[-1]["step"] == 2
    assert 0 < records[-1]["prompts/T=1/overlap"] < 1

    capsys.readouterr()
    out = tmp_path / "numbers.json"
    assert (
        main(
            [
                "evaluate",
                *base,
                "--draft",
                str(tmp_path / "run" / "draft"),
                *measured,
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "--out", "x", "--rows", "0"], ("--rows 0", "at least 1")),
        (["train", "--out", "x", "--samples", "nowhere"], ("--samples nowhere", "sample command")),
        (["evaluate", "--draft", "nowhere"], ("required: --prompts",)),
        (
            ["evaluate", "--draft", "nowhere", "--prompts", "none.jsonl"],
            ("none.jsonl", "does not exist"),
        ),
        (["sample", "--out", "x", "--row", "4"], ("--row",)),
        (["sample", "--out", "x", "--rows", "many"], ("--rows", "many")),
        (
            ["sample", "--out", "x", "--device", "toaster"],
            ("--device toaster", "not on this machine"),
        ),
        (
            ["sample", "--out", "x", "--target", "./no/where"],
            ("--target ./no/where", "there is no such folder"),
        ),
        (
            ["sample", "--out", "x", "--seed", "1", "--length", "1"],
            ("--length 1", "try --length 256"),
        ),
    ],
)
def test_bad_input_is_one_line_that_names_flag_and_remedy(
    arguments, words, target_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    command, *flags = arguments
    assert main([command, "--target", str(target_folder), "--device", "cpu", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert all(word in captured.err for word in (*words, "error: ", "; ")), captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_settings_refuse_what_cannot_work():
    for wrong in (
        {"length": 1},
        {"loss_temperatures": (0.0,)},
        {"batch_rows": 6},
        {"heads": 3},
        {"tv_start": 2.0},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong)).replace("_", "-")):
            DistillSettings(**wrong)
