"""`greenroom chaos`: faults on one's own node, and whether anything was lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from greenroom import errors, strict_json
from greenroom.cli import chaos_report, options, render

if TYPE_CHECKING:
    from greenroom.sdk.async_client import AsyncClient
    from greenroom.testing.chaos import judging
    from greenroom.testing.chaos.campaign import Campaign
    from greenroom.testing.chaos.target import Target

KINDS = {
    "kill": "kill a replica (SIGKILL)",
    "stop": "stop a replica for some seconds (SIGSTOP), so that it hangs",
    "slow": "stop and continue a replica in short pulses",
    "poison": "submit a task that kills whatever runs it",
    "disk-full": "let the node's process write nothing to its store, for at most 3 s",
    "lock": "keep the store locked, for at most 10 s",
}
FAULT_EVERY_S = 4.0
RATE_PER_S = 20.0
REPLICAS = 3
LONGEST_S = 24 * 3600.0

Word = Annotated[str | None, Parameter(allow_leading_hyphen=True)]


def chaos(
    *,
    agent: str | None = None,
    input: Word = None,
    poison: Word = None,
    for_: Annotated[str, Parameter(name="--for")] = "60s",
    rate: str | None = None,
    tasks: int | None = None,
    faults: str | None = None,
    seed: int | None = None,
    store: str | None = None,
    yes: Annotated[bool, Parameter(show_default=False)] = False,
    in_production: Annotated[bool, Parameter(show_default=False)] = False,
    given: options.Options = options.DEFAULT,
) -> int:
    """Inject faults into the node that runs here, under load, and report whether anything was lost.

    Exits with 0 if nothing was lost and everything planned was done, else with 1.

    Parameters
    ----------
    agent
        Give the tasks to this agent of yours; without it, to one that is deployed for the time and removed again.
    input
        The input of its tasks, as JSON.
    poison
        An input that kills its replica, as JSON: without one, an agent of yours gets no poison.
    for_
        How long: 30s, 5m, 1h.
    rate
        Tasks a second: 20/s.
    tasks
        How many tasks in all, instead of a rate.
    faults
        Which, with commas between; all that can be injected here: kill,stop,slow,poison,disk-full,lock.
    seed
        Makes the same schedule and the same tasks again.
    store
        What the node was started with, as --store: else the lock is only of the data directory's SQLite file.
    yes
        Do not ask.
    in_production
        Needed, with --yes, where the node's environment is production.
    """
    for_s = seconds(for_)
    asked = Asked(
        agent=agent,
        input=_json("--input", input),
        poison=_json("--poison", poison),
        for_s=for_s,
        tasks=_count(tasks, rate, for_s),
        kinds=_kinds(faults),
        seed=secrets.randbelow(2**31) if seed is None else seed,
        store=store,
        yes=yes,
        in_production=in_production,
    )
    if agent is None and (input is not None or poison is not None):
        raise options.Usage("cannot begin: --input and --poison are for an agent of yours; name it with --agent")
    if agent is not None and input is None:
        raise options.Usage(f"cannot begin: agent {agent} needs the input of its tasks; give it with --input JSON")
    try:
        report = asyncio.run(_run(asked, given))
    except asyncio.CancelledError:  # by SIGTERM
        raise KeyboardInterrupt from None
    if given.json:
        render.json({"passed": report.passed, "report": report})
    else:
        chaos_report.show(report)
    return 0 if report.passed else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the words of the command line mean; *kinds* None: all that can be injected."""

    agent: str | None
    input: Any
    poison: Any
    for_s: float
    tasks: int
    kinds: tuple[str, ...] | None
    seed: int
    store: str | None
    yes: bool
    in_production: bool


def seconds(text: str) -> float:
    """Return *text*, as ``90``, ``90s``, ``5m`` or ``1h``, in seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    value = 0.0 if match is None else float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
    if not 1 <= value <= LONGEST_S:
        raise options.Usage(f"cannot run for {text!r}: give a time from 1s to 24h, as 30s or 5m")
    return value


def _count(tasks: int | None, rate: str | None, for_s: float) -> int:
    if tasks is not None and rate is not None:
        raise options.Usage("cannot begin: give --rate or --tasks, not both")
    if tasks is None:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/s)?", (rate or f"{RATE_PER_S:g}/s").strip())
        if match is None:
            raise options.Usage(f"cannot take the rate {rate!r}: give tasks a second, as 20/s")
        tasks = round(float(match[1]) * for_s)
    if not 1 <= tasks <= 10_000_000:
        raise options.Usage(f"cannot submit {tasks} tasks: at least one, and at most ten millions")
    return tasks


def _kinds(faults: str | None) -> tuple[str, ...] | None:
    if faults is None:
        return None
    kinds = tuple(word.strip() for word in faults.split(",") if word.strip())
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise options.Usage(f"cannot inject {', '.join(unknown)}: the faults are {', '.join(KINDS)}")
    return kinds


def _json(option: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return strict_json.loads(text.encode("utf-8", "surrogateescape"))
    except errors.JsonRefused as error:
        raise options.Usage(f"cannot read {option}: {error}; text is JSON in quotes, as '\"hello\"'") from None


async def _run(asked: Asked, given: options.Options) -> judging.Report:
    from greenroom.sdk import async_client, discovery
    from greenroom.testing.chaos import campaign, target

    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    data_dir = discovery.data_dir(given.data_dir).resolve()
    async with async_client.AsyncClient(given.url, data_dir=data_dir, timeout_s=10.0) as client:
        status = await client.status()
        has_poison = asked.agent is None or asked.poison is not None
        found = target.look(status, data_dir=data_dir, url=client.url, store=asked.store, has_poison=has_poison)
        hang_after_s = await _hang_after_s(client, asked.agent)
        # Where the node runs here, so did who named them.
        left = () if asked.agent is not None or "kill" in found.unavailable else _left_behind(status)
        replicas = await _replicas(client, status, asked.agent, besides=left)
        _announce(asked, found, status, replicas)
        await _confirm(asked, status)
        for name in left:
            await campaign.remove(client, name)
            render.say(f"{name} is removed: a run that was killed had left it behind")
        with tempfile.TemporaryDirectory(prefix="greenroom-chaos-") as folder:
            Path(folder).chmod(0o733)  # noqa: ASYNC240 - at once; the agent may be another user
            ledger = Path(folder) / "ledger"
            async with _agent(client, asked.agent, replicas, ledger.parent) as agent:
                prepared = _campaign(asked, client, found, agent, ledger=ledger, hang_after_s=hang_after_s)
                return await _carried_out(prepared, found, hang_after_s)


@contextlib.asynccontextmanager
async def _agent(client: AsyncClient, named: str | None, replicas: int, writes: Path) -> AsyncIterator[str]:
    from greenroom.testing.chaos import campaign

    if named is not None:
        yield named
        return
    name = f"chaos-{os.getpid()}-{secrets.token_hex(2)}"
    async with campaign.deployed(client, name, replicas=replicas, writes=writes):
        yield name


def _campaign(
    asked: Asked, client: AsyncClient, found: Target, agent: str, *, ledger: Path, hang_after_s: float
) -> Campaign:
    from greenroom.testing.chaos import campaign, load, schedule, target

    kinds = target.available(asked.kinds, found)
    count = max(len(kinds), round(asked.for_s / FAULT_EVERY_S)) if kinds else 0
    holds_s = target.holds_s(hang_after_s)
    faults = schedule.plan(asked.seed, for_s=asked.for_s, kinds=kinds, count=count, holds_s=holds_s)
    plan = campaign.Plan(
        name=f"chaos-{secrets.token_hex(4)}", seed=asked.seed, for_s=asked.for_s, tasks=asked.tasks, faults=faults
    )
    if asked.agent is None:
        return campaign.Campaign(client, plan, load.BuiltIn(agent, str(ledger)), ledger)
    return campaign.Campaign(client, plan, load.Given(agent, asked.input, asked.poison), None)


async def _carried_out(prepared: Campaign, found: Target, hang_after_s: float) -> judging.Report:
    from greenroom.testing.chaos import nemesis

    local = nemesis.LocalFaults(
        prepared.client,
        agents={prepared.recipe.agent},
        node_pid=found.node_pid,
        store=found.store,
        hang_after_s=hang_after_s,
        poison=None if "poison" in found.unavailable else prepared.load.poison,
    )
    showing = asyncio.create_task(_show_progress(prepared))
    try:
        return await prepared.run(local.injectors(), unavailable=found.unavailable)
    finally:
        showing.cancel()
        await asyncio.wait([showing])


async def _hang_after_s(client: AsyncClient, agent: str | None) -> float:
    """After what time a replica that does nothing is hung, as its agent's spec says."""
    from greenroom.testing.chaos import target

    shown = {} if agent is None else (await client.agent(agent)).spec or {}
    return float(shown.get("hang_after_s", target.HANG_AFTER_S))


def _left_behind(status: Mapping[str, Any]) -> Sequence[str]:
    """Return the agents of runs on this machine that were killed before they could remove them."""
    found = [
        (each["name"], re.fullmatch(r"chaos-(\d+)-[0-9a-f]{4}", each["name"])) for each in status.get("agents", ())
    ]
    return [name for name, match in found if match is not None and not Path(f"/proc/{match[1]}").exists()]


async def _replicas(
    client: AsyncClient, status: Mapping[str, Any], agent: str | None, *, besides: Collection[str]
) -> int:
    """How many replicas the tasks have: the agent's own, or as many as may still be started, at most three."""
    if agent is not None:
        return (await client.agent(agent)).replicas.desired
    wanted = sum(int(each["replicas"]["desired"]) for each in status.get("agents", ()) if each["name"] not in besides)
    room = int(status["replicas"]["limit"]) - wanted
    if room < 1:
        raise errors.Conflict(
            f"cannot deploy an agent for the time: {wanted} replicas are wanted already, and cluster.max_replicas is "
            f"{status['replicas']['limit']}; raise it, or name an agent of yours with --agent"
        )
    return min(REPLICAS, room)


# Before


def _announce(asked: Asked, found: Target, status: Mapping[str, Any], replicas: int) -> None:
    from greenroom.testing.chaos import target

    whose = f"agent {asked.agent}" if asked.agent is not None else "an agent that is deployed for the time"
    render.say(
        f"on the node at {found.url} ({status['environment']}): {asked.tasks} tasks in {render.span(asked.for_s)} "
        f"for {whose} ({replicas} replicas), and meanwhile, again and again:"
    )
    for kind in target.available(asked.kinds, found):
        why = found.unavailable.get(kind)
        render.say(f"  {kind}: {KINDS[kind] if why is None else f'cannot be injected: {why}'}")
    for kind in KINDS if asked.kinds is None else ():
        if kind in found.unavailable:
            render.say(f"  not {kind}: {found.unavailable[kind]}")
    if asked.agent is not None:
        render.say(f"what agent {asked.agent} does outside happens, more than once where a task runs again")
    render.say(f"every fault is undone by itself; seed {asked.seed}")


async def _confirm(asked: Asked, status: Mapping[str, Any]) -> None:
    if status["environment"] == "production" and not (asked.yes and asked.in_production):
        raise options.Usage(
            "cannot begin: this node's environment is production, and its users will notice; "
            "if that is meant, give --yes --in-production"
        )
    if asked.yes:
        return
    if not sys.stdin.isatty():
        raise options.Usage("cannot begin: nobody can be asked here; give --yes if that is meant")
    answer = await asyncio.to_thread(input_line, "go on? [y/N] ")
    if answer.strip().lower() not in ("y", "yes"):
        raise errors.Conflict("cannot begin: it was not confirmed; nothing was done")


def input_line(question: str) -> str:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline()


# Meanwhile


async def _show_progress(prepared: Campaign) -> None:
    """One line on a terminal, which changes; nothing elsewhere."""
    console = render.err()
    if not console.is_terminal:
        return
    with console.status("") as line:
        while True:
            line.update(render.printable(prepared.progress()))
            await asyncio.sleep(0.25)
