"""What to do about an exception of agent code whose reason is Greenroom's own doing: a replica has fewer files and
variables than the folder and the shell that its author tried the code in.

Called where such exceptions are told: by `engine.factories` for imports and factories, by `engine.running` for tasks.
The replica's side: standard library only.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Protocol

from greenroom.engine import failures

CLOSED = "the agent's room is closed"
_REFUSED = "[Errno 13]"
_MAX_CAUSES = 10
_READ_A_VARIABLE = type(os.environ).__getitem__.__code__
_VARIABLE = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
_SPEAKS_OF_VARIABLES = re.compile(r"(?i)\b(?:environ\w*|env|export)\b")
_SAYS_MISSING = re.compile(r"(?i)\b(?:set|unset|missing|required|provided?)\b")
_USUAL = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_URL", "_ENDPOINT")  # of variables that agents need


class Surroundings(Protocol):
    """What a replica has of the world; `replica.Config` is one."""

    @property
    def snapshot(self) -> str: ...
    @property
    def env(self) -> tuple[str, ...]:
        """The variables of the node that it may see."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """The variables that a replica gets by reference."""

    @property
    def is_closed(self) -> bool:
        """Whether it runs in a room."""


def remedy(error: BaseException, where: Surroundings) -> str | None:
    """Return what would have spared the agent *error*, or a cause of it that it names; None for all that is its own.

    Safe with exceptions whose attributes raise.
    """
    try:
        for each in _with_causes(error):
            found = _missing_file(each, where) or _closed(each, where) or _missing_variable(each, where)
            if found is not None:
                return found
    except Exception:  # noqa: BLE001 - agent code
        return None
    return None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if following is None:
            return
        yield following
        if isinstance(following, BaseExceptionGroup) and len(following.exceptions) == 1:
            following = following.exceptions[0]
        else:
            following = following.__cause__


def _missing_file(error: BaseException, where: Surroundings) -> str | None:
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    path, snapshot = os.path.realpath(os.fsdecode(error.filename)), os.path.realpath(where.snapshot)
    if not path.startswith(snapshot + os.sep):
        return None
    name = PurePath(path).relative_to(snapshot)
    if name.suffix == ".log" or any(part.startswith(".") for part in name.parts):
        return "hidden files and *.log are never part of an agent's snapshot: give the file another name"
    return (
        "the agent's snapshot holds *.py and what `include` names: if the agent reads this file, add"
        f' "{name}" to `include` in the manifest'
    )


def _closed(error: BaseException, where: Surroundings) -> str | None:
    if not where.is_closed:
        return None
    # In namespaces all that may not be written is read-only.
    is_file = isinstance(error, OSError) and error.errno == errno.EROFS
    is_refused = is_file or isinstance(error, PermissionError)
    filename = error.filename if isinstance(error, OSError) else None
    if is_file or (is_refused and isinstance(filename, str | bytes | os.PathLike)):
        to = f" to {failures.bounded(os.fsdecode(filename), 500)}" if filename is not None else ""
        return (
            f"{CLOSED}{to}: if the agent needs it, name its folder in `read_paths` or "
            "`write_paths` in the manifest; for temporary files there is the folder that TMPDIR names"
        )
    if not is_refused and _REFUSED not in failures.message_of(error):
        return None  # libraries that connect tell no more than its text
    return (
        f"{CLOSED}: if the agent needs this, name the destination of a connection in `egress` in the manifest; other "
        "sockets than those of TCP, ports of its own and calls that concern other processes are not to be had"
    )


def _missing_variable(error: BaseException, where: Surroundings) -> str | None:
    for name in sorted(_variables_of(error, where), key=lambda name: name not in where.env):
        if name in os.environ or name.startswith("GREENROOM_"):
            continue
        if name in where.env:
            return f"{name} is in the agent's `env`, and the node does not have it: set it where the node is started"
        if name in where.secrets:
            return (
                f"{name} is one of the agent's `secrets`, which replicas have, and imports not: read it in the factory"
            )
        return f'the agent sees only the variables that its `env` names: add "{name}" to `env` in the manifest'
    return None


def _variables_of(error: BaseException, where: Surroundings) -> list[str]:
    """Return the names in *error* that were meant as variables."""
    if isinstance(error, KeyError) and _raised_by_environ(error):
        return [str(error.args[0])]
    text = failures.message_of(error)
    names = _VARIABLE.findall(text)
    if _SPEAKS_OF_VARIABLES.search(text):
        return names
    says_missing = _SAYS_MISSING.search(text) is not None
    return [name for name in names if name in where.env or (says_missing and name.endswith(_USUAL))]


def _raised_by_environ(error: BaseException) -> bool:
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_code is _READ_A_VARIABLE
