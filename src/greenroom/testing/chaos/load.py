"""Clients: submit what a recipe makes, at a steady rate, and note what they were told.

What is due is submitted late rather than never: an outage delays, it thins nothing out. A submission without an answer
is sent again with the same key until its fate is known. The submissions of a session are sent one after the other, so
that their order is known.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

from greenroom import errors
from greenroom.sdk import models
from greenroom.sdk.async_client import AsyncClient
from greenroom.testing.chaos.history import History, Outcome, Sent, end_of

CLIENTS = 48
BATCH = 20
SESSIONS = 50
ASK_AGAIN_S = 0.2  # the first time; doubles up to a second
NAPS_S = (0.005, 0.05, 0.2, 1.0)  # the longest of each
CANCEL_WITHIN_S = 0.05
WATCH_S = 10.0


class Way(enum.StrEnum):
    """How a submission is made, and what its client does next."""

    PLAIN = "plain"
    BATCH = "batch"  # many in one request
    SESSION = "session"
    WATCHED = "watched"  # wait for its end, and remember it
    AGAIN = "again"  # send it again with the same key
    CANCELLED = "cancelled"
    INVALID = "invalid"  # it has to be refused


class Recipe(Protocol):
    """Makes inputs for *agent*."""

    @property
    def agent(self) -> str: ...

    @property
    def ways(self) -> Sequence[tuple[Way, int]]:
        """Each with its weight."""

    def input(self, key: str, chance: random.Random) -> Any: ...

    def poison(self, key: str, chance: random.Random) -> Any:
        """An input that kills its replica; None if none is known."""


class BuiltIn:
    """For the agent of `agent`, all ways; *ledger* is its path."""

    ways = (
        (Way.PLAIN, 20),
        (Way.BATCH, 3),
        (Way.SESSION, 30),
        (Way.WATCHED, 10),
        (Way.AGAIN, 5),
        (Way.CANCELLED, 3),
        (Way.INVALID, 2),
    )

    def __init__(self, agent: str, ledger: str) -> None:
        self.agent, self._ledger = agent, ledger

    def input(self, key: str, chance: random.Random) -> Any:
        do = "call" if chance.random() < 0.05 else "nap"
        nap_s = round(chance.choice(NAPS_S) * chance.random(), 4)
        return {"key": key, "ledger": self._ledger, "do": do, "nap_s": nap_s}

    def poison(self, key: str, chance: random.Random) -> Any:
        return {"key": key, "ledger": self._ledger, "do": chance.choice(("exit", "segfault"))}


class Given:
    """For an agent of the user's: the same input again and again."""

    ways = ((Way.PLAIN, 6), (Way.WATCHED, 3), (Way.AGAIN, 1))

    def __init__(self, agent: str, input: Any, poison: Any = None) -> None:
        self.agent, self._input, self._poison = agent, input, poison

    def input(self, key: str, chance: random.Random) -> Any:  # noqa: ARG002 - always the same
        return self._input

    def poison(self, key: str, chance: random.Random) -> Any:  # noqa: ARG002 - always the same
        return self._poison


class Load:
    """*count* tasks at *rate_per_s*; *name* begins every key. What stays unknown is given up *patience_s* later."""

    def __init__(
        self,
        client: AsyncClient,
        recipe: Recipe,
        history: History,
        *,
        name: str,
        count: int,
        rate_per_s: float,
        seed: int,
        patience_s: float,
    ) -> None:
        self._client, self._recipe, self._history = client, recipe, history
        self._name, self._count, self._rate_per_s, self._patience_s = name, count, rate_per_s, patience_s
        self._chance = random.Random(seed)
        self._numbers = 0
        self._turns: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._orders: dict[str, int] = defaultdict(int)
        self._give_up_at_s = float("inf")

    async def run(self) -> None:
        """Submit everything, and return when the fate of each is known or given up."""
        begun_s = time.monotonic()
        self._give_up_at_s = begun_s + self._count / self._rate_per_s + self._patience_s
        units = self._units()

        async def submit_some() -> None:
            for place, unit in units:
                await asyncio.sleep(begun_s + place / self._rate_per_s - time.monotonic())
                await unit()

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(submit_some())

    async def poison(self) -> None:
        """Submit a task that kills whatever runs it."""
        key = self._key()
        value = self._recipe.poison(key, self._chance)
        await self._submit(Sent(key=key, outcome=Outcome.UNKNOWN, is_poison=True), self._submission(value))

    def _units(self) -> Iterator[tuple[int, Callable[[], Awaitable[None]]]]:
        """Yield what clients do, each with how many tasks have to be due before."""
        ways, weights = zip(*self._recipe.ways, strict=True)
        place = 0
        while place < self._count:
            (way,) = self._chance.choices(ways, weights)
            size = min(BATCH, self._count - place) if way is Way.BATCH else 1
            if way is Way.INVALID:
                yield place, self._invalid  # beside the count: it is no task
                continue
            unit = self._of_way(way, size)
            yield place, unit
            place += size

    def _of_way(self, way: Way, size: int) -> Callable[[], Awaitable[None]]:
        match way:
            case Way.BATCH:
                return lambda: self._batch(size)
            case Way.SESSION:
                return self._in_session
            case _:
                return lambda: self._single(way)

    async def _single(self, way: Way) -> None:
        key = self._key()
        submission = self._submission(self._recipe.input(key, self._chance))
        sent = await self._submit(Sent(key=key, outcome=Outcome.UNKNOWN), submission)
        if sent.task is None:
            return
        try:
            await self._follow(way, sent, submission)
        except errors.GreenroomError:
            return  # the node was away: nothing was learned

    async def _follow(self, way: Way, sent: Sent, submission: models.Submission) -> None:
        assert sent.task is not None
        match way:
            case Way.WATCHED:
                task = await self._client.wait(sent.task, WATCH_S)
                if task.ended:
                    self._history.ends.append(end_of(task))
            case Way.AGAIN:
                task = await self._client.submit(**_arguments(submission), idempotency_key=sent.key)
                if task.id != sent.task:
                    self._history.note(dataclasses.replace(sent, others=(task.id,)))
            case Way.CANCELLED:
                await asyncio.sleep(CANCEL_WITHIN_S * self._chance.random())
                await self._client.cancel(sent.task)
                self._history.note(dataclasses.replace(sent, was_cancelled=True))
            case _:
                return

    async def _in_session(self) -> None:
        session = f"{self._name}-s{self._chance.randrange(SESSIONS)}"
        async with self._turns[session]:
            key, order = self._key(), self._orders[session]
            self._orders[session] += 1
            submission = self._submission(self._recipe.input(key, self._chance), session=session)
            await self._submit(Sent(key=key, outcome=Outcome.UNKNOWN, session=session, order=order), submission)

    async def _invalid(self) -> None:
        key = self._key()
        submission = self._submission(self._recipe.input(key, self._chance), timeout_s=-1.0)
        await self._submit(Sent(key=key, outcome=Outcome.UNKNOWN), submission)

    async def _submit(self, sent: Sent, submission: models.Submission) -> Sent:
        """Submit until the fate is known; return and note it."""
        self._history.note(sent)
        async for is_first in self._tries():
            try:
                task = await self._client.submit(**_arguments(submission), idempotency_key=sent.key)
            except errors.GreenroomError as error:
                if _is_refusal(error.status):
                    sent = dataclasses.replace(sent, outcome=Outcome.REFUSED, refusal=error.code)
                    break
            else:
                sent = dataclasses.replace(sent, outcome=Outcome.ACKNOWLEDGED, task=task.id, was_unknown=not is_first)
                break
        self._history.note(sent)
        return sent

    async def _batch(self, size: int) -> None:
        keys = [self._key() for _ in range(size)]
        left = {key: self._submission(self._recipe.input(key, self._chance), idempotency_key=key) for key in keys}
        for key in keys:
            self._history.note(Sent(key=key, outcome=Outcome.UNKNOWN))
        async for is_first in self._tries():
            try:
                answers = await self._client.submit_many(list(left.values()))
            except errors.GreenroomError:
                continue
            for key, answer in zip(list(left), answers, strict=True):
                if self._note_answer(key, answer, is_first=is_first):
                    del left[key]
            if not left:
                return

    def _note_answer(self, key: str, answer: models.Task | models.Problem, *, is_first: bool) -> bool:
        """Note what became of one of a batch; return whether it is known."""
        sent = self._history.sent[key]
        if isinstance(answer, models.Task):
            sent = dataclasses.replace(sent, outcome=Outcome.ACKNOWLEDGED, task=answer.id, was_unknown=not is_first)
        elif _is_refusal(answer.status):
            sent = dataclasses.replace(sent, outcome=Outcome.REFUSED, refusal=answer.code)
        self._history.note(sent)
        return sent.outcome != Outcome.UNKNOWN

    async def _tries(self) -> AsyncIterator[bool]:
        """Yield True, and then False after growing pauses, until patience ends."""
        pause_s = ASK_AGAIN_S
        yield True
        while time.monotonic() < self._give_up_at_s:
            await asyncio.sleep(pause_s * (0.5 + self._chance.random() / 2))
            pause_s = min(1.0, pause_s * 2)
            yield False

    def _submission(self, input: Any, **given: Any) -> models.Submission:
        return models.Submission(input=input, agent=self._recipe.agent, **given)

    def _key(self) -> str:
        self._numbers += 1
        return f"{self._name}-{self._numbers}"


def _is_refusal(status: int) -> bool:
    """Whether a submission that was answered so is refused for good; an overloaded node is asked again."""
    return 400 <= status < 500 and status != errors.Overloaded.status


def _arguments(submission: models.Submission) -> dict[str, Any]:
    return {name: getattr(submission, name) for name in ("input", "agent", "session", "timeout_s")}
