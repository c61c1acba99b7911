"""Serving a node: its socket, its signals, and when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import msgspec
import uvicorn

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.api import connections
from greenroom.node.composition import Node, Options, make_private_folder
from greenroom.security import secret_file


@contextlib.asynccontextmanager
async def listening(node: Node) -> AsyncIterator[str]:
    """Serve *node*'s API on its address for the length of the block; the value is its URL.

    Raises `errors.StartRefused` if the address is taken.
    """
    listener = _bind(node.options.host, node.options.port)
    config = uvicorn.Config(
        node.app,
        http=connections.limited_to(node.options.settings.cluster.max_connections),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # or callers could choose the source that their rejected keys are counted against
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    host, port = listener.getsockname()[:2]
    url = node.url = f"http://{host}:{port}"
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="greenroom-http")
    place = node.options.data_dir / "node.json"
    secret_file.write_private(place, msgspec.json.encode({"url": url, "pid": os.getpid()}))
    try:
        yield url
    finally:
        place.unlink(missing_ok=True)
        node.services.stopping.set()
        server.should_exit = True
        await serving


async def serve(options: Options, *, on_ready: Callable[[Node], None]) -> None:
    """Run a node until SIGTERM or SIGINT; *on_ready* is called once every agent is ready or settled as failed.

    The first signal drains; a second one ends what still runs at once.
    """
    stop = asyncio.Event()
    hurry = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: hurry.set() if stop.is_set() else stop.set())
    os.umask(0o077)  # whatever this process ever writes is its user's alone
    make_private_folder(options.data_dir)
    node = Node(options, clocks.SystemClock())
    node.services.ask_to_stop = stop.set
    cluster = options.settings.cluster
    log = telemetry.Log(level=cluster.log_level, as_json=cluster.json_logs)
    log.hear_libraries()
    node.facts.subscribe(log, *telemetry.Log.KINDS)
    try:
        await node.start()
        async with listening(node):
            await until_stopped(node, stop, on_ready)
            node.services.stopping.set()
            await _stop_within(node, hurry)
    except BaseException:
        await node.stop(grace_s=0)
        raise


async def until_stopped(node: Node, stop: asyncio.Event, on_ready: Callable[[Node], None]) -> None:
    """Call *on_ready* when *node* is; return when *stop* is set, raise what ended its loops."""

    async def announce() -> None:
        await node.ready.wait()
        await node.store.directory.refresh()  # whoever is told looks at the agents' states
        node.facts.emit(telemetry.NodeChanged(node.id, "ready", node.url))
        on_ready(node)
        await stop.wait()

    waiting = [asyncio.create_task(wait) for wait in (stop.wait(), node.ended(), announce())]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in waiting:
            task.cancel()


async def _stop_within(node: Node, hurry: asyncio.Event) -> None:
    stopping = asyncio.create_task(node.stop())
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait([stopping, hurrying], return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        node.host.hurry()
    await stopping
    hurrying.cancel()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the node has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise errors.StartRefused(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port (0 for any free one)"
        ) from None
    listener.listen(2048)
    listener.setblocking(False)  # noqa: FBT003 - the socket module's own
    return listener
