"""Settings as rows, for `config show`, the status and the diff of two settings.

Secrets have no place in settings; where the arguments of an agent hold one all the same, it is shown as
``***``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from greenroom import redaction
from greenroom.settings.problems import KeyPath, dotted
from greenroom.settings.schema import AgentSettings, Settings

HIDDEN = redaction.MASK
_ARGUMENTS_DEPTH = 3  # agents.NAME.arguments


class Row(NamedTuple):
    """One setting. *origin* is "default…", a file's or variable's name or "override"."""

    path: str
    value: object
    origin: str


class Change(NamedTuple):
    """One setting that differs; None where the one side does not have it. A secret is ``***`` on both."""

    key: str
    before: object
    after: object


def rows(settings: Settings) -> list[Row]:
    """Every setting with where it came from, in the order of the schema."""
    return [
        Row(dotted(path), masked(path, value), settings.origins.get(dotted(path), "default"))
        for path, value in leaves(settings)
    ]


def diff(old: Settings, new: Settings) -> list[Change]:
    """What *new* says otherwise than *old*; secrets are compared, but not shown."""
    return [Change(dotted(path), *values) for path, *values in differences(leaves(old), leaves(new))]


def differences(
    before: Iterable[tuple[KeyPath, Any]], after: Iterable[tuple[KeyPath, Any]]
) -> Iterator[tuple[KeyPath, Any, Any]]:
    """The leaves that differ, as JSON has it (1 is neither true nor 1.0), with their masked values."""
    old, new = _told(before), _told(after)
    for path in old | new:
        if _as_json(path, old) != _as_json(path, new):
            yield path, masked(path, old.get(path)), masked(path, new.get(path))


def _told(given: Iterable[tuple[KeyPath, Any]]) -> dict[KeyPath, Any]:
    # An empty table says nothing, unless it is what an argument is.
    return {path: value for path, value in given if value != {} or len(path) > _ARGUMENTS_DEPTH}


def _as_json(path: KeyPath, told: Mapping[KeyPath, Any]) -> bytes | None:
    return msgspec.json.encode(told[path], order="sorted") if path in told else None


def leaves(settings: Settings) -> Iterator[tuple[KeyPath, Any]]:
    """Every single value with its key path; each argument of an agent is one, whatever it holds."""
    for name in settings.__struct_fields__:
        if name != "origins":
            yield from _leaves(getattr(settings, name), (name,))


def leaves_of_agent(name: str, agent: AgentSettings) -> Iterator[tuple[KeyPath, Any]]:
    """Those of one agent, with the key paths that they have in the settings."""
    yield from _leaves(agent, ("agents", name))


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    elif not isinstance(value, Mapping) or not value or len(path) > _ARGUMENTS_DEPTH:
        yield path, value
        return
    for name, inner in value.items():
        yield from _leaves(inner, (*path, name))


def masked(path: KeyPath, value: Any) -> Any:
    """*value* without what looks like a secret: by its form, and in an agent's arguments by its name, at any depth."""
    name = path[-1]
    is_argument = len(path) > _ARGUMENTS_DEPTH and path[2] == "arguments"
    if not is_argument:
        return redaction.value(value)
    if value is None:
        return value
    if isinstance(name, str) and redaction.is_secret_name(name):
        return HIDDEN
    match value:
        case Mapping():
            return {key: masked((*path, key), inner) for key, inner in value.items()}
        case list():
            return [masked((*path, index), inner) for index, inner in enumerate(value)]
        case _:
            return redaction.value(value)
