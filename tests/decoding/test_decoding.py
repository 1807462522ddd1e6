"""The decode loop on real (tiny, random) models: greedy equality, seeds, ends of text, records that
add up."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LONG, PHI, blurred, build
from conftest import ARCHITECTURES, DEVICES, tiny_model, tiny_tokenizer

from dynasurge import Pair, Settings, UsageError, build_growmap, generate, load_pair, save_growmap
from dynasurge.decoding.engines import make_engines
from dynasurge.decoding.executors import Direct
from dynasurge.decoding.loop import Decoder, StepRecord
from dynasurge.decoding.phases import Phases
from dynasurge.decoding.session import Session, follow
from dynasurge.drafting.acceptance_estimates import Acceptance, curves_at, load_priors
from dynasurge.drafting.child_kinds import CLASSES, Kind
from dynasurge.drafting.cost_model import Costs
from dynasurge.drafting.proposals import POLICIES
from dynasurge.drafting.tree_budget import Size
from dynasurge.trees.growmap import Growmap
from dynasurge.verification.prototype import bfs
from dynasurge.verification.rules import RULES, Verdict

PROMPT = [5, 17, 8, 40, 33, 9, 21, 60, 61]
SMALL = {"M": 128, "new_tokens": 40, "prompt_len": 16, "B": 6, "dtype": "float32"}


@pytest.fixture(scope="module", params=DEVICES)
def pairs(
    request: pytest.FixtureRequest, tiny_folders: dict[str, tuple[str, str]]
) -> dict[str, Pair]:
    return {
        name: load_pair(*folders, dtype="float32", device=request.param)
        for name, folders in tiny_folders.items()
    }


@pytest.fixture(scope="module")
def growmap(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("growmaps") / "3x3.pt"
    save_growmap(build_growmap("3x3"), path)
    return str(path)


@pytest.fixture(autouse=True, params=["direct", pytest.param("captured", marks=pytest.mark.slow)])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to run a step. On a CPU nothing is captured, but the same functions are called."""
    monkeypatch.setattr(
        "dynasurge.decoding.engines.can_capture", lambda pair: request.param == "captured"
    )
    return str(request.param)


def modes(growmap: str) -> list[dict[str, Any]]:
    return [
        {"mode": "auto"},
        {"mode": "sTree", "growmap": growmap},
        {"mode": "sTree", "growmap": growmap, "use_bfs": True},
        {"mode": "dTree"},
        {"mode": "dTree", "use_bfs": True},
        {"mode": "dTree", "growmap": growmap},
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_output_is_generates(
    architecture: str, pairs: dict[str, Pair], growmap: str, steps: str
) -> None:
    if steps == "captured" and architecture != "llama":
        pytest.skip("what a model is matters to its passes, which one kind of step is enough for")
    pair = pairs[architecture]
    prompt = torch.tensor([PROMPT], device=pair.target.device)
    plain = pair.target.generate(prompt, do_sample=False, max_new_tokens=40)[
        0, len(PROMPT) :
    ].tolist()
    for mode in modes(growmap):
        result = generate(pair, PROMPT, T=0, **(SMALL | mode))
        assert result.output_ids == plain, mode
        if mode["mode"] != "auto":
            assert sum(step.tree.size for step in result.steps) > 0


@pytest.mark.parametrize("index", range(6))
def test_a_spread_target_decodes_the_same(
    index: int, pairs: dict[str, Pair], growmap: str, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its passes and its cache's rows are outside what is captured, with the same numbers."""
    mode = modes(growmap)[index]
    # filled, because what passes cost is measured anew for a spread target
    settings = SMALL | {"T": 0.7, "P": 0.9, "seed": 3, "fill": mode["mode"] == "dTree"} | mode
    whole = generate(pairs["llama"], PROMPT, **settings)
    # here its parts are on one device, but the map says two
    monkeypatch.setattr(pairs["llama"].target, "hf_device_map", {"a": 0, "b": 1}, raising=False)
    spread = generate(pairs["llama"], PROMPT, **settings)
    assert spread.output_ids == whole.output_ids
    assert [step.tree.tokens for step in spread.steps] == [step.tree.tokens for step in whole.steps]
    assert [step.end for step in spread.steps] == [step.end for step in whole.steps]


@pytest.mark.parametrize("index", range(6))
def test_same_seed_same_text_and_records_add_up(
    index: int, pairs: dict[str, Pair], growmap: str
) -> None:
    mode = modes(growmap)[index]
    settings = Settings(T=0.9, P=0.95, **(SMALL | mode))
    session = Session(pairs["llama"], settings)
    first, other, again = (session.generate(PROMPT, index=i) for i in (0, 1, 0))
    assert first.output_ids == again.output_ids != other.output_ids
    for result in (first, other):
        assert [token for step in result.steps for token in step.emitted] == result.output_ids
        assert len(result.output_ids) == 40 or result.output_ids[-1] in pairs["llama"].eos
        spent = sum(
            s.draft_seconds + s.target_seconds + s.verify_seconds + s.other_seconds
            for s in result.steps
        )
        assert 0 < spent < result.seconds
        assert sum(step.accepted for step in result.steps) <= len(result.output_ids)
        for step in result.steps:
            assert step.tree.size <= (9 if mode.get("growmap") and mode["mode"] == "sTree" else 6)
            assert all(
                step.tree.parents[b] == a for a, b in zip((0, *step.path), step.path, strict=False)
            )
            assert step.accepted + 1 >= len(step.emitted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_decode(
    dtype: str, device: str, tiny_folders: dict[str, tuple[str, str]], growmap: str
) -> None:
    """Rounding may change which text is likeliest, but every mode runs, fills its length and
    accepts drafted tokens."""
    pair = load_pair(*tiny_folders["llama"], dtype=dtype, device=device)
    assert pair.target.dtype == pair.draft.dtype == getattr(torch, dtype)
    for mode in modes(growmap):
        how = SMALL | mode | {"dtype": dtype, "fill": mode["mode"] == "dTree"}
        result = generate(pair, PROMPT, T=0.9, seed=3, **how)
        assert len(result.output_ids) == 40 or result.output_ids[-1] in pair.eos
        assert mode["mode"] == "auto" or sum(step.accepted for step in result.steps) > 0


def test_a_growmap_bounds_the_depth_of_a_dynamic_tree(pairs: dict[str, Pair], growmap: str) -> None:
    result = generate(
        pairs["llama"],
        PROMPT,
        T=0.3,
        mode="dTree",
        growmap=growmap,
        **(SMALL | {"B": 12, "max_children": 2, "fill": True}),
    )
    assert max(step.tree.depth for step in result.steps) == 3
    assert max(step.tree.size for step in result.steps) == 12


def test_a_draft_that_never_pays_is_left_alone_and_read_on_later(
    pairs: dict[str, Pair], steps: str
) -> None:
    wide = 99.0 if steps == "direct" else 1.0
    dear = Costs(widths=(1, 8), target_seconds=(1.0, wide), draft_seconds=(9.0, 9.0))
    settings = Settings(mode="dTree", T=0, M=128, new_tokens=40, prompt_len=16, dtype="float32")
    session = Session(pairs["llama"], settings, costs=dear)
    result = session.generate(PROMPT)
    passes = [step.passes for step in result.steps]
    if steps == "captured":  # always reads what was emitted, and so can propose a level
        assert set(passes[20:-1]) == {1}
    else:
        assert passes.count(0) > 20
        assert any(passes[20:]), "it is looked at again"
    plain = generate(pairs["llama"], PROMPT, T=0, mode="auto", **SMALL).output_ids
    assert result.output_ids == plain


@pytest.mark.slow
def test_trees_at_given_places_continue_the_text(pairs: dict[str, Pair], growmap: str) -> None:
    pair, accepted = pairs["llama"], 0
    plain = generate(pair, PROMPT, T=0, mode="auto", **SMALL).output_ids
    plan = [Settings(T=0, **(SMALL | mode)) for mode in modes(growmap)]
    engines = make_engines(pair, plan)
    sessions = [Session(pair, settings, engines=engines) for settings in plan]
    for every in (1, 3):
        for session, records in zip(
            sessions, follow(sessions, PROMPT, plain, every=every), strict=True
        ):
            assert len(records) == -(-len(plain) // every)
            for place, record in zip(range(0, len(plain), every), records, strict=True):
                emitted = list(record.emitted)[: len(plain) - place]
                assert emitted == plain[place : place + len(emitted)], (
                    session.settings.mode,
                    every,
                    place,
                )
                assert record.expected == record.accepted == len(record.emitted) - 1
                accepted += record.accepted
    assert accepted > 0
    assert all(session.generate(PROMPT).output_ids == plain for session in sessions)
    with pytest.raises(UsageError, match="new_tokens 80"):
        follow(sessions, PROMPT, plain * 2)


@pytest.mark.slow
def test_a_text_that_another_one_interrupts_says_so(pairs: dict[str, Pair], growmap: str) -> None:
    for mode in modes(growmap):
        session = Session(pairs["llama"], Settings(T=0.9, **(SMALL | mode)))
        whole = session.generate(PROMPT).output_ids
        stream = session.stream(PROMPT)
        next(stream)
        assert session.generate(PROMPT).output_ids == whole
        with pytest.raises(UsageError, match="another text that uses the same engines began"):
            next(stream)


def test_places_where_the_target_says_nothing_are_named(
    pairs: dict[str, Pair], growmap: str, steps: str
) -> None:
    if steps == "captured" and pairs["llama"].target.device.type == "cuda":
        pytest.skip("a replayed graph calls no hook")
    broken = dataclasses.replace(pairs["llama"], target=copy.deepcopy(pairs["llama"].target))
    passes = [0]  # since the session was made

    def fail(module: Any, args: Any, out: Any) -> Any:
        passes[0] += 1
        return out * torch.nan if passes[0] > 4 else out

    handle = broken.target.get_output_embeddings().register_forward_hook(fail)
    for mode in modes(growmap):
        passes[0] = -1000
        session = Session(broken, Settings(T=0.9, **(SMALL | mode)))
        passes[0] = 0
        with pytest.raises(UsageError, match="--target"):
            follow([session], PROMPT, PROMPT, every=2)
    handle.remove()


def test_sessions_that_share_engines_grow_the_trees_they_grow_alone(
    pairs: dict[str, Pair], growmap: str
) -> None:
    pair = pairs["llama"]
    text = generate(pair, PROMPT, T=0.9, mode="auto", **SMALL).output_ids
    plan = [Settings(T=0.9, **(SMALL | mode)) for mode in modes(growmap)]
    engines = make_engines(pair, plan)
    costs = Costs(widths=(1, 64), target_seconds=(1.0, 1.1), draft_seconds=(0.05, 0.05))
    together = follow(
        [Session(pair, settings, engines=engines, costs=costs) for settings in plan],
        PROMPT,
        text,
        every=2,
    )
    for settings, records in zip(plan, together, strict=True):
        [alone] = follow([Session(pair, settings, costs=costs)], PROMPT, text, every=2)
        assert [step.tree.tokens for step in records] == [step.tree.tokens for step in alone]


def test_generation_stops_at_end_of_text(pairs: dict[str, Pair], growmap: str) -> None:
    pair = pairs["llama"]
    plain = generate(pair, PROMPT, T=0, mode="auto", **SMALL).output_ids
    stop = plain[12]
    config = pair.target.generation_config
    before, config.eos_token_id = config.eos_token_id, [2, stop]
    try:
        for mode in modes(growmap):
            result = generate(pair, PROMPT, T=0, **(SMALL | mode))
            assert result.output_ids == plain[: plain.index(stop) + 1]
    finally:
        config.eos_token_id = before


@pytest.mark.parametrize("policy", ["sampled", "topk", "hybrid"])
def test_no_node_has_more_children_than_it_may(policy: str, pairs: dict[str, Pair]) -> None:
    bounds = {"max_children": 1, "fill": True, "policy": policy, "lookup": False}
    result = generate(pairs["llama"], PROMPT, T=0.9, **(SMALL | bounds))
    assert max(len(children) for step in result.steps for children in step.tree.children) == 1
    assert max(step.tree.depth for step in result.steps) > 1


def test_a_draft_like_the_target_has_everything_accepted(
    pairs: dict[str, Pair], growmap: str
) -> None:
    """Whatever the policy: a static tree's nodes have no more points taken from what they sample
    than they have places."""
    twins = dataclasses.replace(pairs["llama"], draft=pairs["llama"].target)
    for policy in ("sampled", "hybrid"):
        result = generate(
            twins,
            PROMPT,
            T=0.9,
            mode="sTree",
            growmap=growmap,
            use_bfs=True,
            policy=policy,
            **SMALL,
        )
        whole = [step for step in result.steps[:-1] if step.tree.size]
        assert all(step.expected > 2.99 for step in whole), policy


def test_records_end_where_the_text_ends(pairs: dict[str, Pair], growmap: str) -> None:
    twins = dataclasses.replace(pairs["llama"], draft=pairs["llama"].target)
    for mode in modes(growmap)[1:]:
        for steps in (
            generate(twins, PROMPT, T=0.9, **(SMALL | mode | {"new_tokens": n})).steps
            for n in (1, 2, 7)
        ):
            assert all(
                step.accepted < len(step.emitted) or step.emitted[-1] in twins.eos for step in steps
            )
            assert all(step.expected <= len(step.emitted) + 6 for step in steps)
            assert (
                steps[-1].expected <= len(steps[-1].emitted) - 1 + 1e-9
                or steps[-1].emitted[-1] in twins.eos
            )


@pytest.mark.slow
def test_whoever_looks_at_records_takes_time_of_their_own(pairs: dict[str, Pair]) -> None:
    session = Session(pairs["llama"], Settings(T=0.9, **SMALL))
    session.generate(PROMPT)
    steps = session.generate(PROMPT, on_step=lambda step: time.sleep(0.1)).steps
    spent = [s.draft_seconds + s.target_seconds + s.verify_seconds + s.other_seconds for s in steps]
    assert statistics.median(spent) < 0.1


@pytest.mark.slow
def test_a_model_that_went_astray_once_does_not_spoil_the_next_text(
    pairs: dict[str, Pair], growmap: str
) -> None:
    pair = pairs["llama"]
    weight = next(pair.target.parameters())
    for mode in modes(growmap):
        session = Session(pair, Settings(T=0.9, **(SMALL | mode)))
        whole = session.generate(PROMPT).output_ids
        stream = session.stream(PROMPT)
        next(stream)
        kept = weight.data.clone()
        weight.data.fill_(torch.nan)
        with pytest.raises(UsageError, match="logits that are NaN"):
            list(stream)
        weight.data.copy_(kept)
        assert session.generate(PROMPT).output_ids == whole


def test_a_draft_that_went_astray_drafts_nothing(pairs: dict[str, Pair]) -> None:
    pair = pairs["llama"]
    plain = generate(pair, PROMPT, T=0, mode="auto", **SMALL).output_ids
    weight = next(pair.draft.parameters())
    session = Session(pair, Settings(T=0, fill=True, **SMALL))
    stream = session.stream(PROMPT)
    emitted = list(next(stream).emitted)
    kept = weight.data.clone()
    weight.data.fill_(torch.nan)
    emitted += [token for step in stream for token in step.emitted]
    weight.data.copy_(kept)
    assert emitted == plain


def test_a_growmap_of_a_root_alone_drafts_nothing(pairs: dict[str, Pair], tmp_path: Path) -> None:
    save_growmap(Growmap(parents=(-1,)), tmp_path / "root.pt")
    result = generate(
        pairs["llama"], PROMPT, T=0.9, mode="sTree", growmap=str(tmp_path / "root.pt"), **SMALL
    )
    assert {step.tree.size for step in result.steps} == {0}


def test_no_more_is_generated_than_there_is_room_for(pairs: dict[str, Pair]) -> None:
    session = Session(pairs["llama"], Settings(T=0.9, **SMALL))
    with pytest.raises(UsageError, match="new_tokens 41: this session generates 1 to 40 tokens"):
        session.generate(PROMPT, new_tokens=41)
    with pytest.raises(UsageError, match="new_tokens 0: this session generates 1 to 40"):
        session.generate(PROMPT, new_tokens=0)
    with pytest.raises(UsageError, match="this session reads 1 to 16 tokens"):
        list(session.stream(PROMPT * 2))


@pytest.mark.slow
def test_a_text_that_nobody_finished_does_not_disturb_the_next(
    pairs: dict[str, Pair], growmap: str
) -> None:
    for mode in modes(growmap):
        session = Session(pairs["llama"], Settings(T=0.9, **(SMALL | mode)))
        whole = session.generate(PROMPT).output_ids
        begun = [
            token
            for _, step in zip(range(3), session.stream(PROMPT), strict=False)
            for token in step.emitted
        ]
        assert begun == whole[: len(begun)]
        assert session.generate(PROMPT).output_ids == whole


@pytest.mark.nightly
@pytest.mark.parametrize("mode", [pytest.param(1, id="static"), pytest.param(4, id="dynamic")])
def test_compiled_steps_say_the_same(
    mode: int, pairs: dict[str, Pair], growmap: str, steps: str
) -> None:
    if steps == "direct":
        pytest.skip("only captured steps are compiled")
    shape = SMALL | modes(growmap)[mode] | {"max_depth": 3, "fill": mode == 4}  # costs would differ
    plain = generate(pairs["llama"], PROMPT, T=0, mode="auto", **SMALL).output_ids
    assert generate(pairs["llama"], PROMPT, T=0, compile=True, **shape).output_ids == plain
    how = shape | {"T": 0.9, "use_bfs": mode == 4}
    torch._dynamo.utils.counters.clear()
    one, other = (
        generate(pairs["llama"], PROMPT, compile=compiled, **how) for compiled in (False, True)
    )
    assert not torch._dynamo.utils.counters["graph_break"]
    # the same draws, and numbers that differ by roundings
    assert one.output_ids == other.output_ids
    for mine, theirs in zip(one.steps, other.steps, strict=True):
        assert mine.tree.tokens == theirs.tree.tokens
        assert (mine.tree.parents, mine.path) == (theirs.tree.parents, theirs.path)
        assert mine.expected == pytest.approx(theirs.expected, abs=1e-4)
    assert sum(step.tree.size for step in one.steps) > 0


def test_a_one_token_prompt_works_in_every_mode(pairs: dict[str, Pair], growmap: str) -> None:
    outputs = [
        generate(pairs["gpt2"], [7], T=0, **(SMALL | mode)).output_ids for mode in modes(growmap)
    ]
    assert all(output == outputs[0] for output in outputs)


def test_text_prompts_are_cut_and_empty_ones_refused(pairs: dict[str, Pair]) -> None:
    session = Session(pairs["llama"], Settings(mode="auto", **SMALL))
    assert session.encode(" ".join(f"w{i}" for i in range(3, 50))) == list(range(3, 19))
    with pytest.raises(UsageError, match="shorter than one token"):
        session.encode("  ")


def test_the_draft_reads_each_token_once(
    pairs: dict[str, Pair], monkeypatch: pytest.MonkeyPatch, steps: str
) -> None:
    """The draft keeps its cache: per step it reads what was emitted and its own tree, never the
    whole text again."""
    session = Session(pairs["llama"], Settings(T=0.9, fill=True, **SMALL))
    if session.engines.captures and pairs["llama"].target.device.type == "cuda":
        pytest.skip("a replayed graph calls no method")
    drafter = session.engines.draft
    assert drafter is not None
    reads: list[int] = []
    original = drafter.score

    def counted(tokens: Any, positions: Any, rows: Any, *others: Any, **how: Any) -> Any:
        if torch.equal(positions, rows):  # text: nodes beside each other share a position
            reads.append(len(tokens))
        return original(tokens, positions, rows, *others, **how)

    monkeypatch.setattr(drafter, "score", counted)
    session.generate(PROMPT)
    assert len(reads) > 5
    # a captured step reads as many tokens as a path may have that the draft has not read
    assert max(reads) <= (2 if steps == "direct" else 2 + session._decoder._phases.run)


def test_room_is_checked_before_anything_runs(pairs: dict[str, Pair]) -> None:
    with pytest.raises(
        UsageError,
        match=r"--M 61: 16 prompt \+ 40 new tokens \+ a tree of 6 need 62 rows; use --M 62",
    ):
        Session(pairs["llama"], Settings(**(SMALL | {"M": 61})))
    Session(pairs["llama"], Settings(**(SMALL | {"M": 62}))).generate(PROMPT)
    with pytest.raises(UsageError, match="reads 256 positions, 300 are needed"):
        Session(pairs["gpt2"], Settings(**(SMALL | {"M": 400, "new_tokens": 284})))


def test_seeds_and_prompts_have_streams_of_their_own(pairs: dict[str, Pair]) -> None:
    texts = [
        generate(pairs["llama"], PROMPT, T=2.0, seed=seed, **SMALL).output_ids
        for seed in (0, 1, 2**32, 2**40 + 1)
    ]
    assert len({tuple(text) for text in texts}) == 4


@pytest.mark.parametrize("positions", [5, 30, 48])
def test_a_draft_that_reads_less_than_the_text_drafts_while_it_can(
    positions: int, growmap: str
) -> None:
    """After its last position nothing is drafted, and the text is what it is without a draft."""
    target = tiny_model("gpt2")
    draft = tiny_model("gpt2", layers=1)
    draft.config.n_positions = positions
    draft.transformer.wpe = torch.nn.Embedding.from_pretrained(
        draft.transformer.wpe.weight[:positions].detach()
    )
    pair = Pair(
        draft=draft, target=target, tokenizer=tiny_tokenizer(), draft_name="d", target_name="t"
    )
    common: dict[str, Any] = {"T": 0, "new_tokens": 60}
    plain = Session(pair, Settings(mode="auto", **common)).generate(PROMPT)
    for mode in modes(growmap):
        with contextlib.ExitStack() as stack:
            if pair.target.device.type == "cuda" and mode.get("mode") != "auto":
                stack.enter_context(
                    pytest.warns(UserWarning, match="after these nothing is drafted")
                )
            result = Session(pair, Settings(**(common | mode))).generate(PROMPT)
        assert result.output_ids == plain.output_ids, mode
        place = len(PROMPT)
        for step in result.steps:
            assert step.tree.depth + place <= max(place, positions + 1)
            assert step.passes == 0 or place <= positions
            place += len(step.emitted)
    assert place > positions


@pytest.mark.slow
def test_captured_and_direct_steps_grow_the_same_trees(
    pairs: dict[str, Pair], growmap: str, steps: str
) -> None:
    """The same settings and seed, the host as far behind: the same trees, values and text. Passes of
    other widths round otherwise, so values may differ in their last digits."""
    if steps == "direct" or pairs["llama"].target.device.type == "cuda":
        pytest.skip("both ways are compared at once, where kernels round alike for all widths")
    flat = Costs(widths=(1, 8), target_seconds=(1.0, 1.0), draft_seconds=(0.05, 0.05))
    for mode in modes(growmap)[1:]:
        for policy in ("sampled", "hybrid"):
            settings = Settings(T=0.9, policy=policy, **(SMALL | mode))
            same_trees(Session(pairs["llama"], settings, costs=flat), PROMPT)


@pytest.mark.slow
def test_captured_and_direct_steps_have_the_same_runs(pairs: dict[str, Pair], steps: str) -> None:
    """Where two levels are drafted, and copies are hopeful."""
    if steps == "direct" or pairs["llama"].target.device.type == "cuda":
        pytest.skip("see above")
    curves = curves_at(load_priors()["traversal"], 0.6)
    curves |= {of: ((1.0,), (0.95,)) for of in CLASSES if of.kind in (Kind.LOOKUP, Kind.BLIND)}
    costs = Costs(widths=(1, 8), target_seconds=(1.0, 1.0), draft_seconds=(0.2, 0.2))
    settings = Settings(T=0.9, **(SMALL | {"prompt_len": 27}))
    session = Session(pairs["llama"], settings, costs=costs, acceptance=Acceptance(curves))
    trees = session._decoder._phases.trees
    assert trees is not None
    trees.planner.choose = lambda: Size(nodes=16, depth=2)  # type: ignore[method-assign]
    records = same_trees(session, 3 * PROMPT)
    again = session.generate(3 * PROMPT).steps
    assert [step.q for step in again] == [step.q for step in session.generate(3 * PROMPT).steps]
    assert any(step.tree.depth > step.passes for step in records)


def same_trees(session: Session, prompt: list[int]) -> list[StepRecord]:
    """The steps of a captured session, which must be those that its parts make directly."""
    captured = session.generate(prompt)
    before = session._decoder._phases
    phases = Phases(before.target, before.draft, before.trees, before._judge, padded=False)
    session._decoder = Decoder(Direct(phases, lag=2))
    direct = session.generate(prompt)
    assert captured.output_ids == direct.output_ids
    for mine, theirs in zip(captured.steps, direct.steps, strict=True):
        assert mine.tree.tokens == theirs.tree.tokens
        assert mine.tree.parents == theirs.tree.parents
        # a table's cell may differ where the draft's probabilities round otherwise
        assert mine.tree.value == pytest.approx(theirs.tree.value, abs=5e-3)
        assert mine.stop == pytest.approx(theirs.stop, abs=1e-4)
        assert (mine.path, mine.emitted) == (theirs.path, theirs.emitted)
        assert mine.p == pytest.approx(theirs.p, abs=1e-4)
        assert mine.q == pytest.approx(theirs.q, abs=1e-4, nan_ok=True)
    assert sum(step.tree.size for step in direct.steps) > 0
    return captured.steps


def test_parts_of_ones_own_take_the_place_of_the_settings(pairs: dict[str, Pair]) -> None:
    """A policy and a rule of tensors, and a verification on the host that says what it saw."""
    seen = []

    def watched(*arguments: Any) -> Verdict:
        seen.append(arguments[0])
        return bfs(*arguments)

    pair, settings = pairs["llama"], Settings(T=0.9, **SMALL)
    plain = Session(pair, settings).generate(PROMPT)
    own = Session(pair, settings, rule=RULES["topdown"], policy=POLICIES["sampled"])
    assert own.generate(PROMPT).output_ids == plain.output_ids
    mine = dataclasses.replace(POLICIES["sampled"], capturable=False)  # it may keep a state
    for part, how in {"verify": {"verify": watched}, "policy": {"policy": mine}}.items():
        with contextlib.ExitStack() as stack:
            if own.engines.captures:
                stack.enter_context(pytest.warns(UserWarning, match=f"{part}: this part cannot be"))
            session = Session(pair, settings, **how)  # type: ignore[arg-type]
        result = session.generate(PROMPT)
        assert part == "policy" or [s.tree.tokens for s in result.steps] == [
            tree.tokens for tree in seen
        ]


def test_a_rule_that_needs_fixed_sampled_children_gets_no_others(
    pairs: dict[str, Pair], growmap: str
) -> None:
    pair, static = pairs["llama"], {"mode": "sTree", "growmap": growmap}
    with pytest.raises(UsageError, match="needs sampled children, whose numbers are fixed"):
        Session(pair, Settings(T=0.9, **SMALL), rule=RULES["reserved"])
    reserved = Settings(T=0.9, use_bfs=True, etv="reserved", **(SMALL | static))
    with pytest.raises(UsageError, match="reserved needs sampled children"):
        Session(pair, reserved, policy=POLICIES["hybrid"])
    assert Session(pair, reserved).generate(PROMPT).output_ids


def test_a_short_prompt_of_a_roomy_session_stays_on_its_side_of_longropes_switch() -> None:
    """Behind the end of a captured text are nodes; none may lie beyond the switch."""
    longrope = LONG | {"long_factor": [8.0] * 4}
    kind, config = "phi3", PHI | {"rope_parameters": longrope}
    target = build(kind, config)
    draft, prompt = blurred(target, kind, config, std=0.4), [3 + 7 * i % 90 for i in range(20)]
    pair = Pair(
        draft=draft, target=target, tokenizer=tiny_tokenizer(), draft_name="d", target_name="t"
    )
    ids = torch.tensor([prompt], device=target.device)
    plain = target.generate(ids, do_sample=False, max_new_tokens=12)[0, 20:].tolist()
    settings = Settings(T=0, B=12, fill=True, prompt_len=60, new_tokens=12)
    assert Session(pair, settings).generate(prompt).output_ids == plain


def test_engines_of_another_plan_are_refused(pairs: dict[str, Pair], growmap: str) -> None:
    plain = make_engines(pairs["llama"], [Settings(mode="auto", **SMALL)])
    small = make_engines(pairs["llama"], [Settings(**(SMALL | {"new_tokens": 4, "M": None}))])
    large = Settings(**(SMALL | {"new_tokens": 150, "M": 256}))
    for engines in (plain, small):
        with pytest.raises(UsageError, match="engines of another plan: have room for"):
            Session(pairs["llama"], large, engines=engines)
