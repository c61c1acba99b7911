"""Where values come from: the manifest's file, the environment variables, and which overrides which.

Called by `loading`. It knows the shape of names, but not which keys exist inside a section.

A variable is ``GREENROOM_ENVIRONMENT``, ``GREENROOM_<SECTION>__<KEY>`` or
``GREENROOM_AGENTS__<NAME>__<KEY>``, a key of a nested table after another ``__``: the key path in upper case,
with ``-`` in an agent's name written as ``_``. Its value is read as TOML (``5``, ``true``, ``["A", "B"]``)
and, where it is not TOML, as text. Variables change agents but cannot make one. All other ``GREENROOM_…``
names (``GREENROOM_URL``, ``GREENROOM_KEY``, ``GREENROOM_DATA_DIR``, and what Kubernetes makes of a service
named greenroom) belong to others and are left alone, unless they look like a setting.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from greenroom.settings.checking import Checker
from greenroom.settings.problems import KeyPath, Problem, SettingsInvalid, nearest, suggestion
from greenroom.settings.schema import Cluster, Security, Server

PREFIX = "GREENROOM_"
SECTIONS = {"cluster": Cluster, "server": Server, "security": Security}
MANIFEST_BYTES = 1024 * 1024
DEEPEST_TABLE = 3  # agents.NAME.arguments: what lies deeper is replaced, not merged


class Source(NamedTuple):
    """Some tables, and what to call the place they came from."""

    origin: str
    table: Mapping[str, Any]


class Given(NamedTuple):
    """What all sources give together; *origins* is by key path, as deep as `DEEPEST_TABLE`."""

    table: dict[str, Any]
    origins: dict[KeyPath, str]

    def origin(self, path: KeyPath) -> str | None:
        """Where the value at *path*, or what it is a part of, came from; None: nobody gave it."""
        prefixes = (path[:length] for length in range(len(path), 0, -1))
        return next((self.origins[prefix] for prefix in prefixes if prefix in self.origins), None)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest's tables. Raises `SettingsInvalid` alone: with a broken file all else would be noise."""

    def refused(why: str) -> SettingsInvalid:
        return SettingsInvalid([Problem(path.name or str(path), why)])

    try:
        with path.open("rb") as file:
            content = file.read(MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise refused(f"cannot read {path}: there is no such file; `greenroom init` writes one") from None
    except OSError as error:
        raise refused(f"cannot read {path}: {error.strerror}") from None
    except ValueError:  # a NUL in it
        raise refused("is not a path") from None
    if len(content) > MANIFEST_BYTES:
        raise refused(f"is larger than {MANIFEST_BYTES} bytes")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise refused(f"is not UTF-8: byte {error.start}") from None
    except ValueError as error:  # TOMLDecodeError, which names line and column, and numbers of over 4,300 digits
        raise refused(f"is not TOML: {error}") from None
    except RecursionError:
        raise refused("is not a manifest: its values are nested too deeply") from None


def overlay(sources: Iterable[Source]) -> Given:
    """All *sources* as one, later ones winning key by key. A null takes nothing away: it is as if absent."""
    given = Given({}, {})
    for source in sources:
        _lay(source.table, source.origin, onto=given.table, path=(), origins=given.origins)
    return given


def _lay(
    table: Mapping[str, Any], origin: str, *, onto: dict[str, Any], path: KeyPath, origins: dict[KeyPath, str]
) -> None:
    is_arguments = len(path) == DEEPEST_TABLE and path[-1] == "arguments"  # there a null is a value
    for name, value in table.items():
        key = str(name)
        if value is None and not is_arguments:
            continue
        if isinstance(value, Mapping) and len(path) < DEEPEST_TABLE:
            inner = onto.get(key)
            onto[key] = dict(inner) if isinstance(inner, Mapping) else {}
            _lay(value, origin, onto=onto[key], path=(*path, key), origins=origins)
        else:
            onto[key] = value
            origins[(*path, key)] = origin


def from_variables(environ: Mapping[str, str], agents: Iterable[str], checker: Checker) -> Iterator[Source]:
    """One source for each variable that is a setting, by name; the others are left alone."""
    by_stem: dict[str, list[str]] = {}
    for agent in agents:
        by_stem.setdefault(agent.upper().replace("-", "_"), []).append(agent)
    for variable in sorted(environ):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX)
        if name == "ENVIRONMENT":
            yield Source(variable, {"environment": environ[variable]})
        elif "__" not in name:
            _refuse_a_near_miss(variable, name, checker)
        elif keys := _keys(variable, name, by_stem, checker=checker):
            table: Any = _value(environ[variable])
            for key in reversed(keys):
                table = {key: table}
            yield Source(variable, table)


def _keys(variable: str, name: str, by_stem: dict[str, list[str]], *, checker: Checker) -> list[str] | None:
    section, _, rest = name.partition("__")
    if section.lower() in SECTIONS:
        return [section.lower(), rest.lower()]
    if section != "AGENTS":
        options = [f"{PREFIX}{known.upper()}__…" for known in (*SECTIONS, "agents")]
        checker.report((variable,), f"unknown section; {suggestion(f'{PREFIX}{section}__', options)}")
        return None
    # The longest that fits: "a" and "a__b" may both be agents.
    stem = max((stem for stem in by_stem if rest.startswith(stem + "__")), key=len, default=None)
    if stem is None:
        known = [name for names in by_stem.values() for name in names]
        wanted = rest.partition("__")[0].lower()
        checker.report((variable,), f"the manifest has no agent of this name; {suggestion(wanted, known)}")
        return None
    if len(by_stem[stem]) > 1:
        checker.report((variable,), f"may mean each of the agents {', '.join(sorted(by_stem[stem]))}")
        return None
    keys = rest.removeprefix(stem + "__").lower().split("__", maxsplit=1)
    return ["agents", by_stem[stem][0], *keys]


def _refuse_a_near_miss(variable: str, name: str, checker: Checker) -> None:
    if nearest(name, ["ENVIRONMENT"]):
        checker.report((variable,), f'unknown variable; did you mean "{PREFIX}ENVIRONMENT"?')
        return
    section, _, key = name.partition("_")
    kind = SECTIONS.get(section.lower())
    if kind is not None and key.lower() in kind.__struct_fields__:
        checker.report((variable,), f'unknown variable; did you mean "{PREFIX}{section}__{key}"?')


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = table.pop("value")
    # More keys: the text had a line break. Dates: no setting is one, but a text may look like one.
    return value if not table and isinstance(value, bool | int | float | str | list | dict) else text
