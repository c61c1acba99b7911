"""The same commands to a small model, to SQLite and to PostgreSQL: the same answers and the same visible state.

Some commands meet weather: nothing is stored, or all is and the answer is lost. Their caller cannot tell; the model
goes on from what is found, and a caller with a key asks again.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from greenroom import errors
from greenroom.core import fairness
from greenroom.store import database
from greenroom.store.rows import Accepted, Call, Claim, Event, Finish, Lease, StoredEvent, Task
from greenroom.store.tenants import Tenants
from greenroom.testing import databases
from greenroom.testing.fakes import Fault, FaultyDatabase
from greenroom.testing.simulation import table as tables
from greenroom.testing.store_contract import TENANT, Node, new_task

AGENTS, SESSIONS, OWNERS = ("a", "b"), ("s", "t"), ("node-1", "node-2")
Queue = tuple[str, bool]
# The clock stands still between two commands, and its advances add up to the very instants that are waited for.
_INDEX = st.integers(0, 3)
_NEW = st.fixed_dictionaries(
    {
        "agent": st.sampled_from(("a", "a", "a", "b")),
        "session": st.sampled_from((None, "s", "s", "t")),
        "priority": st.integers(-1, 1),
        "delay_s": st.sampled_from((None, None, None, 7)),
        "timeout_s": st.sampled_from((None, None, 8)),
        "max_attempts": st.integers(1, 3),
        "on_loss": st.sampled_from(("retry", "retry", "fail")),
        "key": st.sampled_from((None, None, "k1", "k2")),
        "body": st.sampled_from((b'"x"', b'"y"')),
    }
)
_ENDS = st.sampled_from(
    (
        "succeeded",
        "succeeded",
        "failed",
        "expired",
        "queued",
        "queued later",
        "queued free",
        "queued kill",
        "queued restore",
    )
)


def _command(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


_submit = _command("submit", _NEW)
_QUEUE = st.sampled_from([("a", False)] * 5 + [("b", False)] * 2 + [("a", True)])  # of an agent, or its suspects
_claim = _command("claim", _QUEUE, st.integers(1, 3))
_finish = _command("finish", _INDEX, _ENDS)
_cancel = _command("cancel", _INDEX)
_rescue = _command("rescue", st.sampled_from((None, *OWNERS)))
_renew = _command("renew", st.sampled_from(OWNERS))
_rivals = st.lists(st.one_of(_finish, _finish, _cancel, _rescue, _renew), min_size=2, max_size=4)
# Drawn by weight: `one_of` would draw each kind as often as every other.
_DRAWN = [
    *[_submit, _claim, _finish] * 6,
    _command("open", _QUEUE, st.integers(1, 3)),
    _command("open", _QUEUE, st.integers(1, 3)),
    _command("close", _QUEUE),
    _command("race", _rivals),
    _command("race", _rivals),
    _command("append", _INDEX),
    _command("call", _INDEX, _NEW),
    _command("resume", _INDEX),
    _cancel,
    _renew,
    _rescue,
    _command("tick"),
    _command("advance", st.sampled_from((1, 7, 16))),
    _command("become", st.sampled_from(OWNERS)),
    _command("forget", st.sampled_from(AGENTS), st.sampled_from(SESSIONS)),
]
_WEATHER = st.sampled_from((*[None] * 38, Fault.AT_COMMIT, Fault.AFTER_COMMIT))
COMMANDS = st.lists(
    st.tuples(_WEATHER, st.sampled_from(_DRAWN).flatmap(lambda command: command)), min_size=30, max_size=40
)


_PLAIN = {"agent": "a", "priority": 0, "max_attempts": 3, "on_loss": "retry", "body": b'"x"'}
A_LEASE_TO_ITS_LAST_INSTANT = [
    ("submit", dict.fromkeys(("session", "delay_s", "timeout_s", "key")) | _PLAIN),
    ("claim", ("a", False), 1),
    *[("advance", delay_s) for delay_s in (7, 7, 1)],
    *[("tick",)] * 10,
    ("rescue", None),
    ("advance", 1),
    ("rescue", None),
]  # fmt: skip
A_SUSPECT = [
    *[("submit", dict.fromkeys(("delay_s", "timeout_s", "key")) | {"session": "s"} | _PLAIN)] * 3,
    *[("claim", ("a", False), 1), ("finish", 0, "succeeded")] * 2,
    *[("claim", ("a", False), 1), ("finish", 0, "queued kill")] * 2,
    ("claim", ("a", False), 1),
    ("open", ("a", True), 1),
    ("finish", 0, "queued restore"),
    ("claim", ("a", True), 1),
    ("finish", 0, "succeeded"),
    ("submit", dict.fromkeys(("delay_s", "timeout_s", "key", "session")) | _PLAIN),
    *[("claim", ("a", False), 1), ("finish", 0, "queued kill")] * 2,
    ("rescue", "node-2"),
    ("tick",),
    ("rescue", "node-2"),
]
# Of the commands of one commit, in the order of `store.Store`.
_ORDER = ("finish", "cancel", "renew", "rescue")
_NO_COMMIT = ("advance", "become", "close")


@dataclass
class Trial:
    """One sequence, on the model and on one store."""

    scratch: databases.Scratch
    node: Node
    faulty: FaultyDatabase
    model: tables.Table = field(default_factory=tables.Table)
    ids: list[str] = field(default_factory=list)
    attempts: list[tuple[str, int]] = field(default_factory=list)
    lines: defaultdict[Queue, list[str]] = field(default_factory=lambda: defaultdict(list))  # on the board
    free: Counter[Queue] = field(default_factory=Counter)  # of their slots
    passing: Counter[Queue] = field(default_factory=Counter)  # slots that are on the board for one commit only
    seats: dict[tuple[str, int], tuple[Queue, str]] = field(default_factory=dict)  # attempts on these lines
    restored: set[tuple[str, int]] = field(default_factory=set)  # attempts that did not begin with the last state
    names: Iterator[int] = field(default_factory=itertools.count)
    shown: dict[str, tuple[Task, tuple[object, ...]]] = field(default_factory=dict)  # the rows, and what they show

    def __post_init__(self) -> None:
        self.start_us = database.microseconds(self.scratch.clock.now())

    async def run(self, commands: Sequence[tuple[Fault | None, tuple[Any, ...]]]) -> None:
        try:
            for weather, command in commands:
                if weather is None or command[0] in _NO_COMMIT:
                    await self._ask(command)
                else:
                    await self._ask_in(weather, command)
        finally:
            for queue in list(self.lines):
                self._leave_board(queue)
        assert await self._session_rows() == self.model.sessions
        self.shown.clear()
        assert await self._visible() == self.model.visible()

    async def _ask(self, command: tuple[Any, ...]) -> None:
        if (asked := self._begin(command)) is None:
            return
        before, (expected, answer) = len(self.node.claims), asked
        answered = await answer
        claimed = [] if command[0] in _NO_COMMIT else self._fill()
        assert answered == expected, command
        assert self._take(self.node.claims[before:]) == claimed, command
        assert await self._visible() == self.model.visible(), command

    async def _ask_in(self, weather: Fault, command: tuple[Any, ...]) -> None:
        """The caller cannot tell whether it was stored. It was, or nothing was; then the caller asks again."""
        before, claims = copy.deepcopy(self.model), len(self.node.claims)
        if (asked := self._begin(command)) is None:
            return
        self.faulty.faults = [weather]
        with pytest.raises(errors.StoreUnavailable):
            await asked[1]
        assert not self.faulty.faults
        self._fill()
        found = await self._visible()
        if weather is Fault.AT_COMMIT:
            self.model = before
        assert found == self.model.visible(), (weather, command)
        assert len(self.node.claims) == claims  # nobody runs what may not be stored
        if command[0] != "submit" or command[1]["key"] is not None:
            await self._ask(command)

    def _begin(self, command: tuple[Any, ...]) -> tuple[Any, Awaitable[Any]] | None:
        """Tell the model; return what it says, and what the store will say."""
        # A node counts turns in its memory: not those of tasks that never waited, and those of commits that failed.
        known = self.node.store.board.tenants
        self.model.turns = {agent: known.turns(agent, TENANT) for agent in AGENTS}
        name, *arguments = command
        if name in ("finish", "append", "call", "resume"):
            if not self.attempts:
                return None
            arguments[0] = self.attempts[-1 - arguments[0] % len(self.attempts)]
        elif name == "cancel":
            stored = [id for id in self.ids if id in self.model.rows]
            if not stored:
                return None
            arguments[0] = stored[-1 - arguments[0] % len(stored)]
        asked: tuple[Any, Awaitable[Any]] | None = getattr(self, f"_{name}")(*arguments)
        return asked

    def _fill(self) -> list[tuple[Any, ...]]:
        """The end of a commit: what is free on the board is filled from the queue."""
        slots, self.passing = self.free + self.passing, Counter()
        owner = self.node.store.claims.owner
        return [
            _shown(claim)
            for agent, is_alone in sorted(slots)
            for claim in self.model.claim(agent, slots[agent, is_alone], owner, is_alone=is_alone)
        ]

    def _take(self, claims: Sequence[Claim]) -> list[tuple[Any, ...]]:
        """Note who got which slot."""
        claims = sorted(claims, key=_queue_of)
        for claim in claims:
            attempt = claim.id, claim.epoch
            self.attempts.append(attempt)
            if claim.is_restored:
                self.restored.add(attempt)
            if claim.replica in self.lines[_queue_of(claim)]:
                self.seats[attempt] = _queue_of(claim), claim.replica
                self.free[_queue_of(claim)] -= 1
        return [
            (claim.id, claim.epoch, claim.attempts_charged, claim.state, claim.is_restored, claim.has_good_state)
            for claim in claims
        ]

    # --- each answers what the model says, and what will be the store's answer

    def _submit(self, new: dict[str, Any]) -> tuple[Any, Awaitable[Any]]:
        row, task = self._new(new, parent=None)
        expected = self.model.submit(row, timeout_s=new["timeout_s"])
        return expected, _answer(self.node.store.tasks.submit(task))

    def _claim(self, queue: Queue, slots: int) -> tuple[Any, Awaitable[Any]]:
        """For a replica that takes no more afterwards."""
        self.passing[queue] = slots
        return None, self._pass_by(queue, slots)

    async def _pass_by(self, queue: Queue, slots: int) -> None:
        replica = self._open_line(queue, slots)
        try:
            await self.node.flush()
        finally:
            self.node.store.board.close(replica)

    def _open(self, queue: Queue, slots: int) -> tuple[Any, Awaitable[Any]]:
        """From now on, every commit claims what there is room for."""
        self.lines[queue].append(self._open_line(queue, slots))
        self.free[queue] += slots
        return None, self.node.flush()

    def _open_line(self, queue: Queue, slots: int) -> str:
        (agent, is_alone), replica = queue, f"replica-{next(self.names)}"
        self.node.store.board.open(replica, agent=agent, revision=1, slots=slots, for_suspects=is_alone)
        return replica

    def _close(self, queue: Queue) -> tuple[Any, Awaitable[Any]]:
        self._leave_board(queue)
        return None, _nothing()

    def _leave_board(self, queue: Queue) -> None:
        for line in self.lines.pop(queue, ()):
            self.node.store.board.close(line)
        self.free[queue] = 0

    def _leave(self, attempt: tuple[str, int]) -> None:
        """Free the attempt's slot, as a dispatcher does before it writes the end."""
        queue, seat = self.seats.pop(attempt, (("", False), ""))
        if seat in self.lines[queue]:
            self.node.store.board.vacate(seat, TENANT)
            self.free[queue] += 1

    def _finish(self, attempt: tuple[str, int], end: str) -> tuple[Any, Awaitable[Any]]:
        state, _, how = end.partition(" ")
        output = b'"done"' if state == "succeeded" else None
        delay_s, refund = (7 if how == "later" else None), int(how == "free")
        kills, restores = int(how in ("kill", "restore")), how == "restore"
        is_restored = attempt in self.restored
        saves = f'"{attempt[0]}"'.encode()
        due_at = None if delay_s is None else self._instant_us(self.model.now + delay_s)
        error = "agent_error" if state == "failed" else None
        finish = Finish(
            *attempt,
            state,
            "ok",
            "r",
            refund=refund,
            kills=kills,
            restores=int(restores),
            due_at=due_at,
            output=output,
            error=None if error is None else msgspec.json.encode({"type": error}),
            session_state=saves,
            is_restored=is_restored,
        )
        self._leave(attempt)
        expected = self.model.finish(
            *attempt,
            state,
            output=output,
            error=error,
            delay_s=delay_s,
            refund=refund,
            kills=kills,
            restores=restores,
            saves=saves,
            is_restored=is_restored,
        )
        return expected, self.node.store.tasks.finish(finish)

    def _append(self, attempt: tuple[str, int]) -> tuple[Any, Awaitable[Any]]:
        return self.model.append(*attempt), self.node.store.tasks.append(Event(*attempt, "message", b"{}"))

    def _call(self, attempt: tuple[str, int], new: dict[str, Any]) -> tuple[Any, Awaitable[Any]]:
        row, task = self._new(new | {"timeout_s": None, "delay_s": None}, parent=attempt[0])
        expected = self.model.call(*attempt, row)
        return expected, _answer(self.node.store.tasks.call(Call(*attempt, task)))

    def _resume(self, attempt: tuple[str, int]) -> tuple[Any, Awaitable[Any]]:
        return self.model.resume(*attempt), self.node.store.tasks.resume(Lease(*attempt))

    def _cancel(self, id: str) -> tuple[Any, Awaitable[Any]]:
        expected = "done" if self.model.cancel(id) in tables.OPEN else "conflict"
        return expected, _outcome(self.node.store.tasks.cancel(id, tenant=TENANT))

    def _renew(self, owner: str) -> tuple[Any, Awaitable[Any]]:
        held = self.node.store.tasks.renew(owner, ttl_us=int(tables.LEASE_S * 1e6))
        return self.model.renew(owner), held

    def _rescue(self, not_owner: str | None) -> tuple[Any, Awaitable[Any]]:
        return self.model.rescue(not_owner=not_owner), self.node.store.tasks.rescue(not_owner=not_owner)

    def _race(self, commands: Sequence[tuple[Any, ...]]) -> tuple[Any, Awaitable[Any]] | None:
        """All at the same time: they go into one commit, which has an order of its own."""
        ordered = sorted(commands, key=lambda command: _ORDER.index(command[0]))
        asked = [asked for asked in map(self._begin, ordered) if asked is not None]
        if not asked:
            return None
        return [expected for expected, _ in asked], _all(answer for _, answer in asked)

    def _tick(self) -> tuple[Any, Awaitable[Any]]:
        self.model.tick()
        return None, _unsaid(self.node.store.tasks.tick())

    def _advance(self, delay_s: int) -> tuple[Any, Awaitable[Any]]:
        self.model.now += delay_s
        return None, self.scratch.advance(delay_s)

    def _become(self, owner: str) -> tuple[Any, Awaitable[Any]]:
        self.node.store.claims.owner = owner
        return None, _nothing()

    def _forget(self, agent: str, session: str) -> tuple[Any, Awaitable[Any]]:
        removal = self.node.store.sessions.remove(session, tenant=TENANT, agent=agent)
        return self.model.forget(agent, session), _outcome(removal)

    # --- reading and building

    def _new(self, new: dict[str, Any], *, parent: str | None) -> tuple[tables.Row, Any]:
        id = f"t{len(self.ids)}"
        self.ids.append(id)
        due_at = None if new["delay_s"] is None else self.model.now + new["delay_s"]
        row = tables.Row(
            id, new["agent"], new["session"], new["priority"], due_at, None, new["max_attempts"], new["on_loss"],
            parent, new["key"], new["body"],
        )  # fmt: skip
        task = new_task(
            id=id,
            agent=new["agent"],
            session=new["session"],
            priority=new["priority"],
            not_before=None if due_at is None else self._instant_us(due_at),
            timeout_us=None if new["timeout_s"] is None else int(new["timeout_s"] * 1e6),
            max_attempts=new["max_attempts"],
            on_replica_loss=new["on_loss"],
            retry_backoff_us=0,
            parent=parent,
            idempotency_key=new["key"],
            fingerprint=new["body"],
        )
        return row, task

    def _instant_us(self, at_s: float) -> int:
        return self.start_us + int(at_s * 1e6)

    async def _visible(self) -> list[tuple[object, ...]]:
        """Events are shown up to the last that their row knows of; where it is as it was, they are read at the end."""
        tasks, shown = self.node.store.tasks, {}
        for row in reversed(await tasks.list(tenant=TENANT, limit=200)):
            known, view = self.shown.get(row.id, (None, ()))
            if row != known:
                view = (
                    *(row.id, row.state, row.epoch, row.attempts_charged, row.kills, row.output),
                    row.error and msgspec.json.decode(row.error)["type"],
                    row.parent,
                    tuple(_told(await tasks.events(row, after=1))),
                )
            shown[row.id] = row, view
        self.shown = shown
        return [view for _, view in shown.values()]

    async def _session_rows(self) -> dict[tuple[str, str], tuple[bytes | None, int]]:
        rows = await self.node.store.db.lookup("select agent, id, state, tasks from session", {})
        return {(row[0], row[1]): (row[2], row[3]) for row in rows}


def _told(events: Sequence[StoredEvent]) -> Iterator[tuple[int, str]]:
    for number, event in enumerate(events, 2):  # the acceptance is number 1
        assert event.seq == number
        yield event.epoch, msgspec.json.decode(event.data)["state"] if event.type == "state" else event.type


def _shown(claim: tables.Claim) -> tuple[Any, ...]:
    return claim.id, claim.epoch, claim.charged, claim.state, claim.is_restored, claim.has_good


def _queue_of(claim: Claim) -> Queue:
    return claim.agent, claim.is_alone


async def _answer(accepting: Awaitable[Accepted | None]) -> tuple[str, bool, bool] | None:
    accepted = await accepting
    return None if accepted is None else (accepted.id, accepted.is_new, accepted.matches)


async def _outcome(action: Awaitable[None]) -> str:
    try:
        await action
    except (errors.NotFound, errors.Conflict) as error:
        return error.code
    return "done"


async def _all(answers: Iterable[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*answers)


async def _unsaid(action: Awaitable[Any]) -> None:
    await action


async def _nothing() -> None:
    pass


@pytest.fixture
async def trials(tmp_path: Path, postgres_server: databases.Server) -> AsyncIterator[tuple[databases.Scratch, ...]]:
    async with databases.sqlite(tmp_path) as sqlite, postgres_server.scratch() as postgres:
        yield sqlite, postgres


@pytest.mark.slow
@hypothesis.settings(max_examples=100, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.example(commands=[(None, command) for command in A_LEASE_TO_ITS_LAST_INSTANT])
@hypothesis.example(commands=[(None, command) for command in A_SUSPECT])
@hypothesis.example(commands=[(Fault.AFTER_COMMIT, command) for command in A_SUSPECT])
@hypothesis.given(commands=COMMANDS)
async def test_both_databases_do_what_the_model_does(
    trials: tuple[databases.Scratch, ...], commands: list[tuple[Fault | None, tuple[Any, ...]]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fairness, "LOWER_EVERY", 2)  # so that lower priorities have their turns in so few claims
        async with asyncio.TaskGroup() as both:  # the failure of one ends the other
            for scratch in trials:
                both.create_task(_try(scratch, commands))


async def _try(scratch: databases.Scratch, commands: list[tuple[Fault | None, tuple[Any, ...]]]) -> None:
    if not scratch.opened:
        await scratch.open(wrap=FaultyDatabase)
        await scratch.stop_clock()
    node, faulty = Node(scratch.opened[0]), scratch.opened[0].db
    assert isinstance(faulty, FaultyDatabase)
    node.store.claims.owner = "node-1"
    node.store.board.tenants = Tenants()  # whose turns it knows are those of the trial before
    for table in ("task", "task_event", "session"):
        await node.raw(f"delete from {table}")
    await scratch.advance(1)
    await Trial(scratch, node, faulty).run(commands)
