"""`dynasurge audit`: is a verification rule, a drawing or a step lossless?

    dynasurge audit traversal
    dynasurge audit my_module:my_rule

`my_module` is a Python file in this folder, or an installed module. What its function gets and
returns, verification/audit.py says. The exit code is 1 if a difference was found.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynasurge.cli.flags import Parser
from dynasurge.errors import UsageError, described
from dynasurge.verification.audit import SHAPES, audit


def audit_command(arguments: Sequence[str]) -> int:
    """Audit, print the report; returns the exit code. Raises UsageError."""
    parser = Parser(prog="dynasurge audit", description=__doc__)
    parser.add_argument("what", metavar="RULE", help="a rule's name, or MODULE:FUNCTION")
    policy = "how the trees of a rule are drawn: sampled, topk or hybrid (default: sampled)"
    parser.add_argument("--policy", default="sampled", help=policy)
    shapes = (
        f"static shapes of a rule's trees (default: {' '.join(SHAPES)}, and a fork below the root)"
    )
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE", help=shapes)
    args = parser.parse_args(arguments)
    what = _found(args.what)
    try:
        report = audit(what, policy=args.policy, shapes=args.shapes)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # the reader's own code may raise anything
        raise UsageError("RULE", args.what, f"stopped with {_said(error)}", "correct it") from error
    print(report)
    return 0 if report.lossless else 1


def _found(name: str) -> Any:
    """The rule of a name, or the function at MODULE:FUNCTION. Raises UsageError."""
    module, colon, function = name.partition(":")
    if not colon:
        return name
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        home = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # the module's own code may raise anything
        reason = f"cannot be imported ({_said(error)})"
        raise UsageError("RULE", name, reason, "check the module") from error
    if not callable(getattr(home, function, None)):
        functions = [key for key, value in vars(home).items() if callable(value) and key[0] != "_"]
        remedy = f"it has {', '.join(functions[:8])}" if functions else "it has no functions"
        raise UsageError("RULE", name, f"{module} has no function {function!r}", remedy)
    return getattr(home, function)


def _said(error: BaseException) -> str:
    """An error and the line that raised it, in one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{described(error)}, {Path(frame.filename).name} line {frame.lineno}"
