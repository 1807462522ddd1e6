"""Every model is tested once, when it is loaded: does it read a tree as it reads text?

    text t0 ... t8, then        root ─┬─ a ── c          read in one pass; then the path root, a, c is committed,
                                      └─ b               and d is read after it

Every node must get the logits that transformers gives the same tokens read as text: root and a one
at a time with transformers' cache, and all paths at once without a cache. The test covers masks,
positions, siblings that do not see each other, windows (so small in the test that the text reaches
past them), the order of cache rows, and the rows that a commit moves. The model is tested as
loaded, in its dtype, on its device.

Passes of different widths round differently. The model itself shows how much: the same path is read
at once and token by token. A larger difference is a fault, and the model is refused. A mixture of
experts may choose another expert after rounding, so a fault must show with three different texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import DynamicCache, PreTrainedModel

from dynasurge.errors import UsageError, described
from dynasurge.models.attention_masks import SIZES, layer_kinds
from dynasurge.models.compatibility import cache_arguments, readable
from dynasurge.models.engine import Engine

TEXT, TRIES = 9, 3
PARENTS = [-1, 0, 0, 1]  # root, a, b, c
PATH = (0, 1, 3)
WINDOW = 5
NAMES = (
    "the root",
    "a child",
    "its younger sibling",
    "a grandchild",
    "a token after a committed path",
)
# relative differences that always count as rounding
LEAST = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 0.02}
# if a model's own passes differ by more, it looks ahead or does not follow its config
UNSTEADY = 0.15
HALF, NOISE = 0.05, 8.0  # LEAST for bfloat16; factor on the difference of the model's own passes
REMEDY = "use another model; transformers' own generate may serve this one"


def self_test(flag: str, name: str, model: PreTrainedModel) -> None:
    """Raise UsageError unless the model reads a tree as it reads text. The error says what
    differs."""
    worst: tuple[float, str] | None = None
    for attempt in range(TRIES):
        worst = _difference(flag, name, model, attempt)
        if worst is None:
            return
    assert worst is not None
    size, node = worst
    reason = f"reads a tree differently from text: the logits of {node} differ by {size:.0%}"
    if node not in NAMES:
        reason = f"reads text in more than one way: the logits of {node} differ by {size:.0%}"
    raise UsageError(flag, name, reason, REMEDY)


@torch.inference_mode()
def _difference(
    flag: str, name: str, model: PreTrainedModel, attempt: int
) -> tuple[float, str] | None:
    """The largest difference that is no rounding, relative to the logits' spread, and its node's
    name; None if there is none."""
    vocab, positions = model.config.get_text_config().vocab_size, readable(model.config, TEXT)
    if positions < TEXT + len(PARENTS) + 1:
        raise UsageError(flag, name, f"reads {positions} positions only", REMEDY)
    tokens = [(7 + 101 * attempt + 35 * i + i * i) % vocab for i in range(TEXT + len(PARENTS) + 1)]
    text, tree, after = tokens[:TEXT], tokens[TEXT:-1], tokens[-1]
    path = [tree[node] for node in PATH]
    with _small_windows(model):
        try:
            engine = Engine(model, TEXT + len(tokens))
            engine.extend(text)
            nodes = engine.forward(tree, PARENTS)
            engine.commit(PATH)
            found = torch.cat([nodes, engine.forward([after], [-1])]).float()
            by_one = _read_on(model, [[*text, path[0]], path[1:2]])
            at_once = _read(model, [[*text, *path, after], [*text, tree[0], tree[2], 0, 0]])
        except torch.OutOfMemoryError:
            raise
        except UsageError as error:
            raise UsageError(flag, name, error.reason, error.remedy) from error
        except Exception as error:  # a model's own code may raise anything
            reason = f"cannot read a tree ({described(error)})"
            raise UsageError(flag, name, reason, REMEDY) from error
    behind, other = at_once[0, TEXT:], at_once[1, TEXT:]
    expected = torch.stack([by_one[0], by_one[1], other[1], behind[2], behind[3]])
    noise = _relative(behind[: len(by_one)], by_one).max().item()
    if noise > UNSTEADY:
        return noise, "transformers' own passes, token by token and at once,"
    differences = _relative(found, expected)
    if differences.max() <= max(LEAST.get(model.dtype, HALF), NOISE * noise):
        return None
    node = int(differences.argmax())
    return float(differences[node]), NAMES[node]


def _read_on(model: PreTrainedModel, parts: list[list[int]]) -> torch.Tensor:
    """Logits [parts, V], float32, of the last token of each part of one text. transformers reads
    part after part with its own cache."""
    cache, logits = DynamicCache(config=model.config), []
    for tokens in parts:
        ids = torch.tensor([tokens], device=model.device)
        room = cache_arguments(type(model), cache)
        logits.append(model(input_ids=ids, use_cache=True, **room).logits[0, -1])
    return torch.stack(logits).float()


def _read(model: PreTrainedModel, texts: list[list[int]]) -> torch.Tensor:
    """Logits [texts, tokens, V], float32, of texts of equal length, each read in one pass."""
    ids = torch.tensor(texts, device=model.device)
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float()


def _relative(logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """How far each row [V] is from the expected one, relative to the expected row's spread."""
    expected = expected.to(logits.device)
    spread = (expected - expected.mean(-1, keepdim=True)).square().mean(-1)
    return ((logits - expected).square().mean(-1) / spread).sqrt().nan_to_num(torch.inf)


@contextmanager
def _small_windows(model: PreTrainedModel) -> Iterator[None]:
    """Inside, windows and chunks are so small that the test's text reaches past them."""
    config = model.config.get_text_config()
    before = {
        SIZES[kind]: size
        for kind, size in layer_kinds(config).items()
        if size is not None and kind in SIZES
    }
    try:
        for name, size in before.items():
            setattr(config, name, min(size, WINDOW))
        yield
    finally:
        for name, size in before.items():
            setattr(config, name, size)
