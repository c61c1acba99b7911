"""Migrations: numbered SQL files, applied in order, forward only (expand, then contract).

``NNNN_name.sql`` is shared text, ``NNNN_name.<dialect>.sql`` what only one database can say. Each runs in one
transaction with the row that records it. The first is number 2: what builds before the first release wrote, number 1,
is not carried on.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator

import msgspec

from greenroom import errors

_TYPES = {
    "sqlite": {
        "key": "integer primary key autoincrement",
        "bytes": "blob",
        "clustered": "without rowid",
    },
    "postgresql": {
        "key": "bigint generated always as identity primary key",
        "bytes": "bytea",
        "clustered": "",
    },
}


class Migration(msgspec.Struct, frozen=True):
    number: int
    name: str
    script: str


def missing(dialect: str, done: int) -> list[Migration]:
    """Return what a store with schema *done* (0: an empty one) has yet to see.

    Raises `errors.StoreOfAnotherRelease` for one of a newer release, which old code must not write to, or one too old.
    """
    known = list(scripts(dialect))
    if done > known[-1].number:
        raise errors.StoreOfAnotherRelease(
            f"cannot open the store: its schema {done} is newer than this release's {known[-1].number}; "
            "start the newer release again"
        )
    if 0 < done < known[0].number:
        raise errors.StoreOfAnotherRelease(
            "cannot open the store: it is of a build before the first release; give this node a new one, "
            "with --data-dir or --store"
        )
    return [migration for migration in known if migration.number > done]


def scripts(dialect: str) -> Iterator[Migration]:
    """Yield every migration of this release for *dialect* (``sqlite`` or ``postgresql``), oldest first."""
    folder = importlib.resources.files(__name__)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    for name in names:
        stem, _, rest = name.partition(".")
        if rest != "sql":
            continue
        shared = _fill((folder / name).read_text(), dialect)
        own = folder / f"{stem}.{dialect}.sql"
        yield Migration(int(stem[:4]), stem, shared + (own.read_text() if own.is_file() else ""))


_RENAMED = re.compile(r"alter table (\w+) rename to (\w+)", re.IGNORECASE)


def tables(dialect: str) -> list[str]:
    """Return the names of the tables that the migrations leave, of which a database may hold others."""
    found = _named("table", dialect)
    for before, after in _RENAMED.findall("".join(migration.script for migration in scripts(dialect))):
        found[found.index(before)] = after
    return list(dict.fromkeys(found))


def functions(dialect: str) -> list[str]:
    return _named("function", dialect)


def _named(kind: str, dialect: str) -> list[str]:
    made = re.compile(
        rf"(?:^|;)\s*create (?:or replace )?{kind} (?:if not exists )?(\w+)", re.MULTILINE | re.IGNORECASE
    )
    return [name for migration in scripts(dialect) for name in made.findall(migration.script)]


def _fill(script: str, dialect: str) -> str:
    for word, type_ in _TYPES[dialect].items():
        script = script.replace(f"{{{word}}}", type_)
    return script
