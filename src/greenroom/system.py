"""`ProductionMultiAgentSystem`: the whole platform inside one Python program.

A node without a socket, and a client that speaks to its API in this process: requests are authenticated, validated and
stored as those from outside are. There is no second path. Rates are for others: what the program does with the owner's
key is not limited, and what it does with the keys that it gave to its callers is.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import httpx

from greenroom import errors, node, settings
from greenroom.core import rollouts
from greenroom.engine import snapshots
from greenroom.sdk.async_client import AsyncClient
from greenroom.sdk.models import Agent
from greenroom.store.deployments import Deployed

BY = "this program"
DEPLOY_TIMEOUT_S = 120.0
_SPEC_KEYS = frozenset(settings.AgentSettings.__struct_fields__)
_NO_MODULE = re.compile(r"No module named '(\w+)'")
_UNKNOWN = "unknown:unknown"  # in the place of a factory that cannot be had, to look at the rest


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to run. *folder* has its code; None: the system's own. *rollout* goes before the spec's for this time."""

    spec: settings.AgentSettings
    folder: Path | None = None
    rollout: settings.Rollout | None = None


Plan: TypeAlias = dict[str, Wanted]  # by the agents' names


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
        self._node.access.exempt(BY)

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

    async def create_token(
        self,
        name: str,
        *,
        role: str = "user",
        scopes: Sequence[str] | None = None,
        expires_in_s: float | None = None,
        tenant: str | None = None,
    ) -> str:
        """Return a new key for somebody with *role*: viewer, user, operator, admin, or one of the policy file's.

        *scopes* narrow it, for example ``["task:submit on agent:research"]``.
        """
        created = await self._client(self.token).create_key(
            name, role, scopes=scopes, expires_in_s=expires_in_s, tenant=tenant
        )
        assert created.key is not None, "a new key comes with its text"
        return created.key

    async def deploy_agents(self, configs: Sequence[Mapping[str, Any]], *, strategy: str | None = None) -> list[Agent]:
        """Deploy agents and wait until their new revisions serve everything, however long their rollouts take.

        *strategy* ("rolling", "blue-green" or "canary") goes before what their ``rollout`` says.

        Each config has a ``name``, an ``agent_class`` (or factory function, defined at the top level of a module or of
        the running script) or a ``factory`` ("module:attribute"), any key of the manifest's agent table, and whatever
        else the class is to be called with. Raises `errors.SettingsInvalid` with every mistake in *configs* and
        `errors.Conflict` over ``cluster.max_replicas``, both before anything is deployed, and `errors.AgentInvalid`
        with every agent that cannot run, and why.
        """
        started = self._started()
        plan = _read_all(configs, strategy)
        for name, wanted in plan.items():
            started.deployments.check_bounds(name, wanted.spec)
        await self._check_room(started, plan)
        await self._check_folders(started, plan)
        begun = {
            name: await started.deploy(name, each.spec, by=BY, folder=each.folder, rollout=each.rollout)
            for name, each in plan.items()
        }
        wrong = []
        for name, each in begun.items():
            if (reason := await self._outcome(started, name, each)) is not None:
                wrong.append(f"{name}: {_explained(reason)}")
        if wrong:
            raise errors.AgentInvalid("cannot deploy " + "; ".join(wrong))
        return [await self._client(self.token).agent(name) for name in plan]

    async def _outcome(self, started: node.Node, name: str, begun: Deployed) -> str | None:
        """Wait until the rollout has ended and the agent is settled; return what is wrong, if something is."""
        rollout = await started.rollout_at_rest(begun.rollout)
        if rollout.state.is_open:
            return f"rollout {rollout.id} is paused: {rollout.reason}"
        if rollout.phase != rollouts.Phase.COMPLETE and begun.is_under_way:
            return rollout.reason
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEPLOY_TIMEOUT_S):
                await started.host.settled.wait()  # where nothing was begun, its replicas may still be on their way
        agent = await self._client(self.token).agent(name)
        return None if agent.state == "ready" else agent.reason or ""

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

    async def _check_room(self, started: node.Node, plan: Plan) -> None:
        await started.store.directory.refresh()
        entries = [entry for name, entry in started.store.directory.entries.items() if name not in plan]
        # Where replicas are scaled automatically the agents share them, and only their minimums are taken.
        others = sum(
            min(entry.agent.replicas, entry.spec.scaling.min_replicas)
            if self.settings.cluster.autoscaling
            else entry.agent.replicas
            for entry in entries
        )
        wanted = sum(each.spec.scaling.min_replicas for each in plan.values())
        most = self.settings.cluster.max_replicas
        if others + wanted > most:
            raise errors.Conflict(
                f"cannot deploy {len(plan)} agents: {others} replicas of other agents and {wanted} of these are more "
                f"than cluster.max_replicas ({most})"
            )

    async def _check_folders(self, started: node.Node, plan: Plan) -> None:
        """Take each snapshot once before the first is deployed: what cannot be taken stops them all."""
        needed = {(each.folder or started.options.folder, each.spec.include) for each in plan.values()}
        for folder, include in needed:
            await asyncio.to_thread(snapshots.take, folder, include=include, into=self._data_dir / "snapshots")

    def _started(self) -> node.Node:
        if self._node is None:
            raise errors.StartRefused("cannot use the system: it is not started; use `async with`, or await start()")
        return self._node

    def _client(self, token: str) -> AsyncClient:
        app = self._started().app
        if token not in self._clients:
            transport = httpx.ASGITransport(app=app, client=(BY, 0))
            self._clients[token] = AsyncClient("http://greenroom.internal", token, transport=transport)
        return self._clients[token]


def _explained(reason: str) -> str:
    """Add to *reason* where this program has the module from that a replica has not found."""
    found = _NO_MODULE.search(reason)
    module = sys.modules.get(found[1]) if found else None
    place = next(iter(getattr(module, "__path__", ())), None) or getattr(module, "__file__", None)
    if place is None:
        return reason
    folder = Path(place).parent
    why = f"{reason}; this program has it from {folder}, and a replica only what is in its folder or installed"
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or folder).resolve()
    if Path(place) in script.parents:
        name = ".".join(script.relative_to(folder).with_suffix("").parts)
        return f"{why}: run the script as a part of its package, `python -m {name}` in {folder}"
    return f"{why}: put it there, or install it"


def _read_all(configs: Sequence[Mapping[str, Any]], strategy: str | None) -> Plan:
    """Read every config; raises `settings.SettingsInvalid` with all that is wrong in any of them."""
    plan: Plan = {}
    problems: list[tuple[str, str]] = []
    for place, config in enumerate(configs):
        name = config.get("name")
        if not isinstance(name, str):
            problems.append((f"configs[{place}].name", "is missing; expected the agent's name"))
        elif name in plan:
            problems.append((f"configs[{place}].name", f"{name!r} stands twice; each agent has one config"))
        else:
            plan[name] = _read(name, config, problems, strategy=strategy)
    if problems:
        raise settings.SettingsInvalid(settings.Problem(*problem) for problem in problems)
    return plan


def _read(name: str, config: Mapping[str, Any], problems: list[tuple[str, str]], *, strategy: str | None) -> Wanted:
    """Return what *config* wants; adds to *problems*."""
    given = {key: value for key, value in config.items() if key in _SPEC_KEYS}
    extra = {key: value for key, value in config.items() if key not in {*_SPEC_KEYS, "name", "agent_class"}}
    arguments = given.get("arguments") or {}
    if extra and isinstance(arguments, Mapping):
        given["arguments"] = {**arguments, **extra}
    folder, agent_class = None, config.get("agent_class")
    if agent_class is not None:
        if given.get("factory") is not None:
            problems.append((f"agents.{name}.agent_class", "stands beside factory; give one of the two"))
        try:
            given["factory"], folder = _reference(agent_class)
        except ValueError as error:
            problems.append((f"agents.{name}.agent_class", str(error)))
            given["factory"] = _UNKNOWN
    try:
        spec = settings.parse_agent(name, given)
        return Wanted(spec, folder, settings.rollout_for_once(name, given, strategy=strategy))
    except settings.SettingsInvalid as error:
        problems.extend(error.problems)
        return Wanted(settings.AgentSettings(factory=_UNKNOWN))


def _reference(agent_class: Any) -> tuple[str, Path]:
    """Return the factory reference of a class or function, and the folder to snapshot; raises ValueError."""
    qualified = getattr(agent_class, "__qualname__", None)
    module = sys.modules.get(getattr(agent_class, "__module__", ""))
    if qualified is None or module is None or "<" in qualified:
        raise ValueError(f"expected a class or function defined at the top level of a module, got {agent_class!r}")
    try:
        file = Path(inspect.getfile(module)).resolve()
    except (TypeError, OSError):
        raise ValueError(f"{qualified} is defined interactively; put it into a file that replicas can import") from None
    if not file.is_file():
        raise ValueError(
            f"{qualified} comes from {file.name}, and replicas import files only: a script that is read from standard"
            " input has none; save it as a file and run that"
        )
    if module.__name__ == "__main__" and getattr(module, "__spec__", None) is None:
        return f"{file.name}:{qualified}", file.parent
    name = module.__spec__.name if module.__name__ == "__main__" and module.__spec__ else module.__name__
    depth = name.count(".") + (file.name == "__init__.py")
    return f"{name}:{qualified}", file.parents[depth]
