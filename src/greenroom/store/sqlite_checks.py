"""Whether a SQLite file is a whole store of ours. Reads only; asked by `sqlite` before it writes to a file.

SQLite itself sees that pages and indexes fit together and that what the schema demands holds. It does not see that a
value is of its column's type, and that the schema is still the one that was made. Nobody sees a bit that changes one
text into another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

import msgspec

from greenroom import settings
from greenroom.core import rollouts
from greenroom.store import migrations


class Damaged(Exception):
    """The file is damaged, or is not ours."""


class Connection(Protocol):
    def execute(self, statements: str, /) -> Any: ...

    def pragma(self, name: str, /) -> Any: ...


# What there is: each table's columns, and the names of all else. Not the text, which a comment may change.
SCHEMA = """
select s.name, coalesce(c.name || ' ' || c.type || ' ' || c."notnull" || ' ' || c.pk, s.type || ' on ' || s.tbl_name)
from sqlite_schema s left join pragma_table_info(s.name) c on s.type = 'table' where s.name not glob 'sqlite_*'
"""
# What SQLite lets be anything is what was declared: for the same statements PostgreSQL sees to that.
_MISTYPED = """
select s.name, group_concat('typeof(' || c.name || ') not in (''null'', ''' || case lower(c.type)
    when 'text' then 'text' when 'blob' then 'blob' when 'double precision' then 'real' else 'integer' end
    || ''')', ' or ')
from sqlite_schema s join pragma_table_info(s.name) c where s.type = 'table' and s.name not glob 'sqlite_*'
    and lower(c.type) in ('text', 'blob', 'double precision', 'integer', 'bigint', 'boolean') group by s.name
"""


def look_at(
    connection: Connection, schema_of: Callable[[int], AbstractSet[tuple[str, str]]], *, application_id: int
) -> None:
    """Raise `Damaged` for what can be seen at a glance, however large the file is.

    Raises `errors.StoreOfAnotherRelease` where that is all that is wrong.
    """
    has_tables = bool(_one(connection, "select count(*) from sqlite_schema"))
    if has_tables and connection.pragma("application_id") != application_id:
        raise Damaged("it is not a store of Greenroom")
    number = connection.pragma("user_version")
    migrations.missing("sqlite", number)
    if not number:
        if has_tables:
            raise Damaged("it has tables, and no number of its schema")
        return
    try:
        found = set(connection.execute(SCHEMA))
    except UnicodeDecodeError as error:
        raise Damaged(f"its schema is damaged: {error}") from None
    for name, part in sorted(schema_of(number) - found):
        raise Damaged(f"its schema is damaged: {name} has no {part}")
    names = {name for name, _ in found}
    for table, column, decode in _VALUES:
        if table in names:
            rows = connection.execute(f"select {column} from {table}")
            _look_at_values(rows, f"the {column} of a row of {table}", decode=decode)
    for table in sorted(_NEEDED & names):
        _look_at_texts(connection.execute(f"select * from {table}"), table)


# No node starts, or watches over its agents, without having read all of them.
_NEEDED = {"agent", "revision", "rollout", "principal", "failure", "alert", "advice"}
_spec = msgspec.json.Decoder(settings.AgentSettings).decode
_VALUES: tuple[tuple[str, str, Callable[[bytes], object]], ...] = (
    ("agent", "spec", _spec),
    ("revision", "spec", _spec),
    ("rollout", "record", msgspec.json.Decoder(rollouts.Rollout).decode),
    ("rollout", "spec", _spec),
    ("rollout", "from_spec", _spec),
)


def _look_at_values(rows: Iterable[tuple[bytes]], what: str, *, decode: Callable[[bytes], object]) -> None:
    try:
        for (value,) in rows:
            decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as error:
        raise Damaged(f"{what} is damaged: {error}") from None


def _look_at_texts(rows: Iterable[tuple[Any, ...]], table: str) -> None:
    try:
        for _ in rows:
            pass
    except UnicodeDecodeError as error:
        raise Damaged(f"a text of {table} is damaged: {error}") from None


def look_through(connection: Connection) -> None:
    """Raise `Damaged` for what can be seen by reading the whole file: 9 s of a million tasks."""
    found = str(_one(connection, "pragma integrity_check(1)"))
    if found != "ok":
        raise Damaged(" ".join(found.split()))
    for table, conditions in connection.execute(_MISTYPED).fetchall():
        if _one(connection, f"select exists (select 1 from {table} not indexed where {conditions})"):
            raise Damaged(f"a value of {table} is damaged: it is not of its column's type")


def _one(connection: Connection, query: str) -> Any:
    return connection.execute(query).get
