"""Proving: has the replicas of a rollout's new revision tried, stage by stage, for `control.reconciler`.

Every replica is probed once; the manifest's checks run once for each stage that has any, on one that has passed. A
replica that goes away while it is tried leaves nothing known: another one is tried in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from greenroom import settings
from greenroom.control.trials import ReplicaGone, Trials
from greenroom.core.rollouts import Proof

Trial = asyncio.Task[str | None]


class Wanted(msgspec.Struct, frozen=True):
    """What a stage has to prove: on *replicas* of the new revision, by *checks* too where there are any."""

    stage: int
    replicas: int
    checks: settings.Rollout | None
    timeout_s: float  # of each check


class Proving:
    """One rollout's trials. *woken* is called whenever one of them has ended."""

    def __init__(self, trials: Trials, *, woken: Callable[[], None]) -> None:
        self._trials, self._woken = trials, woken
        self._probes: dict[str, Trial] = {}  # by replica
        self._check: Trial | None = None
        self._checked: Wanted | None = None  # what *check* is of

    def look(self, wanted: Wanted, ready: Sequence[str]) -> tuple[Proof, str | None]:
        """Have *ready* replicas tried that have not been; return what is proven, and what is wrong, if something is."""
        for gone in self._probes.keys() - set(ready):
            self._probes.pop(gone).cancel()
        for replica in ready:
            if replica not in self._probes:
                self._probes[replica] = self._begin(self._trials.probe(replica), f"probe-{replica}")
        passed = []
        for replica, probe in list(self._probes.items()):
            if not probe.done():
                continue
            if _is_void(probe):
                del self._probes[replica]
            elif (wrong := probe.result()) is not None:
                return Proof.PENDING, f"{replica}: {wrong}"
            else:
                passed.append(replica)
        if len(passed) < wanted.replicas:
            return Proof.PENDING, None
        return self._look_at_checks(wanted, wanted.checks, passed[-1])

    def _look_at_checks(
        self, wanted: Wanted, checks: settings.Rollout | None, replica: str
    ) -> tuple[Proof, str | None]:
        if checks is None or not (checks.checks or checks.examples):
            return Proof.PASSED, None
        if self._check is None or self._checked != wanted:
            self._stop_check()
            running = self._trials.check(replica, checks, timeout_s=wanted.timeout_s)
            self._check, self._checked = self._begin(running, f"check-{replica}"), wanted
        if not self._check.done():
            return Proof.PENDING, None
        if _is_void(self._check):
            self._check = None
            self._woken()
            return Proof.PENDING, None
        wrong = self._check.result()
        return (Proof.PASSED if wrong is None else Proof.PENDING), wrong

    def close(self) -> None:
        """End what still runs."""
        self._stop_check()
        for probe in self._probes.values():
            probe.cancel()

    def _stop_check(self) -> None:
        if self._check is not None:
            self._check.cancel()

    def _begin(self, trial: Coroutine[Any, Any, str | None], name: str) -> Trial:
        task = asyncio.create_task(trial, name=name)
        task.add_done_callback(lambda _: self._woken())
        return task


def _is_void(trial: Trial) -> bool:
    """Whether nothing is known by *trial*, which is done."""
    return trial.cancelled() or isinstance(trial.exception(), ReplicaGone)
