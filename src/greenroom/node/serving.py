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
from greenroom import errors, settings, telemetry
from greenroom.api import connections
from greenroom.node import tls
from greenroom.node.composition import Node, Options, make_private_folder
from greenroom.security import secret_file

SHUTDOWN_TIMEOUT_S = 5.0  # of a connection with TLS, whose peer may never answer


@contextlib.asynccontextmanager
async def listening(node: Node) -> AsyncIterator[str]:
    """Serve *node*'s API on its address for the length of the block; the value is its URL.

    Raises `errors.StartRefused` if the address is taken, the certificate cannot be used, or there is none where others
    than this machine could listen.
    """
    certificate = _certificate(node)
    listener = _bind(node.options.host, node.options.port)
    config = uvicorn.Config(
        node.app,
        http=connections.limited_to(
            node.options.settings.cluster.max_connections,
            emit=node.facts.emit,
            is_spared=node.services.sources.speaks_for_many,
        ),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # or callers could choose the source that their rejected keys are counted against
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    config.load()
    server = _Server(config)
    url = node.url = _url(listener, is_tls=certificate is not None)
    place = node.options.data_dir / "node.json"

    def write_down() -> None:
        found: dict[str, object] = {"url": url, "pid": os.getpid()}
        if certificate is not None:
            found["certificate"] = certificate.pem
        secret_file.write_private(place, msgspec.json.encode(found))

    watching = []
    if certificate is not None:
        config.ssl = certificate.context
        certificate.on_change = write_down
        node.certificate = certificate
        watching = [asyncio.create_task(certificate.watch(), name="greenroom-certificate")]
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="greenroom-http")
    write_down()
    try:
        yield url
    finally:
        place.unlink(missing_ok=True)
        for task in watching:
            task.cancel()
        node.services.stopping.set()
        server.should_exit = True
        await serving


async def serve(options: Options, *, on_ready: Callable[[Node], None]) -> None:
    """Run a node until SIGTERM or SIGINT; *on_ready* is called once every agent is ready or settled as failed.

    The first signal drains; a second one ends what still runs at once. SIGHUP has a node with TLS look at its
    certificate; one without drains: its terminal has gone, unless `nohup` said that this is nothing to it.
    """
    stop = asyncio.Event()
    hurry = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    os.umask(0o077)  # whatever this process ever writes is its user's alone
    make_private_folder(options.data_dir)
    node = Node(options, clocks.SystemClock())
    node.services.ask_to_stop = stop.set
    if tls.files_of(options.settings.security, options.folder) is not None:
        loop.add_signal_handler(signal.SIGHUP, node.look_at_certificate)
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, end)
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
    """uvicorn without its signal handlers, the node has its own; and with handshakes in as little time as heads."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop, config = asyncio.get_running_loop(), self.config
        is_tls = config.ssl is not None
        self.servers = [
            await loop.create_server(
                lambda: config.http_protocol_class(config=config, server_state=self.server_state, app_state={}),  # type: ignore[call-arg]
                sock=listener,
                backlog=config.backlog,
                ssl=config.ssl,
                ssl_handshake_timeout=connections.HEAD_TIMEOUT_S if is_tls else None,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S if is_tls else None,
            )
            for listener in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _certificate(node: Node) -> tls.Certificate | None:
    """Return what the node shows; None: it speaks plain HTTP, and with this machine alone."""
    security, host = node.options.settings.security, node.options.host
    files = tls.files_of(security, node.options.folder)
    if files is not None:
        return tls.Certificate(files, node.clock, node.facts.emit)
    if not settings.is_loopback(host):
        raise errors.StartRefused(
            f"cannot listen on {host} without TLS: others could read along; set security.tls, tls_certificate and "
            "tls_key, or listen on 127.0.0.1 behind a TLS proxy on this machine"
        )
    return None


def _url(listener: socket.socket, *, is_tls: bool) -> str:
    """Return where this machine reaches it: an address that stands for all is none to go to."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound here
    return f"{'https' if is_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


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
