"""The nemesis: injects the faults of a schedule, each for its time, and notes what it did.

What a fault does is an `Injector`; `LocalFaults` has those that users inject on their own node. A victim that is not
there just now (no replica is ready, the node is down) is waited for; what cannot be injected at all is noted with the
reason.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import msgspec

from greenroom import errors
from greenroom.sdk import models
from greenroom.sdk.async_client import AsyncClient
from greenroom.testing.chaos import held, processes, recovery
from greenroom.testing.chaos.processes import NotInjectable
from greenroom.testing.chaos.schedule import Planned

PATIENCE_S = 60.0  # for a victim
LOOK_EVERY_S = 0.2
UNDO_WITHIN_S = 15.0
SHORTEST_SLOW_S = 1.0


@dataclass(frozen=True, slots=True)
class Hit:
    """What an injected fault did; instants are seconds since 1970. See `recovery.Injection`."""

    at: float
    replicas: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()


Injector = Callable[[Planned], Awaitable[Hit]]
"""Injects a fault and returns when it is undone.

Raises `NotInjectable`, or `errors.GreenroomError` while the node is away.
"""


class _Process(TypedDict):
    pid: int
    started: str


class Nemesis:
    """*injected* grows while it runs; *unavailable* says of kinds why they cannot be injected at all."""

    def __init__(
        self, schedule: Sequence[Planned], injectors: Mapping[str, Injector], unavailable: Mapping[str, str]
    ) -> None:
        self._schedule, self._injectors, self._unavailable = schedule, injectors, unavailable
        self.injected: list[recovery.Injection] = []

    async def run(self) -> None:
        """Inject every fault at its time; return when the last one is undone."""
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for planned in self._schedule:
                await asyncio.sleep(begun_s + planned.at_s - time.monotonic())
                group.create_task(self._inject(planned))

    async def _inject(self, planned: Planned) -> None:
        if (why := self._unavailable.get(planned.kind)) is not None:
            self._note_failure(planned, why)
            return
        give_up_at_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                hit = await self._injectors[planned.kind](planned)
            except (NotInjectable, errors.GreenroomError) as error:
                if time.monotonic() < give_up_at_s:
                    await asyncio.sleep(LOOK_EVERY_S)
                    continue
                self._note_failure(planned, str(error))
                return
            self.injected.append(recovery.Injection(planned.kind, hit.at, time.time(), hit=hit.replicas, gone=hit.gone))
            return

    def _note_failure(self, planned: Planned, why: str) -> None:
        now = time.time()
        self.injected.append(recovery.Injection(planned.kind, now, now, why_not=why))


class LocalFaults:
    """Faults of one node on this machine: of its process, its store, and the replicas of *agents*.

    *node_pid* tells the process, as a node that was restarted has another; *store* is a path or URL, None if unknown;
    *poison* submits a task that kills its replica.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        agents: Collection[str],
        node_pid: Callable[[], int],
        store: str | None,
        hang_after_s: float,
        poison: Callable[[], Awaitable[object]] | None,
    ) -> None:
        self._client, self._agents, self._node_pid, self._store = client, agents, node_pid, store
        self._hang_after_s, self._poison = hang_after_s, poison
        self._victims: set[str] = set()  # replicas that a fault holds

    def injectors(self) -> dict[str, Injector]:
        return {
            "kill": self.kill,
            "stop": self.stop,
            "slow": self.slow,
            "poison": self.poison,
            "disk-full": self.disk_full,
            "lock": self.lock,
        }

    async def kill(self, planned: Planned) -> Hit:
        victim, pid = await self._victim(planned)
        with processes.held(pid, below=self._node_pid()) as pidfd:
            at = time.time()
            processes.send(pidfd, signal.SIGKILL)
        return Hit(at, frozenset({victim.id}), frozenset({victim.id}))

    async def stop(self, planned: Planned) -> Hit:
        """Stop a replica; a node that finds it to hang kills it, else it goes on when the time is over."""
        victim, pid = await self._victim(planned)
        ids = frozenset({victim.id})
        self._victims.add(victim.id)
        try:
            at = await hold(held.Order(kind="stop", hold_s=planned.hold_s, **self._process(pid)))
        finally:
            self._victims.discard(victim.id)
        return Hit(at, ids, frozenset() if processes.start_of(pid) else ids)

    async def slow(self, planned: Planned) -> Hit:
        """Stop and continue a replica again and again, each time well within the time after which it is hung."""
        victim, pid = await self._victim(planned)
        self._victims.add(victim.id)
        pulse_s, hold_s = min(0.5, self._hang_after_s / 4), max(planned.hold_s, SHORTEST_SLOW_S)
        try:
            at = await hold(held.Order(kind="slow", hold_s=hold_s, pulse_s=pulse_s, **self._process(pid)))
        finally:
            self._victims.discard(victim.id)
        return Hit(at)  # its tasks are not meant to be interrupted

    async def poison(self, planned: Planned) -> Hit:  # noqa: ARG002 - whoever takes it is the victim
        if self._poison is None:
            raise NotInjectable("no input is known that kills the agent's replica")
        at = time.time()
        await self._poison()
        return Hit(at)

    async def disk_full(self, planned: Planned) -> Hit:
        pid = self._node_pid()
        order = held.Order(kind="disk-full", hold_s=planned.hold_s, pid=pid, started=processes.start_of(pid))
        return Hit(await hold(order))

    async def lock(self, planned: Planned) -> Hit:
        if self._store is None:
            raise NotInjectable("the node's store is not known; name it with --store")
        return Hit(await hold(held.Order(kind="lock", hold_s=planned.hold_s, store=self._store)))

    async def _victim(self, planned: Planned) -> tuple[models.Replica, int]:
        """Choose a ready replica that no other fault holds, one with tasks where there is one, and its process."""
        found = [
            replica
            for replica in await self._client.replicas()
            if replica.agent in self._agents
            and replica.state == "ready"
            and replica.pid is not None
            and replica.id not in self._victims
        ]
        if not found:
            raise NotInjectable("no replica is ready")
        busy = [replica for replica in found if replica.busy] or found
        victim = busy[int(planned.draw * len(busy))]
        assert victim.pid is not None
        return victim, victim.pid

    def _process(self, pid: int) -> _Process:
        with processes.held(pid, below=self._node_pid()):
            return {"pid": pid, "started": processes.start_of(pid)}


async def hold(order: held.Order) -> float:
    """Have *order* carried out; return, when it is undone, since when it held.

    Raises `NotInjectable`. Where its holder is killed, another one undoes what it did.
    """
    holder = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "greenroom.testing.chaos.held",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us: the end of its input tells it
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        holder.stdin.write(msgspec.json.encode(order) + b"\n")
        said = await holder.stdout.readline()
        at = time.time()
        if said == held.HELD:
            await holder.wait()
    finally:
        holder.stdin.close()
        code = await asyncio.shield(_end_of(holder))
    has_died = code != 0 and said in (held.HELD, b"")  # else it has said why not
    if has_died and order.hold_s > 0 and order.kind != "lock":  # a lock ends with its holder
        await hold(msgspec.structs.replace(order, hold_s=0.0))
    if said != held.HELD:
        raise NotInjectable(said.decode(errors="replace").strip() or "its holder has died")
    return at


async def _end_of(holder: asyncio.subprocess.Process) -> int:
    """Return its exit code; one that does not end is killed."""
    try:
        async with asyncio.timeout(UNDO_WITHIN_S):
            return await holder.wait()
    except TimeoutError:
        holder.kill()
        return await holder.wait()
