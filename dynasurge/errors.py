"""The one exception that users are meant to see.

Every mistake that a user can make (a flag, a file, two models that do not fit) raises `UsageError`.
Its text is one line: what was given, its value, and what to do. The command line prints that line
and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection


class UsageError(ValueError):
    """A mistake that the user can fix: `field` had `value`, which is wrong for `reason`; `remedy`
    says what to do."""

    def __init__(self, field: str, value: object, reason: str, remedy: str) -> None:
        self.field, self.value, self.reason, self.remedy = field, value, reason, remedy
        super().__init__(" ".join(f"{field} {value}: {reason}; {remedy}".split()))


def flag_of(name: str) -> str:
    """The flag of a settings field."""
    return "--" + name.replace("_", "-")


def meant(name: str, known: Collection[str], otherwise: str = "leave it out") -> str:
    """The remedy for an unknown name: the known one that is most like it, or `otherwise`."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else otherwise


def described(error: BaseException) -> str:
    """The kind of an error that foreign code raised, and the start of what it says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(": ")


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def at_least(name: str, value: int, least: int, example: int) -> None:
    """Raise UsageError if a settings field is below `least`. `example` is a value that is right."""
    if value < least:
        raise UsageError(
            flag_of(name), value, f"must be at least {least}", f"try {flag_of(name)} {example}"
        )
