"""The token ids of a prompt: a text, ids, a tensor or an array, a tokenizer's output, or a chat for
the target's chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from transformers import PreTrainedTokenizerBase

from dynasurge.errors import UsageError

# str, ids in a list, tensor or array of one or two dimensions, or what a tokenizer returns
Prompt = Any
ONE = "give one prompt at a time"


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase | None, vocab: int, prompt: Prompt, *, rendered: bool = False
) -> list[int]:
    """The tokens of one prompt, each in 0 ... vocab - 1. rendered: whether a text is a rendered
    chat, to which nothing is added. Raises UsageError for something that is no prompt, for more
    than one, and for other ids."""
    given = prompt
    if isinstance(prompt, list | tuple) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str):
        assert tokenizer is not None, "text needs a tokenizer"
        if not prompt.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise UsageError(
                "prompt", repr(prompt)[:60], "holds half a surrogate pair", "correct the text"
            )
        prompt = tokenizer(prompt, add_special_tokens=not rendered).input_ids
        start = tokenizer.bos_token_id
        if start is not None and list(prompt[:2]) == [start, start]:
            prompt = prompt[1:]  # the text was rendered by a chat template, which begins it, too
    # the tokenizers library returns an Encoding, transformers a mapping
    ids = (
        _of_mapping(prompt)
        if isinstance(prompt, Mapping)
        else _flat(getattr(prompt, "ids", prompt))
    )
    if not ids:
        raise UsageError(
            "prompt", repr(given)[:60], "shorter than one token", "give at least one word"
        )
    for token in ids:
        if not 0 <= token < vocab:
            raise UsageError(
                "prompt",
                f"token {token}",
                f"the model knows ids 0 to {vocab - 1}",
                "correct the prompt",
            )
    return ids


def is_chat(prompt: Prompt) -> bool:
    """Whether a prompt is a list of messages, or one message."""
    if isinstance(prompt, Mapping):
        return "role" in prompt
    return isinstance(prompt, list | tuple) and bool(prompt) and isinstance(prompt[0], Mapping)


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, target: str, prompt: Prompt, limit: int | None
) -> list[int]:
    """The tokens of a chat, up to where the answer begins.

    prompt: messages, each with `role` and `content`, or a text, which is the user's only message. A
    last message of the assistant's is continued. limit: a longer chat loses the end of its last
    message's text. Raises UsageError, also if the target's tokenizer has no chat template.
    """
    one = {"role": "user", "content": prompt} if isinstance(prompt, str) else prompt
    messages: list[Any] = [one] if isinstance(one, Mapping) else [*one]
    for message in messages:
        parts = message if isinstance(message, Mapping) else {}
        if not all(isinstance(parts.get(name), str) for name in ("role", "content")):
            reason, remedy = "needs a role and a content, both text", "correct that message"
            raise UsageError("prompt", str(message)[:60], reason, remedy)
    if not tokenizer.chat_template:
        reason = f"the tokenizer of {target} has no chat template"
        raise UsageError("--chat", True, reason, "leave out --chat, or use an instruct model")

    def render(content: str) -> list[int]:
        chat = [*messages[:-1], {**messages[-1], "content": content}]
        answers = chat[-1]["role"] != "assistant"
        try:
            text = tokenizer.apply_chat_template(
                chat,
                tokenize=False,
                add_generation_prompt=answers,
                continue_final_message=not answers,
            )
        except Exception as error:  # a template may raise anything
            reason = f"the target's chat template refuses it ({str(error)[:120]})"
            raise UsageError("prompt", str(chat)[:60], reason, "correct the messages") from error
        return prompt_ids(tokenizer, len(tokenizer), str(text), rendered=True)

    content = str(messages[-1]["content"])
    ids, words = render(content), tokenizer(content, add_special_tokens=False).input_ids
    kept = len(words)
    while limit is not None and len(ids) > limit:
        kept -= len(ids) - limit
        if kept < 1:
            least = len(render(str(tokenizer.decode(words[:1]))))
            reason = f"leaves no room for the message {content[:30]!r}"
            raise UsageError("--prompt-len", limit, reason, f"use --prompt-len {least} or more")
        ids = render(str(tokenizer.decode(words[:kept])))
    return ids


def _of_mapping(prompt: Mapping[str, Any]) -> list[int]:
    """The ids of a tokenizer's output. Raises UsageError for padding, and for inputs besides
    text."""
    if "input_ids" not in prompt:
        raise UsageError(
            "prompt",
            f"with {', '.join(map(str, prompt))}",
            "has no input_ids",
            "give text or token ids",
        )
    for name, value in prompt.items():
        if name not in ("input_ids", "attention_mask", "token_type_ids") and value is not None:
            raise UsageError("prompt", f"with {name}", "trees continue text only", "leave it out")
    ids, mask = _flat(prompt["input_ids"]), prompt.get("attention_mask")
    if mask is not None and (
        len(seen := _flat(mask, "attention_mask")) != len(ids) or not all(seen)
    ):
        reason = "zeros in its attention_mask are not read"
        raise UsageError("prompt", "with padding", reason, f"{ONE}, unpadded")
    return ids


def _flat(prompt: Prompt, field: str = "prompt") -> list[int]:
    """A list of ints from numbers in one or two dimensions. Raises UsageError if they are no token
    ids of one text."""
    values = _plain(prompt)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise UsageError(
            field,
            type(prompt).__name__,
            "is neither text nor token ids",
            "give a text or a list of ids",
        )
    values = [_plain(value) for value in values]
    if values and isinstance(values[0], list | tuple | str | Mapping):
        if isinstance(values[0], Mapping):
            remedy = "add chat=True (--chat), for the target's chat template"
            raise UsageError(
                field, f"of {len(values)} messages", "a chat is not a text yet", remedy
            )
        if len(values) > 1 or isinstance(values[0], str):
            raise UsageError(field, f"of {len(values)} texts", "a tree continues one text", ONE)
        values = [_plain(value) for value in values[0]]
    for value in values:
        whole = isinstance(value, Integral) or (field != "prompt" and value in (0.0, 1.0))
        if not whole or (isinstance(value, bool) and field == "prompt"):
            raise UsageError(
                field, f"with {str(value)[:40]!r}", "is no token id", "give whole numbers"
            )
    return [int(value) for value in values]


def _plain(value: Any) -> Any:
    """Tensors and arrays as lists and numbers."""
    return value.tolist() if hasattr(value, "tolist") else value
