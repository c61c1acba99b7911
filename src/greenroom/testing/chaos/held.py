"""The process that holds a fault and undoes it: ``python -m greenroom.testing.chaos.held``.

It reads one `Order` from its standard input, injects the fault, says so with a line on its standard output, and undoes
it when its time is over, when its victim is gone, or when its standard input ends: a ``greenroom chaos`` that was
killed leaves nothing stopped, full or locked behind. `nemesis` starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from greenroom import errors
from greenroom.testing.chaos import processes
from greenroom.testing.chaos.processes import NotInjectable

HELD = b"held\n"
_PAGE_BYTES = 4096


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """*pid* and *started* say which process, *store* which database: a file's path, or a ``postgresql://`` URL."""

    kind: str
    hold_s: float
    pid: int = 0
    started: str = ""
    store: str = ""
    pulse_s: float = 0.5


async def main() -> int:
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), over.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    try:
        async with _injected(order, over):
            sys.stdout.buffer.write(HELD)
            sys.stdout.buffer.flush()
            await _within(order.hold_s, over)
    except (NotInjectable, errors.GreenroomError) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


async def _within(delay_s: float, over: asyncio.Event) -> bool:
    """Wait; return whether it is *over* before."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await over.wait()
    return over.is_set()


def _injected(order: Order, over: asyncio.Event) -> contextlib.AbstractAsyncContextManager[None]:
    match order.kind:
        case "stop":
            return _stopped(order, over)
        case "slow":
            return _slowed(order, over)
        case "disk-full":
            return _disk_full(order)
        case "lock":
            return _locked(order.store)
        case _:
            raise NotInjectable(f"there is no fault named {order.kind}")


@contextlib.asynccontextmanager
async def _stopped(order: Order, over: asyncio.Event) -> AsyncIterator[None]:
    with processes.held(order.pid, started=order.started) as pidfd:
        asyncio.get_running_loop().add_reader(pidfd, over.set)  # it is gone: found to hang, and killed
        processes.send(pidfd, signal.SIGSTOP)
        try:
            yield
        finally:
            processes.send(pidfd, signal.SIGCONT)


@contextlib.asynccontextmanager
async def _slowed(order: Order, over: asyncio.Event) -> AsyncIterator[None]:
    """Stopped for most of the time, never for longer than *pulse_s*."""

    async def pulse(pidfd: int) -> None:
        while not over.is_set():
            processes.send(pidfd, signal.SIGSTOP)
            await _within(order.pulse_s, over)
            processes.send(pidfd, signal.SIGCONT)
            await _within(order.pulse_s / 4, over)

    with processes.held(order.pid, started=order.started) as pidfd:
        asyncio.get_running_loop().add_reader(pidfd, over.set)
        pulsing = asyncio.create_task(pulse(pidfd))
        try:
            yield
        finally:
            over.set()
            await pulsing


@contextlib.asynccontextmanager
async def _disk_full(order: Order) -> AsyncIterator[None]:
    """Let no file that the node writes be longer than a page: its store cannot, and every other process can.

    Python ignores SIGXFSZ, so that whoever writes sees EFBIG, an error as that of a full disk.
    """
    with processes.held(order.pid, started=order.started):
        before, hard = resource.prlimit(order.pid, resource.RLIMIT_FSIZE)
        if before == _PAGE_BYTES:  # of a holder that was killed
            before = hard
        resource.prlimit(order.pid, resource.RLIMIT_FSIZE, (_PAGE_BYTES, hard))
        try:
            yield
        finally:
            # What the node started meanwhile has inherited it.
            alive = [order.pid] if processes.start_of(order.pid) == order.started else []
            for pid in (*alive, *processes.descendants(order.pid)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                    if soft == _PAGE_BYTES:
                        resource.prlimit(pid, resource.RLIMIT_FSIZE, (before, hard))


@contextlib.asynccontextmanager
async def _locked(store: str) -> AsyncIterator[None]:
    if "://" in store:
        from greenroom.store import postgres

        async with postgres.holding_lock(store):
            yield
        return
    from greenroom.store import sqlite

    with sqlite.holding_lock(Path(store)):
        yield


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
