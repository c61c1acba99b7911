"""`ProductionMultiAgentSystem`: the whole platform inside one Python program.

A node without a socket, and a client that speaks to its API in this process: requests are authenticated, validated and
stored as those from outside are. There is no second path.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from greenroom import errors, node, settings
from greenroom.sdk.async_client import AsyncClient
from greenroom.sdk.models import Agent

DEPLOY_TIMEOUT_S = 120.0
_SPEC_KEYS = frozenset(settings.AgentSettings.__struct_fields__)


class ProductionMultiAgentSystem:
    """Deploy agents, submit requests, read the status, shut down.

    *data_dir* keeps the store and the keys between runs. Use it with ``async with``, or call `start` and `shutdown`.
    """

    def __init__(
        self,
        environment: str = "development",
        *,
        data_dir: str | Path = ".greenroom",
        store_url: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        """Validate everything at once; raises `errors.SettingsInvalid`. *overrides* has the manifest's shape."""
        self.settings = settings.load(overrides={**(overrides or {}), "environment": environment}, environ=os.environ)
        self._data_dir, self._store_url = Path(data_dir).absolute(), store_url
        self._stack = contextlib.AsyncExitStack()
        self._node: node.Node | None = None
        self._clients: dict[str, AsyncClient] = {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def start(self) -> None:
        """Open the store and start the loops; raises `errors.StartRefused` with what is in the way."""
        if "__greenroom_main__" in sys.modules:  # a replica imports the script for its agents
            raise errors.StartRefused(
                "cannot start a system while a replica imports this script: "
                'put what runs under `if __name__ == "__main__":`, as multiprocessing asks for'
            )
        options = node.Options(
            settings=self.settings, folder=Path.cwd(), data_dir=self._data_dir, store_url=self._store_url
        )
        self._node = await self._stack.enter_async_context(node.opened(options))

    async def shutdown(self) -> None:
        """Let running tasks end, hand back the rest, stop every replica."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()
        self._node = None
        await self._stack.aclose()

    @property
    def token(self) -> str:
        """The owner's key, minted at first start."""
        return (self._data_dir / "local.key").read_text().strip()

    async def create_token(self, name: str, *, role: str = "user") -> str:
        """Return a new key for somebody with *role*: viewer, user, operator or admin."""
        created = await self._client(self.token).create_key(name, role)
        assert created.key is not None, "a new key comes with its text"
        return created.key

    async def deploy_agents(self, configs: Sequence[Mapping[str, Any]]) -> list[Agent]:
        """Deploy agents and wait until they are ready.

        Each config has a ``name``, an ``agent_class`` (or factory function, defined at the top level of a module or of
        the running script) or a ``factory`` ("module:attribute"), any key of the manifest's agent table, and whatever
        else the class is to be called with. Raises `errors.AgentInvalid` with every agent that cannot run, and why.
        """
        started = self._started()
        for config in configs:
            name, spec, folder = _read(config)
            await started.deploy(name, spec, folder=folder)
        names = [config["name"] for config in configs]
        try:
            async with asyncio.timeout(DEPLOY_TIMEOUT_S):
                await started.host.settled.wait()
        except TimeoutError:
            pass  # the states below say which agent is late
        agents = [await self._client(self.token).agent(name) for name in names]
        wrong = [f"{agent.name}: {agent.reason}" for agent in agents if agent.state != "ready"]
        if wrong:
            raise errors.AgentInvalid("cannot deploy " + "; ".join(wrong))
        return agents

    async def process_request(self, token: str, request: Any, **options: Any) -> dict[str, Any]:
        """Submit *request* as who *token* proves; without ``agent=`` it is routed by its text.

        *options* are those of `AsyncClient.submit`. Return ``task_id``, the ``agent`` and the ``state``.
        """
        task = await self._client(token).submit(request, **options)
        return {"task_id": task.id, "agent": task.agent, "state": task.state}

    async def result(self, task_id: str, *, timeout_s: float = 300.0, token: str | None = None) -> Any:
        """Return the task's output; raises `errors.TaskFailed`, or `errors.TaskPending` after *timeout_s*."""
        return await self._client(token or self.token).result(task_id, timeout_s=timeout_s)

    async def get_system_status(self, token: str | None = None) -> dict[str, Any]:
        """Return what ``GET /v1/status`` says."""
        return await self._client(token or self.token).status()

    def client(self, token: str | None = None) -> AsyncClient:
        """Return a client for everything else that the API offers."""
        return self._client(token or self.token)

    def _started(self) -> node.Node:
        if self._node is None:
            raise errors.StartRefused("cannot use the system: it is not started; use `async with`, or await start()")
        return self._node

    def _client(self, token: str) -> AsyncClient:
        app = self._started().app
        if token not in self._clients:
            transport = httpx.ASGITransport(app=app)
            self._clients[token] = AsyncClient("http://greenroom.internal", token, transport=transport)
        return self._clients[token]


def _read(config: Mapping[str, Any]) -> tuple[str, settings.AgentSettings, Path | None]:
    """Split a config into the agent's name, its spec, and the folder of its code (None: the system's own)."""
    rest = dict(config)
    name, agent_class = rest.pop("name", None), rest.pop("agent_class", None)
    if not isinstance(name, str):
        raise errors.SettingsInvalid(f"cannot deploy an agent without a name: {sorted(config)}")
    folder = None
    if agent_class is not None:
        rest["factory"], folder = _reference(agent_class)
    spec = {key: value for key, value in rest.items() if key in _SPEC_KEYS}
    extra = {key: value for key, value in rest.items() if key not in _SPEC_KEYS}
    if extra:
        spec["arguments"] = {**spec.get("arguments", {}), **extra}
    return name, settings.parse_agent(name, spec), folder


def _reference(agent_class: Any) -> tuple[str, Path]:
    """Return the factory reference of a class or function, and the folder to snapshot."""
    qualified = getattr(agent_class, "__qualname__", None)
    module = sys.modules.get(getattr(agent_class, "__module__", ""))
    if qualified is None or module is None or "<" in qualified:
        raise errors.AgentInvalid(
            f"cannot deploy {agent_class!r}: give a class or function defined at the top level of a module"
        )
    try:
        file = Path(inspect.getfile(module)).resolve()
    except (TypeError, OSError):
        raise errors.AgentInvalid(
            f"cannot deploy {qualified}: it is defined interactively; put it into a file that replicas can import"
        ) from None
    if module.__name__ == "__main__" and getattr(module, "__spec__", None) is None:
        return f"{file.name}:{qualified}", file.parent
    name = module.__spec__.name if module.__name__ == "__main__" and module.__spec__ else module.__name__
    depth = name.count(".") + (file.name == "__init__.py")
    return f"{name}:{qualified}", file.parents[depth]
