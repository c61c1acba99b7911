"""The audit log in the store: who did what, in the transaction that did it.

`Commits` gathers the acts of each commit (`store.audited` says which operations are acts) and has `append` write them
at its end. Whoever appends holds the row `audit_head` until the commit, so that two nodes never fork the chain. What
cannot be written is not done: the commit fails with its acts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from greenroom import errors
from greenroom.core.permissions import HOME
from greenroom.security import audit, audit_checks
from greenroom.security.audit import Checkpoint, Entry
from greenroom.store import database
from greenroom.store.acting import Actor
from greenroom.store.commits import Commits
from greenroom.store.database import Transaction
from greenroom.store.news import News

SEAL_MOST = 256  # entries of one checkpoint
ERASE_MOST = 1_000  # entries of one erasure
MAX_PAGE = 500
MAX_DETAIL = 16_000  # bytes of canonical JSON: an erasure names `ERASE_MOST` entries

Head = audit_checks.Head


class Act(msgspec.Struct, frozen=True):
    """What somebody has done, or was refused. *tenant* None: the actor's. *by* None: who is acting (`store.acting`).

    *is_routine*: what the node does of it by itself, all the time, is no act.
    """

    action: str
    object: str
    outcome: str = "done"
    detail: Mapping[str, Any] = {}
    tenant: str | None = None
    by: Actor | None = None
    is_routine: bool = False


class Erasure(msgspec.Struct, frozen=True):
    """Of what is personal in the entries that *actor* has made; of *tenant* only, if it is given."""

    actor: str
    tenant: str | None


class Cursor(msgspec.Struct, frozen=True):
    """How far an export has come: the last entry and the last checkpoint that *place* has."""

    place: str
    seq: int = 0
    checkpoint: int = 0


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries; None: all. *actions* that end in ``*`` stand for all that begin so. *since* in microseconds."""

    tenant: str | None = None
    actor: str | None = None
    action: str | None = None
    object: str | None = None
    since: int | None = None


class Broken(errors.AuditBroken):
    """What is stored of the audit log is not what was written, from *index* on."""

    def __init__(self, finding: audit_checks.Finding) -> None:
        super().__init__(
            f"cannot go on with the audit log: {finding.what}; find out who has written to the database, and see "
            "greenroom audit verify"
        )
        self.finding = finding


def _columns(row_type: type[msgspec.Struct]) -> str:
    return ", ".join(row_type.__struct_fields__)


def _insert(table: str, row_type: type[msgspec.Struct]) -> str:
    names = row_type.__struct_fields__
    return f"insert into {table} ({', '.join(names)}) values ({', '.join(f':{name}' for name in names)})"


_HEAD = f"select {_columns(Head)} from audit_head where id = 1"
_FIRST_HEAD = f"""
insert into audit_head (id, {_columns(Head)}) values (1, 0, '{audit.BEGIN}', 0, 0, '{audit.BEGIN}')
on conflict (id) do nothing"""
_LAST = "select max(seq) from audit_entry"
_APPEND = _insert("audit_entry", Entry)
_REACHED = "update audit_head set seq = :seq, hash = :hash where id = 1"
_UNSEALED = f"select {_columns(Entry)} from audit_entry where seq > :after and seq <= :last order by seq limit :most"
_CHECKPOINT = _insert("audit_checkpoint", Checkpoint)
_SEALED = """
update audit_head set sealed = :last, checkpoint = :number, checkpoint_hash = :hash where id = 1"""
_CURSOR = """
insert into audit_cursor (place, seq, checkpoint, updated_at) values (:place, :seq, :checkpoint, :now)
on conflict (place) do update set seq = :seq, checkpoint = :checkpoint, updated_at = :now"""
_CURSORS = f"select {_columns(Cursor)} from audit_cursor where place = :place"
_OF_ACTOR = f"""
select {_columns(Entry)} from audit_entry where actor = :actor and erased = '' and action <> '{audit.ERASE}'
    and (cast(:tenant as text) is null or tenant = :tenant) order by seq limit :most"""
_ERASE = """
update audit_entry set actor = null, source = null, object = null, detail = null, salts = :salts, erased = :erased
where seq = :seq"""
_PENDING = "select id, action, object, detail from audit_pending order by id"
_TAKEN = "delete from audit_pending where id = :id"
_AFTER = f"select {_columns(Entry)} from audit_entry where seq > :after order by seq limit :most"
_CHECKPOINTS = f"select {_columns(Checkpoint)} from audit_checkpoint where number > :after order by number limit :most"
_LIST = f"select {_columns(Entry)} from audit_entry where {{which}} order by seq {{order}} limit :limit"


async def append(tx: Transaction, news: News, acts: Sequence[tuple[Act, Actor | None]], *, node: str) -> None:
    """Chain *acts*, each with who was acting (None: *node* itself), to the log."""
    head = await _locked_head(tx)
    seq, prev, entries = head.seq, head.hash, []
    for act, acting in acts:
        actor = act.by or acting or Actor(node, HOME, "", "")
        seq += 1
        entry = audit.chained(
            Entry(
                seq,
                tx.now_us,
                audit.text(act.tenant or actor.tenant, 200),
                audit.text(actor.principal, 500),
                audit.text(actor.source, 200),
                act.action,
                audit.text(act.object, 500),
                act.outcome,
                audit.text(actor.request, 100),
                _detail(act.detail),
                audit.new_salts(),
                "",
                prev,
                "",
            )
        )
        entries.append(entry)
        prev = entry.hash
    await tx.execute_many(_APPEND, [msgspec.structs.asdict(entry) for entry in entries])
    await tx.execute_many(_REACHED, [{"seq": seq, "hash": prev}])
    news.audited += len(entries)


def _detail(detail: Mapping[str, Any]) -> str:
    found = audit.canonical(audit.plain(detail)) if detail else b"{}"
    if len(found) > MAX_DETAIL:
        found = audit.canonical({"left_out": f"{len(found)} bytes"})
    return found.decode()


async def _locked_head(tx: Transaction) -> Head:
    """Return the chain's end; nobody else appends before this transaction has ended."""
    found = await tx.fetch(f"{_HEAD} for update", {})
    if not found:
        ((last,),) = await tx.fetch(_LAST, {})
        if last is not None:
            what = "the row that says where it ends is missing"
            raise Broken(audit_checks.Finding(int(last), audit_checks.Kind.UNCHAINED, what))
        await tx.execute_many(_FIRST_HEAD, [{}])
        found = await tx.fetch(f"{_HEAD} for update", {})
    head = audit.read(Head, found[0])
    if not audit_checks.is_hash(head.hash):
        what = "the row that says where it ends is not what was written"
        raise Broken(audit_checks.Finding(head.seq, audit_checks.Kind.UNCHAINED, what))
    return head


# --- operations


async def note(tx: Transaction, news: News, items: Sequence[Act]) -> list[None]:
    """Nothing: the act itself is all that there is to write, or it is done by somebody else once it is written."""
    return [None] * len(items)


async def take_pending(tx: Transaction, news: News, items: Sequence[None]) -> list[list[Act]]:
    """Take what commands without a node have left to be written."""
    rows = await tx.fetch(_PENDING, {})
    await tx.execute_many(_TAKEN, [{"id": row[0]} for row in rows])
    acts = [
        Act(action, object, detail=msgspec.json.decode(detail, type=dict[str, Any]))
        for _, action, object, detail in rows
    ]
    return [acts, *([] for _ in items[1:])]


async def seal(tx: Transaction, news: News, items: Sequence[audit.Signer]) -> list[bool | Broken]:
    """Sign what was appended since the last checkpoint, at most `SEAL_MOST` entries; True if there is more.

    What is not as it was written is not signed.
    """
    return [await _seal(tx, item) for item in items]


async def _seal(tx: Transaction, signer: audit.Signer) -> bool | Broken:
    try:
        head = await _locked_head(tx)
    except Broken as broken:
        return broken
    params = {"after": head.sealed, "last": head.seq, "most": SEAL_MOST}
    entries = [audit.read(Entry, row) for row in await tx.fetch(_UNSEALED, params)]
    if not entries and head.seq == head.sealed:
        return False
    before = await tx.fetch("select hash from audit_entry where seq = :seq", {"seq": head.sealed})
    prev = before[0][0] if before else audit.BEGIN
    finding = audit_checks.following(entries, seq=head.sealed, hash=prev)
    reached = (entries[-1].seq, entries[-1].hash) if entries else (head.sealed, prev)
    if finding is None and len(entries) < SEAL_MOST and reached != (head.seq, head.hash):
        what = f"the log ends at entry {reached[0]}, and the store knows {head.seq}: the end was cut off"
        finding = audit_checks.Finding(reached[0] + 1, audit_checks.Kind.TRUNCATED, what)
    if finding is not None:
        return Broken(finding)
    checkpoint = signer.checkpoint(entries, number=head.checkpoint + 1, previous=head.checkpoint_hash, now_us=tx.now_us)
    await tx.execute_many(_CHECKPOINT, [msgspec.structs.asdict(checkpoint)])
    params = {"last": checkpoint.last, "number": checkpoint.number}
    await tx.execute_many(_SEALED, [params | {"hash": checkpoint.hash}])
    return checkpoint.last < head.seq


async def erase(tx: Transaction, news: News, items: Sequence[Erasure]) -> list[list[int]]:
    """Erase what is personal in an actor's entries, at most `ERASE_MOST`; answers which."""
    answers = []
    for item in items:
        params = msgspec.structs.asdict(item) | {"most": ERASE_MOST}
        found = [audit.read(Entry, row) for row in await tx.fetch(_OF_ACTOR, params)]
        gone = [audit.erased(entry) for entry in found]
        rows = [{"seq": entry.seq, "salts": entry.salts, "erased": entry.erased} for entry in gone]
        await tx.execute_many(_ERASE, rows)
        answers.append([entry.seq for entry in gone])
    return answers


async def advance(tx: Transaction, news: News, items: Sequence[Cursor]) -> list[None]:
    await tx.execute_many(_CURSOR, [msgspec.structs.asdict(item) | {"now": tx.now_us} for item in items])
    return [None] * len(items)


ORDER = (note, take_pending, erase, seal, advance)


class Audit:
    """*is_on*: without it nothing is written; what there is can be read all the same."""

    def __init__(self, db: database.Database, commits: Commits) -> None:
        self._db, self._commits = db, commits

    @property
    def is_on(self) -> bool:
        return self._commits.is_auditing

    @is_on.setter
    def is_on(self, value: bool) -> None:
        self._commits.is_auditing = value

    async def note(self, *acts: Act) -> None:
        """Write acts that are no write to the store; raises, and nothing is written, where that cannot be."""
        if self.is_on:
            answers = await self._commits.write_all(note, acts)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer

    async def take_pending(self) -> None:
        if self.is_on:
            await self._commits.write(take_pending, None)

    async def seal(self, signer: audit.Signer) -> bool:
        """Sign what is new; True if there is more. Raises `Broken` where the log is not what was written."""
        is_more: bool = await self._commits.write(seal, signer)
        return is_more

    async def erase(self, actor: str, *, tenant: str | None) -> list[int]:
        """Erase what is personal in entries of *actor*, and return their numbers; call again while there are any."""
        seqs: list[int] = await self._commits.write(erase, Erasure(actor, tenant))
        return seqs

    async def advance(self, cursor: Cursor) -> None:
        await self._commits.write(advance, cursor)

    async def cursor(self, place: str) -> Cursor:
        rows = await self._db.lookup(_CURSORS, {"place": place})
        return audit.read(Cursor, rows[0]) if rows else Cursor(place)

    async def head(self) -> Head:
        rows = await self._db.lookup(_HEAD, {})
        return audit.read(Head, rows[0]) if rows else Head()

    async def after(self, seq: int, *, most: int = MAX_PAGE) -> Sequence[Entry]:
        """Return the entries behind *seq*, oldest first."""
        return [audit.read(Entry, row) for row in await self._db.read(_AFTER, {"after": seq, "most": most})]

    async def checkpoints(self, *, after: int = 0, most: int = MAX_PAGE) -> Sequence[Checkpoint]:
        """Return the checkpoints behind number *after*, oldest first."""
        return [
            audit.read(Checkpoint, row) for row in await self._db.read(_CHECKPOINTS, {"after": after, "most": most})
        ]

    async def list(
        self, which: Filter, *, before: int | None = None, after: int | None = None, limit: int = 50
    ) -> Sequence[Entry]:
        """Return entries, newest first; behind *after*, oldest first."""
        conditions, params = list(_conditions(which)), {"limit": min(limit, MAX_PAGE)} | _params(which)
        if after is not None:
            conditions.append("seq > :after")
            params["after"] = after
        elif before is not None:
            conditions.append("seq < :before")
            params["before"] = before
        order = "desc" if after is None else "asc"
        sql = _LIST.format(which=" and ".join(conditions) or "seq > 0", order=order)
        return [audit.read(Entry, row) for row in await self._db.read(sql, params)]


def _conditions(which: Filter) -> Iterable[str]:
    for name in ("tenant", "actor", "object"):
        if getattr(which, name) is not None:
            yield f"{name} = :{name}"
    if which.action is not None:
        is_pattern = which.action.endswith("*")
        yield "substr(action, 1, length(cast(:action as text))) = :action" if is_pattern else "action = :action"
    if which.since is not None:
        yield "time >= :since"


def _params(which: Filter) -> dict[str, Any]:
    params = {name: value for name, value in msgspec.structs.asdict(which).items() if value is not None}
    if which.action is not None:
        params["action"] = which.action.removesuffix("*")
    return params
