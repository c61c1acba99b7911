"""Where values come from: the manifest's file, the environment variables, and which overrides which.

Called by `loading`. It knows the shape of names, but not which keys exist inside a section.

A variable is ``GREENROOM_ENVIRONMENT``, ``GREENROOM_<SECTION>__<KEY>`` or
``GREENROOM_AGENTS__<NAME>__<KEY>``, a key of a nested table after another ``__``: the key path in upper case,
with ``-`` in an agent's name written as ``_``. Its value is read as TOML (``5``, ``true``, ``["A", "B"]``)
and, where it is not TOML, as text. Variables change agents but cannot make one. `NO_SETTINGS` are read
elsewhere, and what Kubernetes makes of a service named greenroom is nobody's; any other ``GREENROOM_…`` is a
mistake, for a setting that is misspelt would be one that silently does nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from greenroom.core.spelling import nearest, suggestion
from greenroom.settings.checking import Checker, default_of, fields_of
from greenroom.settings.problems import KeyPath, Problem, SettingsInvalid
from greenroom.settings.schema import AgentSettings, Alerts, Backups, Cluster, History, Optimizer, Security, Server

PREFIX = "GREENROOM_"
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "cluster": Cluster,
    "server": Server,
    "security": Security,
    "backups": Backups,
    "optimizer": Optimizer,
    "history": History,
    "alerts": Alerts,
}
_OF_CLIENTS = ("URL", "KEY", "CA", "CLIENT_CERT", "CLIENT_KEY", "DATA_DIR", "DEBUG", "DEMO_MODEL")
NO_SETTINGS = frozenset({*_OF_CLIENTS, "NODE", "REPLICA"})  # the last two mark the processes of replicas
_OF_TESTS = "TEST_"
_OF_KUBERNETES = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_KUBERNETES_PORT = re.compile(r"(?:tcp|udp|sctp)://")
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
    return read_toml(path, kind="a manifest", missing="`greenroom init` writes one")


def read_toml(path: Path, *, kind: str, missing: str) -> dict[str, Any]:
    """The tables of a file that is *kind*; *missing* is what to do where there is none. Raises `SettingsInvalid`."""

    def refused(why: str) -> SettingsInvalid:
        return SettingsInvalid([Problem(path.name or str(path), why)])

    try:
        with path.open("rb") as file:
            content = file.read(MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise refused(f"cannot read {path}: there is no such file; {missing}") from None
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
        raise refused(f"is not {kind}: its values are nested too deeply") from None


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
    """One source for each variable that is a setting, by name; one that is nobody's is reported."""
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
            if not _is_of_others(name, environ[variable]):
                checker.report((variable,), f"unknown variable; {_instead_of(name, by_stem)}")
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
        meant = _spellings(name, by_stem).get(_joined(name))
        instead = f'did you mean "{meant}"?' if meant else suggestion(rest.partition("__")[0].lower(), known)
        checker.report((variable,), f"the manifest has no agent of this name; {instead}")
        return None
    if len(by_stem[stem]) > 1:
        checker.report((variable,), f"may mean each of the agents {', '.join(sorted(by_stem[stem]))}")
        return None
    keys = rest.removeprefix(stem + "__").lower().split("__", maxsplit=1)
    return ["agents", by_stem[stem][0], *keys]


def _is_of_others(name: str, value: str) -> bool:
    if name in NO_SETTINGS or name.startswith(_OF_TESTS) or _OF_KUBERNETES.fullmatch(name):
        return True
    return name.endswith("PORT") and _KUBERNETES_PORT.match(value) is not None


def _instead_of(name: str, by_stem: Mapping[str, list[str]]) -> str:
    """What was probably meant by *name*: nearly always one underscore too few."""
    section = name.rstrip("_").lower()
    if section in SECTIONS or section == "agents":
        return f'did you mean "{PREFIX}{section.upper()}__…"?'
    spellings = _spellings(name, by_stem)
    joined = _joined(name)
    meant = joined if joined in spellings else None
    meant = meant or next((known for known in spellings if known.endswith(f"_{joined}")), None)
    meant = meant or nearest(joined, spellings)
    if meant is not None:
        return f'did you mean "{spellings[meant]}"?'
    return f"settings are {PREFIX}ENVIRONMENT, {PREFIX}<SECTION>__<KEY> and {PREFIX}AGENTS__<NAME>__<KEY>"


def _spellings(name: str, by_stem: Mapping[str, list[str]]) -> dict[str, str]:
    """Every variable that may have been meant, by what `_joined` makes of it; of the agents those that *name* names."""
    known = [["ENVIRONMENT"], *([other] for other in _OF_CLIENTS)]
    known += [[section, *path] for section, kind in SECTIONS.items() for path in _key_paths(kind)]
    within = f"_{_joined(name)}_"
    named = [stem for stem in by_stem if f"_{_joined(stem)}_" in within]
    known += [["agents", stem, *path] for stem in named for path in _key_paths(AgentSettings)]
    written = ("__".join(parts).upper() for parts in known)
    return {_joined(spelling): f"{PREFIX}{spelling}" for spelling in written}


def _key_paths(kind: type[msgspec.Struct]) -> Iterator[tuple[str, ...]]:
    for field in fields_of(kind):
        default = default_of(field)
        if isinstance(default, msgspec.Struct):
            yield from ((field.name, *path) for path in _key_paths(type(default)))
        else:
            yield (field.name,)


def _joined(name: str) -> str:
    return re.sub("_+", "_", name)


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = table.pop("value")
    # More keys: the text had a line break. Dates: no setting is one, but a text may look like one.
    return value if not table and isinstance(value, bool | int | float | str | list | dict) else text
