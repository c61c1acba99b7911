"""Rules of users, by the entry point ``greenroom.optimizer_rules``: strangers' code in the node, kept at arm's length.

A rule is a callable that takes the measurements as plain data, and returns advices as plain data, or None. It runs in a
thread of its own, for so long and no longer: one that raises, answers nonsense or does not answer is skipped, and what
was wrong is said. Nothing can take back a thread that never returns: its rule is not called again before it does.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from greenroom.core import failures
from greenroom.core.measurements import Measurements
from greenroom.core.optimizer import Found

GROUP = "greenroom.optimizer_rules"
WITHIN_S = 2.0
MAX_ADVICES = 20  # of one rule at one look

_Text = Annotated[str, Meta(min_length=1, max_length=500)]


class OwnAdvice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rule of a user returns; *metric* is one of those of `core.optimizer.value`, or a word of its own."""

    what: _Text
    why: _Text
    expected: _Text = "not said"
    agent: Annotated[str, Meta(max_length=63)] | None = None
    metric: Annotated[str, Meta(max_length=63)] = ""
    before: float = 0.0


Rule = Callable[[Any], Any]


class UserRule:
    """*load* returns the callable; it may raise whatever it likes."""

    def __init__(self, name: str, load: Callable[[], Rule], *, within_s: float = WITHIN_S) -> None:
        self.name = name
        self._load, self._within_s = load, within_s
        self._rule: Rule | None = None
        self._is_running = False

    async def ask(self, seen: Mapping[str, Any]) -> tuple[list[Found], str | None]:
        """Return what it has found, and what was wrong with it, if something was."""
        if self._is_running:
            return [], f"it took longer than {self._within_s:g} s, and has not returned yet"
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[list[Found], str | None]] = loop.create_future()

        def settle(result: tuple[list[Found], str | None]) -> None:
            self._is_running = False
            if not answer.done():
                answer.set_result(result)

        def run() -> None:
            try:
                self._rule = self._rule or self._load()
                result = self._read(self._rule(seen))  # here, for an answer may have code of its own, or no end
            except BaseException as raised:  # noqa: BLE001 - whatever a stranger's code raises, SystemExit too
                result = [], _told(raised)
            try:
                loop.call_soon_threadsafe(settle, result)
            except RuntimeError:
                return  # the node has ended meanwhile

        self._is_running = True
        # A daemon, so that one that never returns does not keep the node from ending.
        threading.Thread(target=run, name=f"rule-{self.name}"[:15], daemon=True).start()
        try:
            return await asyncio.wait_for(answer, self._within_s)
        except TimeoutError:
            return [], f"it took longer than {self._within_s:g} s"

    def _read(self, result: Any) -> tuple[list[Found], str | None]:
        try:
            advices = msgspec.convert(result or [], list[OwnAdvice])
        except msgspec.ValidationError as error:
            return [], f"it returned what is no list of advices: {error}"
        except Exception as error:  # noqa: BLE001 - an object may raise at whatever is done with it
            return [], f"it returned what cannot be read: {_told(error)}"
        if len(advices) > MAX_ADVICES:
            return [], f"it returned {len(advices)} advices, and at most {MAX_ADVICES} are taken"
        if not all(math.isfinite(each.before) for each in advices):
            return [], "it returned a number that is none"
        return [self._found(each) for each in advices], None

    def _found(self, own: OwnAdvice) -> Found:
        agent = None if own.agent is None else failures.told(own.agent)
        what, why, expected, metric = map(failures.told, (own.what, own.why, own.expected, own.metric))
        return Found(f"user:{self.name}", agent, what, why, expected, metric, own.before)


def _told(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a stranger's exception
        text = "(its message cannot be read)"
    return f"it raised {type(error).__name__}: {text}"[:500]


def installed() -> list[UserRule]:
    """Return the rules of all packages that are installed beside Greenroom; a name that two have gets a number."""
    found: list[UserRule] = []
    names: Counter[str] = Counter()
    for point in sorted(_points(), key=lambda each: (each.name, each.value)):
        names[point.name] += 1
        name = point.name if names[point.name] == 1 else f"{point.name}-{names[point.name]}"
        found.append(UserRule(name, point.load))
    return found


def _points() -> Iterable[metadata.EntryPoint]:
    return metadata.entry_points(group=GROUP)


def plain(seen: Measurements) -> dict[str, Any]:
    """Return the measurements as a rule of a user gets them."""
    data: dict[str, Any] = msgspec.to_builtins(seen)
    return data
