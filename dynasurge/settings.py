"""Settings: one frozen dataclass for the command line, the notebooks and papermill's parameters.

Every `Settings` object is valid: construction checks every field, and a wrong one raises
`UsageError` with the flag, the value and the remedy. Checks that need files, models or data are
made where those load.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dynasurge.errors import UsageError, at_least, flag_of, meant
from dynasurge.generation_config import LAW, LAW_FIELDS, complete, law_text, read_config

Mode = Literal["auto", "sTree", "dTree"]
Etv = Literal["traversal", "reserved", "bfs"]
Policy = Literal["sampled", "topk", "hybrid"]
Values = Literal["learned", "fixed", "own"]
MODES: tuple[str, ...] = get_args(Mode)
POLICIES: tuple[str, ...] = get_args(Policy)
VALUES: tuple[str, ...] = get_args(Values)
ETVS: tuple[str, ...] = get_args(Etv)
DTYPES = ("auto", "float32", "bfloat16", "float16")
BASELINES = (  # other systems' trees, see experiments/baselines.py
    "chain3",
    "chain5",
    "chain8",
    "Sequoia",
    "EAGLE-2",
    "OPT-Tree",
    "DySpec",
    "prototype",
)
VERSION = "0.2.0"  # the package's version; also in pyproject.toml
DEMO = "demo"
PHASES = ("draft", "target", "verify", "other")  # of a step's time
# the demo models at the cost of large ones (models/widened.py)
WIDE = ("demo-1b", "demo-7b", "demo-13b")
AUTO_NODES, AUTO_DEPTH = 128, 16
STUDY_PROMPT, STUDY_ROWS = 128, 384  # prompt_len and M of the study, and of the command


WHOLE = ("M", "max_depth", "max_children", "seed", "prompt_len", "new_tokens", "top_k")
FIELDS: dict[
    str, tuple[tuple[type, ...], tuple[str, ...]]
] = {  # what a value is: its types, and the fields
    "a whole number": ((int,), WHOLE),
    "a number": ((int, float), ("T", "P", "min_p", "repetition_penalty")),
    "a text": ((str,), ("draft", "target", "growmap", "priors", "method")),
}
OPTIONAL = (
    "M",
    "prompt_len",
    "max_depth",
    "growmap",
    "priors",
    "method",
    *LAW,
)  # may be None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to decode. Field names are the command's flags; `dynasurge --help` explains them.

    prompt_len: prompts given as text are cut to so many tokens; None reads them whole. M: cache
    rows; None takes as many as prompt, new tokens and tree need. None is the default of both here,
    but not of the command. T, P, top_k, min_p, repetition_penalty: the target's law; what is None
    is as its generation config says (see `under`). generation_config: a config that replaces the
    target's own: a file, a mapping or JSON text; it is kept as text. chat: whether prompts are
    messages for the target's chat template. method: a name for tables (experiments/baselines.py);
    None: `label` makes one.
    """

    draft: str = DEMO
    target: str = DEMO
    T: float | None = None
    P: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    generation_config: str | None = None
    chat: bool = False
    M: int | None = None
    mode: Mode = "dTree"
    growmap: str | None = None
    B: int | Literal["auto"] = "auto"
    fill: bool = False
    policy: Policy = "sampled"
    values: Values = "learned"
    priors: str | None = None
    lookup: bool = True
    use_bfs: bool = False
    etv: Etv = "traversal"
    max_depth: int | None = None
    max_children: int = 8
    seed: int = 0
    prompt_len: int | None = None
    new_tokens: int = 128
    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    compile: bool = False
    method: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for kind, (types, names) in FIELDS.items():
            for name in names:
                _typed(name, getattr(self, name), kind, types)
        _one_of("--mode", self.mode, MODES)
        _one_of("--dtype", self.dtype, DTYPES)
        _one_of("--policy", self.policy, POLICIES)
        _one_of("--values", self.values, VALUES)
        _one_of("--etv", self.etv, ETVS)
        self._check_law()
        for name, example in (
            ("M", 384),
            ("max_children", 8),
            ("prompt_len", 128),
            ("new_tokens", 128),
        ):
            if (value := getattr(self, name)) is not None:
                at_least(name, value, 1, example)
        if self.B != "auto":
            if not isinstance(self.B, int) or isinstance(self.B, bool):
                raise UsageError("--B", self.B, "neither a whole number nor auto", "try --B 8")
            at_least("B", self.B, 1, 8)
            if self.B > 4096:
                raise UsageError(
                    "--B", self.B, "no step pays for more than 4096 nodes", "try --B 64"
                )
        elif self.fill:
            raise UsageError(
                "--fill", True, "there is no budget to fill with --B auto", "name one, as in --B 64"
            )
        if self.priors is not None and self.values == "own":
            raise UsageError(
                "--priors",
                self.priors,
                "--values own uses no priors",
                "leave one of the two out",
            )
        if self.max_depth is not None:
            at_least("max_depth", self.max_depth, 1, 4)
        if not 0 <= self.seed < 2**63:
            raise UsageError("--seed", self.seed, "outside 0 .. 2^63-1", "use --seed 0")
        if self.mode == "sTree" and self.growmap is None:
            raise UsageError(
                "--growmap", None, "sTree needs a tree shape", "try --growmap growmaps/4x8-tree.pt"
            )
        if self.mode == "auto" and self.growmap is not None:
            raise UsageError(
                "--growmap",
                self.growmap,
                "auto mode drafts no tree",
                "leave it out, or use --mode sTree",
            )
        if self.mode == "auto" and self.use_bfs:
            raise UsageError(
                "--use_bfs", True, "auto mode verifies no tree", "leave it out, or use --mode dTree"
            )
        if self.etv != "traversal" and not self.use_bfs:
            raise UsageError("--etv", self.etv, "ETV is off", "add --use_bfs")
        if self.etv == "reserved" and self.T:
            if self.mode == "dTree":
                reason = "needs child counts that are fixed before drawing; a dynamic tree has none"
                raise UsageError("--etv", self.etv, reason, "use --mode sTree, or --etv traversal")
            if self.policy != "sampled":
                raise UsageError(
                    "--etv", self.etv, "needs sampled children", "use --policy sampled"
                )

    def _check_law(self) -> None:
        if self.T is not None:
            least = "a temperature is 0 (greedy) or more"
            _finite("--T", self.T, self.T >= 0, least, "try --T 0.6")
            _finite(
                "--T",
                self.T,
                self.T == 0 or self.T > 1e-30,
                "is too small to divide by",
                "use --T 0 for greedy text",
            )
            object.__setattr__(self, "T", self.T + 0.0)  # -0 becomes 0, so that both have one hash
        if self.P is not None:
            remedy = "use --P 1.0 to keep every token"
            _finite("--P", self.P, 0 < self.P <= 1, "top-p lies in (0, 1]", remedy)
        if self.top_k is not None:
            at_least("top_k", self.top_k, 0, 0)
        if self.min_p is not None:
            remedy = "use --min-p 0 for none"
            _finite("--min-p", self.min_p, 0 <= self.min_p <= 1, "min-p lies in [0, 1]", remedy)
        if (factor := self.repetition_penalty) is not None:
            remedy = "use --repetition-penalty 1 for none"
            _finite("--repetition-penalty", factor, factor > 1e-30, "is a positive factor", remedy)
        object.__setattr__(self, "generation_config", read_config(self.generation_config))

    def under(self, own: Mapping[str, Any]) -> Settings:
        """These settings with a whole law. own: the target's generation config, without entries
        that are None (`Pair.generation_config`).

        It says what these settings leave open; T and P together leave nothing open. Raises
        UsageError for what trees cannot do (generation_config.py).
        """
        law = {name: getattr(self, name) for name in LAW}
        return dataclasses.replace(self, **complete(law, self.generation_config, own))

    @property
    def law(self) -> str:
        """The target's law in words, if it is whole."""
        return law_text({name: getattr(self, name) for name in LAW_FIELDS})

    @property
    def label(self) -> str:
        """A short name for tables and figures: mode, tree and rule. Settings that differ in other
        fields may share it."""
        own = {"sTree": f" {growmap_name(self.growmap or '')}", "dTree": f" B={self.B}"}
        label = self.method or self.mode + own.get(self.mode, "")
        if self.use_bfs:
            label += (
                " +ETV"
                if self.etv == "traversal"
                else f" +{self.etv}{'' if self.lossless else ' (lossy)'}"
            )
        return label

    @property
    def arguments(self) -> str:
        """The keyword arguments of `generate` that make these settings: mode, and what differs from
        the defaults."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        default = {field.name: field.default for field in dataclasses.fields(self)}
        if self.T is not None and self.P is not None:  # then no config says anything else
            default |= {name: LAW[name][2] for name in LAW if name not in ("T", "P")}
        differ = [name for name, value in own.items() if value not in (default[name], None)]
        return ", ".join(f"{name}={own[name]!r}" for name in dict.fromkeys(["mode", *differ]))

    @property
    def rule(self) -> str:
        """The verification rule: a name in `verification.rules.RULES`, or `bfs`."""
        return self.etv if self.use_bfs else "topdown"

    @property
    def lossless(self) -> bool:
        """Whether the text has the target's own distribution: true for all rules except the
        prototype's."""
        return self.rule != "bfs"

    @property
    def pays(self) -> bool:
        """Whether trees depend on the cost of passes here, and so need a latency curve."""
        return self.mode == "dTree" and not self.fill

    @property
    def budget(self) -> int:
        """The most nodes of a dynamic tree; `auto` is what fits in M, and at most AUTO_NODES."""
        if self.B != "auto":
            return self.B
        left = AUTO_NODES if self.M is None else self.M - (self.prompt_len or 0) - self.new_tokens
        return max(1, min(AUTO_NODES, left))

    @property
    def depth_bound(self) -> int:
        """The most levels of a dynamic tree without a growmap."""
        return self.max_depth if self.max_depth is not None else AUTO_DEPTH

    def check_room(self, prompt: int, tree_nodes: int) -> None:
        """Raise UsageError unless a prompt of so many tokens, the new tokens and a tree fit in M
        cache rows.

        tree_nodes: the drafted nodes of the largest tree; its root is one of the generated tokens.
        """
        need = prompt + self.new_tokens + tree_nodes
        if self.M is not None and need > self.M:
            raise UsageError(
                "--M",
                self.M,
                f"{prompt} prompt + {self.new_tokens} new tokens + a tree of {tree_nodes} need {need} rows",
                f"use --M {need}, or smaller --prompt-len, --new-tokens or tree",
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as plain JSON types."""
        return dataclasses.asdict(self)

    def hash(self) -> str:
        """Twelve hex digits that name these settings."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Settings with these fields. Raises UsageError for an unknown one, also by its name in
    transformers."""
    known = {field.name for field in dataclasses.fields(Settings)}
    theirs = {entry: name for name, (entry, _, _) in LAW.items()} | {"max_new_tokens": "new_tokens"}
    for name, value in given.items():
        if name not in known:
            remedy = meant(theirs.get(name, name), known)
            raise UsageError(name, str(value)[:40], "is no field of Settings", remedy)
    return Settings(**given)


def pair_text(draft: str, target: str) -> str:
    """A pair in a caption. Widened demo models are the demo models' functions at a cost."""
    if not {draft, target} <= {DEMO, *WIDE}:
        return f"{draft} -> {target}"
    size = target.removeprefix("demo-").upper()
    cost = f" at the cost of LLaMA-{size}" if target in WIDE else ""
    return f"demo pair{cost}" + (", the draft as wide" if draft in WIDE else "")


def growmap_name(path: str) -> str:
    """A growmap's name in tables: `4x8` for growmaps/4x8-tree.pt."""
    return Path(path).stem.removesuffix("-tree")


def _typed(name: str, value: object, kind: str, types: tuple[type, ...]) -> None:
    """Raise UsageError unless a field's value has one of these types; True is no number."""
    if value is None and name in OPTIONAL:
        return
    if not isinstance(value, types) or isinstance(value, bool):
        raise UsageError(flag_of(name), repr(value), f"is not {kind}", f"give {kind}")


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(flag, value, "unknown", f"choose one of {', '.join(allowed)}")


def _finite(flag: str, value: float, ok: bool, reason: str, remedy: str) -> None:
    if not ok or value == float("inf"):  # NaN fails every comparison, so `ok` is False for it
        raise UsageError(flag, value, reason, remedy)
