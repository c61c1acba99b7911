"""The same commands to a small model, to SQLite and to PostgreSQL: the same answers and the same visible state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from greenroom import errors
from greenroom.store import database
from greenroom.store.rows import Accepted, Call, Event, Finish, Lease, StoredEvent
from greenroom.testing import databases
from greenroom.testing.store_contract import TENANT, Node, new_task
from store import model as models

AGENTS, SESSIONS, OWNERS = ("a", "b"), ("s", "t"), ("node-1", "node-2")
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
_ENDS = st.sampled_from(("succeeded", "succeeded", "failed", "expired", "queued", "queued later", "queued free"))


def _command(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


_submit = _command("submit", _NEW)
_claim = _command("claim", st.sampled_from(("a", "a", "a", "b")), st.integers(1, 3))
_finish = _command("finish", _INDEX, _ENDS)
# Drawn by weight: `one_of` would draw each kind as often as every other.
_DRAWN = [
    *[_submit, _claim, _finish] * 6,
    _command("append", _INDEX),
    _command("call", _INDEX, _NEW),
    _command("resume", _INDEX),
    _command("cancel", _INDEX),
    _command("renew", st.sampled_from(OWNERS)),
    _command("rescue", st.sampled_from((None, *OWNERS))),
    _command("tick"),
    _command("advance", st.sampled_from((1, 7, 16))),
    _command("become", st.sampled_from(OWNERS)),
    _command("forget", st.sampled_from(AGENTS), st.sampled_from(SESSIONS)),
]
COMMANDS = st.lists(st.sampled_from(_DRAWN).flatmap(lambda command: command), min_size=30, max_size=40)


A_LEASE_TO_ITS_LAST_INSTANT = [
    ("submit", dict.fromkeys(("session", "delay_s", "timeout_s", "key"))
    | {"agent": "a", "priority": 0, "max_attempts": 3, "on_loss": "retry", "body": b'"x"'}),
    ("claim", "a", 1),
    *[("advance", delay_s) for delay_s in (7, 7, 1)],
    *[("tick",)] * 10,
    ("rescue", None),
    ("advance", 1),
    ("rescue", None),
]  # fmt: skip


@dataclass
class Trial:
    """One sequence, on the model and on one store."""

    scratch: databases.Scratch
    node: Node
    model: models.Model = field(default_factory=models.Model)
    ids: list[str] = field(default_factory=list)
    attempts: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start_us = database.microseconds(self.scratch.clock.now())

    async def run(self, commands: Sequence[tuple[Any, ...]]) -> None:
        for name, *arguments in commands:
            if name in ("finish", "append", "call", "resume"):
                if not self.attempts:
                    continue
                arguments[0] = self.attempts[-1 - arguments[0] % len(self.attempts)]
            elif name == "cancel":
                if not self.ids:
                    continue
                arguments[0] = self.ids[-1 - arguments[0] % len(self.ids)]
            expected, answered = await getattr(self, f"_{name}")(*arguments)
            assert answered == expected, (name, arguments)
            assert await self._visible() == self.model.visible(), (name, arguments)
        assert await self._session_rows() == self.model.sessions

    # --- each answers what the model says and what the store says

    async def _submit(self, new: dict[str, Any]) -> tuple[Any, Any]:
        row, task = self._new(new, parent=None)
        return self.model.submit(row, timeout_s=new["timeout_s"]), _answer(await self.node.store.tasks.submit(task))

    async def _claim(self, agent: str, slots: int) -> tuple[Any, Any]:
        claims = await self.node.claim(slots, agent=agent)
        answer = [(claim.id, claim.epoch, claim.attempts_charged, claim.state) for claim in claims]
        self.attempts += [(claim.id, claim.epoch) for claim in claims]
        return self.model.claim(agent, slots, self.node.store.claims.owner), answer

    async def _finish(self, attempt: tuple[str, int], end: str) -> tuple[Any, Any]:
        state, _, how = end.partition(" ")
        output = b'"done"' if state == "succeeded" else None
        delay_s, refund = (7 if how == "later" else None), int(how == "free")
        saves = f'"{attempt[0]}"'.encode()
        due_at = None if delay_s is None else self._instant_us(self.model.now + delay_s)
        error = b'{"type":"agent_error"}' if state == "failed" else None
        finish = Finish(
            *attempt, state, "ok", "r", refund=refund, due_at=due_at, output=output, error=error, session_state=saves
        )
        expected = self.model.finish(*attempt, state, output=output, delay_s=delay_s, refund=refund, saves=saves)
        return expected, await self.node.store.tasks.finish(finish)

    async def _append(self, attempt: tuple[str, int]) -> tuple[Any, Any]:
        return self.model.append(*attempt), await self.node.store.tasks.append(Event(*attempt, "message", b"{}"))

    async def _call(self, attempt: tuple[str, int], new: dict[str, Any]) -> tuple[Any, Any]:
        row, task = self._new(new | {"timeout_s": None, "delay_s": None}, parent=attempt[0])
        expected = self.model.call(*attempt, row)
        accepted = await self.node.store.tasks.call(Call(*attempt, task))
        return expected, None if accepted is None else _answer(accepted)

    async def _resume(self, attempt: tuple[str, int]) -> tuple[Any, Any]:
        return self.model.resume(*attempt), await self.node.store.tasks.resume(Lease(*attempt))

    async def _cancel(self, id: str) -> tuple[Any, Any]:
        if id not in self.model.rows:
            return None, None
        expected = "done" if self.model.cancel(id) in models.OPEN else "conflict"
        return expected, await _outcome(self.node.store.tasks.cancel(id, tenant=TENANT))

    async def _renew(self, owner: str) -> tuple[Any, Any]:
        held = await self.node.store.tasks.renew(owner, ttl_us=int(models.LEASE_S * 1e6))
        return self.model.renew(owner), held

    async def _rescue(self, not_owner: str | None) -> tuple[Any, Any]:
        return self.model.rescue(not_owner), await self.node.store.tasks.rescue(not_owner=not_owner)

    async def _tick(self) -> tuple[Any, Any]:
        self.model.tick()
        await self.node.store.tasks.tick()
        return None, None

    async def _advance(self, delay_s: int) -> tuple[Any, Any]:
        self.model.now += delay_s
        await self.scratch.advance(delay_s)
        return None, None

    async def _become(self, owner: str) -> tuple[Any, Any]:
        self.node.store.claims.owner = owner
        return None, None

    async def _forget(self, agent: str, session: str) -> tuple[Any, Any]:
        removal = self.node.store.sessions.remove(session, tenant=TENANT, agent=agent)
        return self.model.forget(agent, session), await _outcome(removal)

    # --- reading and building

    def _new(self, new: dict[str, Any], *, parent: str | None) -> tuple[models.Row, Any]:
        id = f"t{len(self.ids)}"
        self.ids.append(id)
        due_at = None if new["delay_s"] is None else self.model.now + new["delay_s"]
        row = models.Row(
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
            parent=parent,
            idempotency_key=new["key"],
            fingerprint=new["body"],
        )
        return row, task

    def _instant_us(self, at_s: float) -> int:
        return self.start_us + int(at_s * 1e6)

    async def _visible(self) -> list[tuple[object, ...]]:
        tasks = self.node.store.tasks
        return [
            (
                *(row.id, row.state, row.epoch, row.attempts_charged, row.output),
                row.error and msgspec.json.decode(row.error)["type"],
                row.parent,
                tuple(_told(await tasks.events(row, after=1))),
            )
            for row in reversed(await tasks.list(tenant=TENANT, limit=200))
        ]

    async def _session_rows(self) -> dict[tuple[str, str], tuple[bytes | None, int]]:
        rows = await self.node.store.db.lookup("select agent, id, state, tasks from session", {})
        return {(row[0], row[1]): (row[2], row[3]) for row in rows}


def _told(events: Sequence[StoredEvent]) -> Iterator[tuple[int, str]]:
    for number, event in enumerate(events, 2):  # the acceptance is number 1
        assert event.seq == number
        yield event.epoch, msgspec.json.decode(event.data)["state"] if event.type == "state" else event.type


def _answer(accepted: Accepted) -> tuple[str, bool, bool]:
    return accepted.id, accepted.is_new, accepted.matches


async def _outcome(action: Any) -> str:
    try:
        await action
    except errors.GreenroomError as error:
        return error.code
    return "done"


@pytest.fixture
async def trials(tmp_path: Path, postgres_server: databases.Server) -> AsyncIterator[tuple[databases.Scratch, ...]]:
    async with databases.sqlite(tmp_path) as sqlite, postgres_server.scratch() as postgres:
        yield sqlite, postgres


@pytest.mark.slow
@hypothesis.settings(max_examples=200, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.example(commands=A_LEASE_TO_ITS_LAST_INSTANT)
@hypothesis.given(commands=COMMANDS)
async def test_both_databases_do_what_the_model_does(
    trials: tuple[databases.Scratch, ...], commands: list[tuple[Any, ...]]
) -> None:
    async with asyncio.TaskGroup() as both:  # the failure of one ends the other
        for scratch in trials:
            both.create_task(_try(scratch, commands))


async def _try(scratch: databases.Scratch, commands: list[tuple[Any, ...]]) -> None:
    if not scratch.opened:
        await scratch.open()
        await scratch.stop_clock()
    node = Node(scratch.opened[0])
    node.store.claims.owner = "node-1"
    for table in ("task", "task_event", "session"):
        await node.raw(f"delete from {table}")
    await scratch.advance(1)
    await Trial(scratch, node).run(commands)
