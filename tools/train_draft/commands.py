"""The three commands, as functions of parsed arguments: load, connect the parts, report
progress."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from dynasurge.models.feature_draft import FeatureDraft
from dynasurge.models.pair import load_target
from tools.train_draft.evaluation import (
    Continuations,
    continue_prompts,
    evaluator,
    measure,
    measure_depths,
    read_prompts,
)
from tools.train_draft.feature_training import FeatureTrainer
from tools.train_draft.features import FeatureKernels, new_features
from tools.train_draft.llama import EAGER, Kernels, Llama, compiled_kernels, view_of
from tools.train_draft.loss import token_terms
from tools.train_draft.pair import (
    load_draft,
    new_draft,
    save_draft,
    save_features,
)
from tools.train_draft.prompts import openers
from tools.train_draft.sampling import (
    Sampler,
    draw_tokens,
    load_shards,
    missing_shards,
    shard_draws,
    write_shard,
)
from tools.train_draft.settings import DistillSettings, FeatureSettings
from tools.train_draft.training import Trainer

__all__ = ["evaluate", "sample", "train"]

log = logging.getLogger("tools.train_draft")

OPENER_TOKENS = 96  # longer openers are cut
OPENERS_PER_ROW = 3  # the first starts the row, the others follow texts that end early


def end_tokens_of(config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a text: the model's own end token, and an end-of-document token if there is
    one."""
    ends = (
        {config.eos_token_id}
        if isinstance(config.eos_token_id, int)
        else set(config.eos_token_id or ())
    )
    document_end = tokenizer.get_vocab().get("<|endoftext|>")
    if document_end is not None:
        ends.add(document_end)
    return tuple(sorted(ends))


def compute_dtype(device: str) -> torch.dtype:
    """bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def prepare(
    args: argparse.Namespace,
) -> tuple[Any, Any, Llama, Kernels, Callable[..., Any], Callable[..., Any]]:
    """Target module, tokenizer, target view, and the layer, draw and loss functions (compiled if
    the arguments say so)."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans again for every cache length
    wanted = args.device.startswith("cuda") if args.compile is None else args.compile
    model, tokenizer = load_target(args.target, torch.float32)
    target: Any = model.requires_grad_(False).eval()
    target.to(args.device)
    view = view_of(target, compute_dtype(args.device))
    if not wanted:
        return target, tokenizer, view, EAGER, draw_tokens, token_terms
    draw = torch.compile(draw_tokens, dynamic=False)
    terms = torch.compile(token_terms, dynamic=False)
    return target, tokenizer, view, compiled_kernels(), draw, terms


def sample(args: argparse.Namespace, settings: DistillSettings) -> None:
    """Write every missing shard. The next shard's openers are made while the device works on this
    one."""
    todo = list(missing_shards(args.out, settings))[args.rank :: args.world]
    if not todo:
        log.info("all %d shards are there", settings.shards)
        return
    target, tokenizer, view, kernels, draw, _ = prepare(args)
    count = OPENERS_PER_ROW * settings.rows

    def shard_openers(shard: int) -> list[list[int]]:
        return openers(tokenizer, settings.seed, shard, count, OPENER_TOKENS)

    sampler = Sampler(
        view,
        rows=settings.rows,
        length=settings.length,
        openers=count,
        opener_length=OPENER_TOKENS,
        end_tokens=end_tokens_of(target.config, tokenizer),
        kernels=kernels,
        draw=draw,
        graphs=args.device.startswith("cuda"),
    )
    log.info(
        "sampler ready: %d shards of %d tokens to write", len(todo), settings.rows * settings.length
    )
    upcoming = shard_openers(todo[0])
    bar = tqdm(todo, unit="shard", mininterval=5)
    for place, shard in enumerate(bar):
        tokens = sampler.launch(upcoming, *shard_draws(settings, shard))
        if place + 1 < len(todo):
            upcoming = shard_openers(todo[place + 1])
        write_shard(args.out, shard, tokens)


def continuations(
    args: argparse.Namespace, target: Any, tokenizer: Any, view: Llama
) -> tuple[Llama, list[Continuations]]:
    """The target that scores, in float32, and its continuations of each prompt file at each
    temperature."""
    scorer = view_of(target, torch.float32)
    sets = []
    for path in args.prompts:
        prompts = read_prompts(path, tokenizer, args.prompt_tokens)
        for temperature in args.temperatures:
            sets.append(
                continue_prompts(
                    view,
                    scorer,
                    prompts,
                    name=path.stem,
                    temperature=temperature,
                    prompt_tokens=args.prompt_tokens,
                    new_tokens=args.new_tokens,
                    end_tokens=end_tokens_of(target.config, tokenizer),
                    seed=args.seed,
                )
            )
    return scorer, sets


def train(args: argparse.Namespace, settings: DistillSettings) -> None:
    """Train a draft, or go on training it. ``out/draft`` always holds the latest weights in
    bfloat16."""
    sequences = load_shards(args.samples)
    settings = replace(settings, length=sequences.shape[1])
    target, tokenizer, view, kernels, _, terms = prepare(args)
    checkpoint = args.out / "checkpoint.pt"
    if isinstance(settings, FeatureSettings):
        fresh = replace(settings, init="") if checkpoint.exists() else settings
        draft: Any = new_features(target, fresh, sequences).to(args.device)
    else:
        draft = new_draft(target, settings).to(args.device)
    scorer, sets = continuations(args, target, tokenizer, view)
    how: dict[str, Any] = {"kernels": kernels, "rank": args.rank, "world": args.world}
    save: Callable[..., None]
    evaluate: Callable[[Any], dict[str, float]]
    if isinstance(settings, FeatureSettings):
        compiled = FeatureKernels(kernels, compile=kernels is not EAGER)
        trainer: Trainer = FeatureTrainer(
            view, draft, sequences, settings, feature_kernels=compiled, **how
        )
        save, evaluate = save_features, lambda draft: measure_depths(draft, scorer, sets)
    else:
        trainer = Trainer(view, draft, sequences, settings, terms=terms, **how)
        save, evaluate = save_draft, evaluator(sets, scorer.head)
        if args.cache_target:
            trainer.cache_target()
    if checkpoint.exists():
        trainer.load(checkpoint)
        log.info("resumed at step %d of %d", trainer.step, settings.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    log_path = Path(args.out) / "log.jsonl"
    first = args.rank == 0
    with (
        tqdm(total=settings.steps, initial=trainer.step, unit="step", mininterval=10) as bar,
        log_path.open("a") as file,
    ):

        def on_log(record: dict[str, float]) -> None:
            if first:
                file.write(json.dumps(record) + "\n")
                file.flush()
            bar.update(int(record["step"]) - bar.n)
            if "kl" in record:
                bar.set_postfix(kl=f"{record['kl']:.3f}", overlap=f"{record['overlap']:.3f}")

        while trainer.step < settings.steps:
            trainer.run(
                until=trainer.step + args.save_every - trainer.step % args.save_every,
                on_log=on_log,
                eval_every=args.eval_every,
                evaluate=evaluate if sets and first else None,
            )
            if first:
                trainer.save(checkpoint)
                save(draft, args.out / "draft")
    if first:
        save(draft, args.out / "draft")


def evaluate(args: argparse.Namespace, settings: DistillSettings) -> dict[str, float]:
    """Measure a saved draft on every prompt file and temperature. Returns numbers by name."""
    target, tokenizer, view, *_ = prepare(args)
    scorer, sets = continuations(args, target, tokenizer, view)
    draft = load_draft(args.draft, target).to(args.device)
    if isinstance(draft, FeatureDraft):
        return measure_depths(draft, scorer, sets)
    return measure(draft, scorer.head, sets)
