"""Settings as rows, for `config show`, the status and the diff of two settings.

Secrets have no place in settings; where the arguments of an agent hold one all the same, it is shown as
``***``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from greenroom.settings.problems import KeyPath, dotted
from greenroom.settings.schema import Settings

HIDDEN = "***"
# `api_key`, `OPENAI_KEY`, `access-token`, `accessKey`, `dbPassword`, but neither `max_tokens` nor `monkey`.
_SECRET = re.compile(r"(?i)(?:api|[_-]|^)_?-?key$|(?-i:[a-z]Key)$|token$|secret|passw|credential|^authorization$")
_ARGUMENTS_DEPTH = 3  # agents.NAME.arguments


class Row(NamedTuple):
    """One setting. *origin* is "default…", a file's or variable's name, "override" or "not yet built"."""

    path: str
    value: object
    origin: str


class Change(NamedTuple):
    """One setting that differs; None where the one side does not have it."""

    path: str
    old: object
    new: object


def rows(settings: Settings) -> list[Row]:
    """Every setting with where it came from, in the order of the schema."""
    return [
        Row(dotted(path), masked(path, value), settings.origins.get(dotted(path), "default"))
        for path, value in leaves(settings)
    ]


def diff(old: Settings, new: Settings) -> list[Change]:
    """What *new* says otherwise than *old*; secrets are compared, but not shown."""
    before, after = dict(leaves(old)), dict(leaves(new))
    return [
        Change(dotted(path), masked(path, before.get(path)), masked(path, after.get(path)))
        for path in before | after
        if before.get(path) != after.get(path)
    ]


def leaves(settings: Settings) -> Iterator[tuple[KeyPath, Any]]:
    """Every single value with its key path; each argument of an agent is one, whatever it holds."""
    for name in settings.__struct_fields__:
        if name != "origins":
            yield from _leaves(getattr(settings, name), (name,))


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    elif not isinstance(value, Mapping) or not value or len(path) > _ARGUMENTS_DEPTH:
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, (*path, name))


def masked(path: KeyPath, value: Any) -> Any:
    """*value* without what looks like a secret by its name, at any depth of an agent's arguments."""
    name = path[-1]
    is_argument = len(path) > _ARGUMENTS_DEPTH and path[2] == "arguments"
    if value is None or not is_argument:
        return value
    if isinstance(name, str) and _SECRET.search(name):
        return HIDDEN
    match value:
        case Mapping():
            return {key: masked((*path, key), inner) for key, inner in value.items()}
        case list():
            return [masked((*path, index), inner) for index, inner in enumerate(value)]
        case _:
            return value
