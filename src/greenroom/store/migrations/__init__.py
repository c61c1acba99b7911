"""Migrations: numbered SQL files, applied in order, forward only (expand, then contract).

``NNNN_name.sql`` is shared text, ``NNNN_name.<dialect>.sql`` what only one database can say. Each runs in one
transaction with the row that records it. A store that is newer than this release is refused: old code must not write to
it.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    script: str


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


def _fill(script: str, dialect: str) -> str:
    for word, type_ in _TYPES[dialect].items():
        script = script.replace(f"{{{word}}}", type_)
    return script
