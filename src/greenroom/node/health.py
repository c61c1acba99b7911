"""The node's health: the loops that grade agents and keep their SLOs, and how the node itself is."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from greenroom import clock as clocks
from greenroom import settings, telemetry
from greenroom.control import supervisor
from greenroom.control.grades import Grades
from greenroom.control.slos import Look, Slos
from greenroom.core import grades, health
from greenroom.store.store import Store

LOOK_EVERY_S = 30.0  # at the disk
_PASSING = ("api", "the end of an attempt")  # nobody says when these troubles are over; if they last, loops have them


class NodeHealth:
    """*use_pct* says what replicas use of each limit, in percent; *failure* what has ended the node's loops, if so."""

    name = "disk"

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        found: settings.Settings,
        *,
        data_dir: Path,
        use_pct: Callable[[], Mapping[str, float]],
        failure: Callable[[], str | None],
    ) -> None:
        self._data_dir, self._use_pct, self._failure = data_dir, use_pct, failure
        self._is_grading = found.cluster.health_checks
        self._grades, self._slos = Grades(store, clock, facts), Slos(store, clock, facts)
        self.wakeup = asyncio.Event()
        self._troubles: dict[str, str] = {}
        self._disk_free_mb: float | None = None
        facts.subscribe(self._note_trouble, telemetry.StoreTrouble)
        facts.subscribe(self._note_end, telemetry.StoreRecovered)

    @property
    def loops(self) -> tuple[supervisor.Loop, ...]:
        return (self, self._slos, *((self._grades,) if self._is_grading else ()))

    async def step(self) -> float:
        """Look how much room the disk has."""
        self._disk_free_mb = await asyncio.to_thread(disk_free_mb, self._data_dir)
        return LOOK_EVERY_S

    def finding(self, agent: str) -> health.Finding:
        """Return what its tasks say of *agent*."""
        return self._grades.finding(agent) if self._is_grading else health.OFF

    def recent(self, agent: str) -> grades.Recent:
        return self._grades.recent(agent)

    def objectives(self, agent: str) -> Look | None:
        """Return how the goals of *agent* stood at the last look."""
        return self._slos.look(agent)

    def node(self) -> health.Finding:
        """Grade the node itself."""
        return grades.of_node(
            troubles=self._troubles,
            failure=self._failure(),
            disk_free_mb=self._disk_free_mb,
            envelope_pct=self._use_pct(),
        )

    def _note_trouble(self, fact: telemetry.StoreTrouble) -> None:
        if fact.where not in _PASSING:
            self._troubles[fact.where] = fact.error

    def _note_end(self, fact: telemetry.StoreRecovered) -> None:
        self._troubles.pop(fact.where, None)


def disk_free_mb(folder: Path) -> float | None:
    """Return what is free for who is not root; None where the file system does not say."""
    try:
        return shutil.disk_usage(folder).free / 2**20
    except OSError:
        return None
