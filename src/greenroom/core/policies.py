"""Policies: roles beside the built-in ones, as a document says them. Pure: `settings` reads the file.

[roles.researcher]
description = "The research team"
extends = "viewer"
grants = ["task:* on agent:research-*", "session:delete on agent:research-*"]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from greenroom.core import permissions, spelling
from greenroom.core.permissions import MAX_GRANTS, ROLES, Grant, Roles

Problem = tuple[tuple[str | int, ...], str]  # where, and what is wrong

MAX_ROLES = 100
MAX_TEXT = 300  # characters of a grant
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}\Z")
_KEYS = ("description", "extends", "grants")


def read(document: Mapping[str, Any]) -> tuple[Roles, list[Problem]]:
    """Return all roles, the built-in ones among them, and every mistake; with one, the roles are not to be used."""
    problems: list[Problem] = [
        ((key,), f"unknown key; {spelling.suggestion(key, ['roles'])}") for key in document if key != "roles"
    ]
    tables = document.get("roles", {})
    if not isinstance(tables, Mapping):
        return ROLES, [*problems, (("roles",), "expected a table")]
    if len(tables) > MAX_ROLES:
        return ROLES, [*problems, (("roles",), f"expected at most {MAX_ROLES} roles, got {len(tables)}")]
    own: dict[str, list[Grant]] = {}
    bases: dict[str, list[str]] = {}
    for name, table in tables.items():
        problems += _name_problems(name)
        if not isinstance(table, Mapping):
            problems.append((("roles", name), "expected a table with extends or grants"))
            continue
        problems += [
            (("roles", name, key), f"unknown key; {spelling.suggestion(key, _KEYS)}")
            for key in table
            if key not in _KEYS
        ]
        own[name], bases[name] = _grants(name, table, problems), _extends(name, table, tables, problems=problems)
        if "grants" not in table and "extends" not in table:
            problems.append((("roles", name), "grants nothing; give it extends or grants"))
        if not isinstance(table.get("description", ""), str):
            problems.append((("roles", name, "description"), "expected text"))
    problems += _circles(bases)
    if problems:
        return ROLES, problems
    found = dict(ROLES) | {name: tuple(dict.fromkeys(_all_grants(name, own, bases))) for name in own}
    problems = [
        (("roles", name), f"has {len(grants)} grants together with what it extends, and at most {MAX_GRANTS} may be")
        for name, grants in found.items()
        if len(grants) > MAX_GRANTS
    ]
    return found, problems


def _name_problems(name: str) -> Iterator[Problem]:
    if name in ROLES:
        yield ("roles", name), f"is built in and cannot be another; call yours something else, and extends {name!r}"
    elif _NAME.match(name) is None:
        yield ("roles", name), "expected a name of at most 63 of a-z, 0-9, _ and -, beginning with a letter"


def _grants(name: str, table: Mapping[str, Any], problems: list[Problem]) -> list[Grant]:
    given = table.get("grants", [])
    if not isinstance(given, list) or len(given) > MAX_GRANTS:
        problems.append((("roles", name, "grants"), f"expected a list of at most {MAX_GRANTS} grants"))
        return []
    found = []
    for place, text in enumerate(given):
        where = ("roles", name, "grants", place)
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
            problems.append((where, 'expected text: an action, or "ACTION on agent:NAME"'))
            continue
        try:
            found.append(permissions.parse(text))
        except ValueError as error:
            problems.append((where, str(error)))
    return found


def _extends(name: str, table: Mapping[str, Any], tables: Mapping[str, Any], *, problems: list[Problem]) -> list[str]:
    given = table.get("extends", [])
    bases = [given] if isinstance(given, str) else given
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases) or len(bases) > MAX_ROLES:
        problems.append((("roles", name, "extends"), "expected the name of a role, or a list of them"))
        return []
    known = {*ROLES, *tables}
    for base in bases:
        if base not in known:
            why = f"there is no role {base[:60]!r}; {spelling.suggestion(base[:100], known)}"
            problems.append((("roles", name, "extends"), why))
    return [base for base in bases if base in known]


def _circles(bases: Mapping[str, list[str]]) -> Iterator[Problem]:
    """Yield each role that extends itself, however far around."""
    for name in bases:
        seen: set[str] = set()
        beneath = list(bases[name])
        while beneath:
            base = beneath.pop()
            if base not in seen:
                seen.add(base)
                beneath += bases.get(base, ())
        if name in seen:
            yield ("roles", name, "extends"), "goes around in a circle: it extends itself"


def _all_grants(name: str, own: Mapping[str, list[Grant]], bases: Mapping[str, list[str]]) -> Iterator[Grant]:
    seen: set[str] = set()
    pending = [name]
    while pending:
        role = pending.pop()
        if role in seen:
            continue
        seen.add(role)
        yield from ROLES.get(role, ()) if role in ROLES else own[role]
        pending += bases.get(role, ())


def unmatched(roles: Roles, agents: Mapping[str, Any]) -> Iterator[tuple[str, Grant]]:
    """Yield the roles and grants that name an agent which is none of *agents*: perhaps one that is yet to come."""
    for role, grants in roles.items():
        for grant in grants:
            resource = grant.resource
            if resource != permissions.EVERYTHING and not any(
                permissions.matches(resource, permissions.AGENT + name) for name in agents
            ):
                yield role, grant
