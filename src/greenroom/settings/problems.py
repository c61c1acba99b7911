"""What is wrong in some settings: problems with key paths, and the one error that carries them all.

The whole package reports through these; the command and the API show them as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import NamedTuple

from greenroom import errors

KeyPath = tuple[str | int, ...]

SHOWN_PROBLEMS = 50
SHOWN_CHARACTERS = 60
_BARE_KEY = re.compile(r"[A-Za-z0-9_*-]{1,100}")


class Problem(NamedTuple):
    """One mistake: *path* is a key path (`agents.research.timeout_s`), a variable's name or the manifest's
    name.
    """

    path: str
    message: str


class SettingsInvalid(errors.SettingsInvalid):
    """The manifest, a variable or an override is wrong; ``problems`` is never empty."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(_rendered(self.problems))


def _rendered(problems: tuple[Problem, ...]) -> str:
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    lines = [f"cannot use these settings: {count}"]
    lines += [f"  {problem.path}: {problem.message}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    return "\n".join(lines)


def dotted(path: KeyPath) -> str:
    """The path as TOML writes it: `agents.research.env[1]`, odd keys in quotes."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _BARE_KEY.fullmatch(part) else quoted(part))
    return text


def quoted(text: str) -> str:
    """*text* on one line, cut, printable, and without what follows an ``=``.

    People write ``env = ["OPENAI_API_KEY=sk-…"]`` by mistake; the message must not repeat the secret.
    """
    name, assigned, _ = text.partition("=")
    cut = name[:SHOWN_CHARACTERS]
    printable = cut.encode("utf-8", "backslashreplace").decode()
    more = "=…" if assigned else "…" if len(name) > SHOWN_CHARACTERS else ""
    return json.dumps(printable + more, ensure_ascii=False)


def shown(value: object) -> str:
    """*value* in an error message: short, whatever its size, depth or type."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return quoted(value)
        case int() if value.bit_length() > 64:  # Python refuses to print numbers of over 4,300 digits
            return f"a number of {value.bit_length()} bits"
        case int() | float():
            return str(value)
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"
