"""The loop of the logs, step by step: what it keeps, what it leaves out and says so, and what it never stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from greenroom import errors, settings, telemetry
from greenroom.control import logs as loops_logs
from greenroom.control.logs import Logs
from greenroom.core import tasks
from greenroom.core.permissions import HOME
from greenroom.store.logs import Bounds, Filter
from greenroom.store.rows import Claim
from greenroom.store.store import Store
from greenroom.testing import databases
from greenroom.testing.fakes import Fault, FaultyDatabase

FOUND = settings.Logs(lines_per_second=3, max_lines=1000, max_mb=1)
OTHER = "other"


@dataclass
class Kept:
    """A store with the loop of the logs; *whose* says what runs in each replica."""

    scratch: databases.Scratch
    store: Store
    found: settings.Logs = FOUND
    told: telemetry.Telemetry = field(default_factory=telemetry.Telemetry)
    whose: tuple[str, Claim | None] = HOME, None

    def __post_init__(self) -> None:
        self.loop = Logs(self.store, self.scratch.clock, self.told, self.found, whose=lambda _: self.whose)

    def say(self, *lines: str, replica: str = "r1", agent: str = "agent") -> None:
        for line in lines:
            self.told.emit(telemetry.ReplicaSaid(agent, replica, "stdout", line))

    def say_of_task(self, *data: bytes, tenant: str = HOME, task: str = "t1") -> None:
        for each in data:
            self.told.emit(telemetry.TaskSaid("agent", "r1", task, 1, tenant, each))

    async def texts(self, **which: Any) -> list[str]:
        found = await self.store.logs.latest(Filter(**{"tenant": HOME, **which}), limit=5000)
        return [line.text.decode() for line in reversed(found)]


@pytest.fixture
async def kept(scratch: databases.Scratch) -> Kept:
    return Kept(scratch, await scratch.open())


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> databases.Server | None:
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server")


@pytest.fixture
async def scratch(server: databases.Server | None, tmp_path: Path) -> AsyncIterator[databases.Scratch]:
    async with databases.sqlite(tmp_path) if server is None else server.scratch() as found:
        yield found


@pytest.fixture
async def faulty(tmp_path: Path) -> AsyncIterator[tuple[Kept, FaultyDatabase]]:
    wrapped: list[FaultyDatabase] = []

    def wrap(db: Any) -> FaultyDatabase:
        wrapped.append(FaultyDatabase(db))
        return wrapped[0]

    async with databases.sqlite(tmp_path) as scratch:
        yield Kept(scratch, await scratch.open(wrap=wrap)), wrapped[0]


async def test_lines_are_stored_in_order_and_numbered_without_a_hole(kept: Kept) -> None:
    kept.say("one", "two")
    await kept.loop.step()
    kept.say("three")
    assert await kept.texts() == ["one", "two"], "a line is no commit"
    await kept.loop.step()
    found = await kept.store.logs.after(Filter(tenant=HOME), 0, limit=10)
    assert [(line.seq, line.text) for line in found] == [(1, b"one"), (2, b"two"), (3, b"three")]
    assert await kept.store.logs.head() == 3


async def test_what_is_over_the_rate_is_counted_in_its_place_and_the_next_second_is_free(kept: Kept) -> None:
    kept.say(*map(str, range(10)))
    kept.say("of another", replica="r2")
    await kept.loop.step()
    assert await kept.texts() == ["0", "1", "2", "of another"]
    await kept.scratch.advance(1.0)
    await kept.loop.step()
    kept.say("again")
    await kept.loop.step()
    note = "(7 lines were left out: its replica wrote more than 3 in a second)"
    assert await kept.texts(replica="r1") == ["0", "1", "2", note, "again"]


async def test_a_task_is_told_what_was_left_out_of_its_lines(kept: Kept) -> None:
    kept.say_of_task(*[b'{"line":"x"}'] * 5, tenant=OTHER)
    await kept.loop.close()
    note = "(2 lines were left out: its replica wrote more than 3 in a second)"
    assert await kept.texts(tenant=OTHER, task="t1") == ["x", "x", "x", note]
    assert await kept.texts() == []


async def test_while_the_store_takes_none_what_waits_is_bounded_and_written_afterwards(
    faulty: tuple[Kept, FaultyDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, db = faulty
    monkeypatch.setattr(loops_logs, "MOST", 4)
    for number in range(5):
        db.faults = [Fault.AT_COMMIT]
        kept.say(f"first {number}", f"second {number}")
        kept.told.emit(telemetry.AgentFailing("agent", "many"))
        with pytest.raises(errors.StoreUnavailable):
            await kept.loop.step()
        await kept.scratch.advance(1.0)
    await kept.loop.step()
    await kept.loop.step()
    told = await kept.texts()
    assert told[:4] == ["first 0", "second 0", "the agent fails: many", "first 1"]
    assert sum("left out" in text for text in told) == 1, "and how many those were"
    assert len(told) == 5


async def test_secrets_are_masked_and_lines_are_cut_however_they_come(kept: Kept) -> None:
    secret = "gr_dev_0123456789abcdef_" + "x" * 43
    kept.say(f"the key is {secret}", "y" * 5_000, "lone \ud800")
    kept.say_of_task(b'{"line":"%s"}' % secret.encode())
    await kept.loop.step()
    told = await kept.texts()
    assert not any(secret in text for text in told)
    assert told[1] == "y" * 4096 + "…"
    assert told[2] == "lone ?"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"stream":"stderr","line":"l","level":"error","logger":"a.b"}', ("stderr", 40, "a.b", "l")),
        (b'{"message":"m","level":"WARNING","stream":"nowhere"}', ("event", 30, "", "m")),
        (b'"a text"', ("event", 20, "", "a text")),
        (b'{"line":1,"level":[]}', ("event", 20, "", '{"line":1,"level":[]}')),
        (b"[1,2]", ("event", 20, "", "[1,2]")),
        (b'"' + b"x" * 70_000 + b'"', ("event", 20, "", "(an event of 70002 bytes)")),
    ],
)
async def test_a_log_event_is_a_line_whatever_agent_code_has_made_of_it(
    faulty: tuple[Kept, FaultyDatabase], data: bytes, told: tuple[str, int, str, str]
) -> None:
    kept, _ = faulty
    kept.say_of_task(data)
    await kept.loop.step()
    (line,) = await kept.store.logs.latest(Filter(tenant=HOME), limit=9)
    assert (line.source, line.level, line.logger, line.text.decode()) == told
    assert (line.task, line.epoch, line.of_task) == ("t1", 1, True)


async def test_what_of_several_tenants_it_may_be_is_stored_for_none(kept: Kept) -> None:
    kept.whose = "", None
    kept.say("a secret of one of them")
    kept.whose = OTHER, None
    kept.say("another")
    await kept.loop.close()
    assert await kept.texts() == ["(2 lines were left out: tasks of other tenants have run there)"]
    assert await kept.texts(tenant=OTHER) == []


async def test_the_ends_of_attempts_are_told_but_for_those_that_are_well(kept: Kept) -> None:
    def end(state: str, reason: str, why: tasks.End | None) -> None:
        kept.told.emit(telemetry.AttemptEnded("agent", state, reason, 1.5, "r1", why, task="t1", epoch=2, tenant=OTHER))

    end("succeeded", "ok", tasks.Succeeded())
    end("queued", "agent_error", tasks.AgentFailed("ValueError", "no", retryable=True))
    end("failed", "oom", tasks.ReplicaGone(tasks.Reason.OOM, "it took 2 GB"))
    end("expired", "timeout", tasks.TimedOut(1.0))
    end("cancelled", "cancelled", None)
    await kept.loop.step()
    assert await kept.texts(tenant=OTHER) == [
        "the task is queued again (agent_error) after 1.5 s: ValueError: no",
        "the task has failed (oom) after 1.5 s: it took 2 GB",
        "the task has expired (timeout) after 1.5 s",
        "the task was cancelled (cancelled) after 1.5 s",
    ]
    assert await kept.texts(tenant=OTHER, level=40) == (await kept.texts(tenant=OTHER))[1:3]


async def test_the_oldest_go_when_they_were_kept_for_long_enough(kept: Kept) -> None:
    kept.say("old")
    await kept.loop.step()
    await kept.scratch.advance(FOUND.keep_days * 86_400 - 60.0)
    kept.say("young")
    await kept.loop.step()
    await kept.scratch.advance(120.0)
    await kept.loop.step()
    assert await kept.texts() == ["young"]


async def test_an_agent_keeps_so_many_lines_and_bytes_and_no_other_agent_pays(kept: Kept) -> None:
    kept.say("of another", agent="another", replica="r2")
    await kept.loop.step()
    for number in range(8):
        kept.say(f"{number}: {'x' * 100}")
        await kept.loop.step()
        await kept.scratch.advance(2.0)
    logs = kept.store.logs
    while await logs.trim(Bounds(1e6, lines=5, bytes=10**6)):
        pass
    assert [text[0] for text in await kept.texts(agent="agent")] == list("34567")
    while await logs.trim(Bounds(1e6, lines=5, bytes=250)):
        pass
    assert [text[0] for text in await kept.texts(agent="agent")] == list("67")
    assert await kept.texts(agent="another") == ["of another"]


async def test_where_no_line_is_kept_nobody_listens(kept: Kept) -> None:
    off = Kept(kept.scratch, kept.store, found=settings.Logs(keep_days=0))
    assert not off.told.is_heard(telemetry.TaskSaid)
    assert not off.told.is_heard(telemetry.AttemptEnded)
    off.say("nothing")
    await off.loop.step()
    assert await off.texts() == []
