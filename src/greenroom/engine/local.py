"""The local engine: replicas are processes of this machine, forked from a warm zygote for each revision.

`node` builds it; `control.host` and `control.dispatcher` use it through `contract.Engine`. It knows no store
and no loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import greenroom
from greenroom import clock as clocks
from greenroom import errors
from greenroom.core import isolation
from greenroom.engine import (
    contract,
    envelope,
    interpreters,
    metering,
    processes,
    protocol,
    replica,
    replicas,
    rooms,
    zygote,
    zygotes,
)

IMPORT_DEADLINE_S = 60.0
IDLE_ZYGOTE_S = 60.0
MEMORY_POLL_S = 0.25
_CLOSE_GRACE_S = 5.0
_KILL_DEADLINE_S = 10.0

_Key = tuple[str, int, Path, int]


class LocalEngine:
    """*limits* are those of all replicas together; `enforcement` tells how they are held.

    *tier* is how far the agents' rooms are closed, None: as far as the machine lets it be by itself; *means* are those
    of T2. *closed* are files and folders that no agent may read whatever its settings say; the data directory is one of
    them.
    """

    def __init__(
        self,
        data_dir: Path,
        clock: clocks.Clock,
        *,
        import_deadline_s: float = IMPORT_DEADLINE_S,
        limits: envelope.Limits = envelope.Limits(),  # noqa: B008 - a frozen value
        tier: isolation.Tier | None = None,
        means: isolation.Means | None = None,
        closed: Sequence[Path] = (),
        first_user: int = rooms.FIRST_USER,
    ) -> None:
        processes.prepare_node()
        self._data_dir, self._clock, self._import_deadline_s = data_dir, clock, import_deadline_s
        self._marker = processes.node_marker(data_dir)
        self._envelope = envelope.Envelope(limits, marker=self._marker)
        tier = isolation.decide("auto", rooms.powers()).tier if tier is None else tier
        self._rooms = rooms.Rooms(
            data_dir, tier, means=means, marker=self._marker, closed=closed, first_user=first_user
        )
        self._side = _replica_side(data_dir)
        self._listeners: list[contract.Listener] = []
        self._replicas: dict[str, replicas.Replica] = {}
        self._zygotes: dict[_Key, zygotes.Zygote] = {}
        self._leaving: set[zygotes.Zygote] = set()
        self._warm: frozenset[_Key] = frozenset()  # zygotes that stay, though they have no replicas
        self._interpreters = interpreters.Interpreters()
        self._memory_poll: asyncio.TimerHandle | None = None
        self._descendants_look: asyncio.Task[None] | None = None
        self._oom_kills = processes.OomKills(clock.monotonic_s())
        kills = self._envelope.kills
        self._group_kills = None if kills is None else processes.OomKills(clock.monotonic_s(), kills)
        self._is_closed = False
        # Looking for what the dead left behind reads all of /proc: off the loop, one look for all that died
        # meanwhile.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sweep")
        self._memory_thread = ThreadPoolExecutor(1, thread_name_prefix="memory")
        self._meter_thread = ThreadPoolExecutor(1, thread_name_prefix="meter")  # takes longer than the one before may
        self._sweeping = asyncio.Lock()
        self._fallen: list[str] = []

    def subscribe(self, listener: contract.Listener) -> None:
        self._listeners.append(listener)

    async def sweep(self) -> int:
        """Kill what dead nodes of this data directory left running; return how many processes that were."""
        loop = asyncio.get_running_loop()
        killed = await loop.run_in_executor(self._thread, processes.kill_leftovers, self._data_dir)
        await loop.run_in_executor(self._thread, self._envelope.sweep)
        await loop.run_in_executor(self._thread, self._rooms.sweep)
        return killed

    # --- start

    async def start(self, replica: str, revision: contract.Revision) -> None:
        if self._is_closed:
            raise errors.Conflict(f"cannot start replica {replica}: the engine is closed")
        is_name = replica.strip(".") and "/" not in replica
        if replica in self._replicas or len(replica.encode()) > zygote.MAX_REPLICA_ID_BYTES or not is_name:
            raise ValueError(f"the replica id {replica!r} is taken, too long or no name")
        record = self._replicas[replica] = replicas.Replica(
            replica,
            revision,
            listeners=self._listeners,
            zygote_of=self._zygote_of,
            sweep=self._sweep,
            on_gone=self._on_gone,
            why_killed=self._why_killed,
            closed=self._rooms.closed,
        )
        try:
            await self._check(revision)
            await record.launch()
        except errors.AgentInvalid:
            del self._replicas[replica]
            record.gone.set()  # for a stop that came meanwhile
            raise
        self._watch_memory()

    async def _check(self, revision: contract.Revision) -> None:
        if not revision.snapshot.is_dir():
            raise errors.AgentInvalid(
                f"cannot start agent {revision.agent}: its snapshot {revision.snapshot} is gone; deploy the agent again"
            )
        if self._rooms.is_particular(revision):
            await asyncio.to_thread(self._rooms.check, revision)
        if revision.python is not None:
            await self._interpreters.check(revision.agent, revision.python)

    def _zygote_of(self, record: replicas.Replica) -> zygotes.Zygote:
        return self._zygote(record.revision, self._log_of(record))

    def _zygote(self, revision: contract.Revision, on_log: Callable[[str, str], None]) -> zygotes.Zygote:
        key = _key(revision)
        known = self._zygotes.get(key)
        if known is not None and known.is_usable():
            return known
        if known is not None:
            self._leaving.add(known)
        entry, room = self._envelope.entry(), self._rooms.room(revision)
        launch = zygotes.Launch(
            plan=zygote.Plan(
                _config(revision, is_closed=room.is_closed),
                revision.memory_mb,
                entry.groups,
                entry.cpus,
                room,
                tuple(revision.secrets),
            ),
            python=revision.python or interpreters.OWN,
            side=self._side,
            environment=zygotes.environment(revision, node_marker=self._marker) | self._rooms.environment(revision),
            import_deadline_s=self._import_deadline_s,
        )
        try:
            fresh = zygotes.Zygote(launch, on_log=on_log)
        except OSError as error:
            raise errors.AgentInvalid(f"cannot start agent {revision.agent} with {launch.python}: {error}") from error
        self._zygotes[key] = fresh
        return fresh

    async def keep_warm(self, revisions: Sequence[contract.Revision]) -> None:
        if self._is_closed:
            return
        gone, self._warm = self._warm, frozenset(map(_key, revisions))
        for key in gone - self._warm:
            self._retire_later(key)
        for revision in revisions:
            if _key(revision) in gone:
                continue  # once: where its import fails, it fails again
            with contextlib.suppress(errors.AgentInvalid):  # whoever starts a replica of it hears why
                await self._check(revision)
                self._zygote(revision, _unheard)

    def _log_of(self, record: replicas.Replica) -> Callable[[str, str], None]:
        """What a zygote says belongs to no replica; who asked for it first hears it, while there."""

        def on_log(stream: str, line: str) -> None:
            if record.id in self._replicas:
                record.log(stream, line)

        return on_log

    # --- use

    def invoke(self, replica: str, message: protocol.ToReplica) -> bool:
        record = self._replicas.get(replica)
        return record is not None and record.send(message)

    def observe(self) -> list[contract.Observation]:
        self._oom_kills.look(self._clock.monotonic_s())
        if self._group_kills is not None:
            self._group_kills.look(self._clock.monotonic_s())
        return [_observe(record) for record in self._replicas.values()]

    async def measure(self, *, enough_mb: float, each_mb: Mapping[str, float]) -> contract.Usage:
        pids = {
            record.id: record.pid for record in self._replicas.values() if record.pid is not None and record.lives()
        }
        zygotes = [each.pid for each in {*self._zygotes.values(), *self._leaving} if not each.gone.is_set()]

        def look() -> contract.Usage:
            held_mb = self._envelope.held_mb()
            return metering.look(pids, zygotes, enough_mb=enough_mb, each_mb=each_mb, group_mb=held_mb)

        return await asyncio.get_running_loop().run_in_executor(self._meter_thread, look)

    @property
    def limits(self) -> envelope.Limits:
        return self._envelope.limits

    @property
    def enforcement(self) -> envelope.Enforcement:
        return self._envelope.how

    @property
    def tier(self) -> isolation.Tier:
        return self._rooms.tier

    @property
    def spares(self) -> int:
        """How many interpreters are kept warm though no replica is forked from them."""
        return sum(not each.tenants and not each.gone.is_set() for each in self._zygotes.values())

    def drop_spares(self) -> int:
        """Let the interpreters go that no replica needs and nobody keeps warm; return how many that were."""
        idle = [(key, each) for key, each in self._zygotes.items() if not each.tenants and key not in self._warm]
        for key, each in idle:
            self._retire_if_idle(key, each)
        return len(idle)

    def _why_killed(self) -> str | None:
        """Return why the kernel may have killed a replica just now; None where somebody else did."""
        if self._group_kills is not None and self._group_kills.has_grown():
            most_mb = self._envelope.limits.memory_mb
            return f"the kernel killed it: all replicas together had come to cluster.memory_mb, {most_mb} MB"
        if self._oom_kills.has_grown():
            return "the kernel killed it: the machine, or the group it runs in, was out of memory"
        return None

    # --- end

    async def stop(self, replica: str, *, grace_s: float) -> None:
        record = self._replicas.get(replica)
        if record is None:
            return
        record.terminate()
        try:
            async with asyncio.timeout(grace_s):
                await record.gone.wait()
        except TimeoutError:
            record.kill("stopped", f"it did not leave within {grace_s:g} s and was killed")
            async with asyncio.timeout(_KILL_DEADLINE_S):
                await record.gone.wait()

    def kill(self, replica: str, reason: str, detail: str = "") -> None:
        record = self._replicas.get(replica)
        if record is not None:
            record.kill(reason, detail)

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        async with asyncio.TaskGroup() as ending:
            for replica in list(self._replicas):
                ending.create_task(self.stop(replica, grace_s=_CLOSE_GRACE_S))
        async with asyncio.TaskGroup() as ending:
            for each in {*self._zygotes.values(), *self._leaving}:
                ending.create_task(each.close())
        if self._memory_poll is not None:
            self._memory_poll.cancel()
        if self._descendants_look is not None:
            self._descendants_look.cancel()
        for looking in (self._memory_thread, self._meter_thread):
            looking.shutdown(wait=False, cancel_futures=True)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, processes.kill_marked, self._marker)
        await loop.run_in_executor(self._thread, self._envelope.close)
        await loop.run_in_executor(self._thread, self._rooms.close)
        self._thread.shutdown()

    async def _sweep(self, replica: str) -> None:
        self._fallen.append(replica)
        async with self._sweeping:
            if replica not in self._fallen:
                return  # the look before this one was for it, too
            fallen, self._fallen = self._fallen, []
            await asyncio.get_running_loop().run_in_executor(
                self._thread, processes.kill_replicas, self._marker, fallen
            )

    def _on_gone(self, record: replicas.Replica) -> None:
        del self._replicas[record.id]
        self._tidy(record)
        for key, each in self._zygotes.items():
            if not each.tenants:
                self._retire_later(key)

    def _tidy(self, record: replicas.Replica) -> None:
        """Remove the private folders of what is gone."""
        left = {each for each in self._leaving if each.gone.is_set() and not each.tenants}
        self._leaving -= left
        folders = [(each.home, "") for each in left]
        if record.home:
            folders.append((record.home, record.id))
        for home, name in folders:
            self._thread.submit(self._rooms.forget, home, name)

    def _retire_later(self, key: _Key) -> None:
        if (idle := self._zygotes.get(key)) is not None:
            asyncio.get_running_loop().call_later(IDLE_ZYGOTE_S, self._retire_if_idle, key, idle)

    def _retire_if_idle(self, key: _Key, idle: zygotes.Zygote) -> None:
        if self._zygotes.get(key) is idle and not idle.tenants and key not in self._warm:
            del self._zygotes[key]
            self._leaving.add(idle)
            idle.retire()

    # --- memory

    def _watch_memory(self) -> None:
        if self._limited() and self._memory_poll is None:
            self._memory_poll = asyncio.get_running_loop().call_later(MEMORY_POLL_S, self._poll_memory)

    def _limited(self) -> list[tuple[replicas.Replica, int]]:
        return [
            (record, record.revision.memory_mb)
            for record in self._replicas.values()
            if record.revision.memory_mb is not None
        ]

    def _poll_memory(self) -> None:
        """Look at each replica's own size, and have a thread look at what it has started, which may take longer."""
        self._memory_poll = None
        try:
            for record, limit_mb in self._limited():
                if record.pid is not None and (reading := processes.read(record.pid)) is not None:
                    _end_if_over(record, reading.rss_mb, limit_mb)
            if self._descendants_look is None or self._descendants_look.done():
                self._descendants_look = asyncio.get_running_loop().create_task(self._look_at_descendants())
        finally:
            self._watch_memory()

    async def _look_at_descendants(self) -> None:
        loop = asyncio.get_running_loop()
        for record, limit_mb in self._limited():
            pid = record.pid
            if pid is None or not record.lives():
                continue
            held_mb = await loop.run_in_executor(self._memory_thread, processes.held_mb, pid, limit_mb)
            if record.lives() and record.pid == pid:
                _end_if_over(record, held_mb, limit_mb)


def _unheard(stream: str, line: str) -> None:
    """What a zygote says that nobody has asked for yet belongs to no replica."""
    del stream, line


def _key(revision: contract.Revision) -> _Key:
    return revision.agent, revision.number, revision.snapshot, revision.interpreter


def _end_if_over(record: replicas.Replica, held_mb: float, limit_mb: int) -> None:
    if held_mb > limit_mb:
        record.kill("oom", f"it used {held_mb:.0f} MB, and memory_mb is {limit_mb}")


def _config(revision: contract.Revision, *, is_closed: bool) -> replica.Config:
    return replica.Config(
        replica="",
        agent=revision.agent,
        revision=revision.number,
        snapshot=str(revision.snapshot),
        factory=revision.factory,
        arguments=revision.arguments,
        concurrency=revision.concurrency,
        sessions=revision.sessions,
        retry_on=revision.retry_on,
        check=True,
        env=revision.env,
        secrets=tuple(revision.secrets),
        is_closed=is_closed,
    )


def _observe(record: replicas.Replica) -> contract.Observation:
    reading = processes.read(record.pid) if record.pid is not None else None
    return contract.Observation(
        replica=record.id,
        pid=record.pid,
        ready=record.is_ready,
        rss_mb=reading.rss_mb if reading else 0.0,
        cpu_s=reading.cpu_s if reading else 0.0,
    )


def _replica_side(data_dir: Path) -> Path:
    """Return a folder that holds this package only, so that nothing else comes onto an interpreter's path with it."""
    side = data_dir.resolve() / "replica-side"
    side.mkdir(parents=True, exist_ok=True)
    link, package = side / "greenroom", Path(greenroom.__file__).parent
    if link.is_dir() and not link.is_symlink():  # the data directory was copied, and links followed
        shutil.rmtree(link)
    if not link.is_symlink() or link.readlink() != package:
        draft = side / f".greenroom-{os.getpid()}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(package)
        draft.rename(link)
    return side
