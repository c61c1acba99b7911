"""The demonstration's acts: start, submit, kill a replica in the middle, answer, stop, and look for what is left.

Called by `run`. Everything after the start goes through the API over HTTP, as any other client's calls do; only the
SIGKILL comes from outside of it, as such things do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvloop

from greenroom import errors, node, settings
from greenroom.cli import options, render, status
from greenroom.cli.demo import following, models, narration, screen
from greenroom.cli.render import Column
from greenroom.engine import kernel
from greenroom.sdk.async_client import AsyncClient
from greenroom.sdk.models import Task

FOLDER = Path(__file__).parent / "agents"
REQUEST = "Research and summarize the latest AI developments"
VICTIM = "analysis"
READY_WITHIN_S = 60.0
DONE_WITHIN_S = 300.0  # an endpoint may be slow
GRACE_S = 1.0  # after Ctrl-C

COLUMNS = (
    Column("AGENT"),
    Column("STATE"),
    Column("TRIES", right=True),
    Column("REPLICAS"),
    Column("TOKENS IN", right=True),
    Column("OUT", right=True),
    Column("TOOK", right=True),
)


def play(*, keep: bool, data_dir: Path | None) -> int:
    """Play all acts and return the exit code."""
    shown = screen.Screen()
    with _folder(data_dir) as folder:
        with models.chosen(os.environ) as model:
            shown.say(f"model: {model.about}")
            story = Story(shown, folder, keep=keep)
            went_well = uvloop.run(story.play(model))
        left = _descendants()
    took_s = shown.elapsed_s - story.ended_s
    shown.say(f"stopped in {took_s:.1f} s; of {story.processes} processes {len(left) or 'none'} is left")
    for pid in left:
        shown.say(f"process {pid} is left", style="red")
    return 0 if went_well and not left else 1


@contextlib.contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="greenroom-demo-") as made:
        yield Path(made)


class Story:
    """*processes* and *ended_s* are known once `play` has returned."""

    def __init__(self, shown: screen.Screen, folder: Path, *, keep: bool) -> None:
        self.processes = 0
        self.ended_s = 0.0
        self._screen, self._folder, self._keep = shown, folder, keep
        self._narration = narration.Narration(shown, victim=VICTIM)

    async def play(self, model: models.Model) -> bool:
        """Play all acts but the last; return whether the request was answered and the killed task ran again."""
        asked = node.Options(settings=_settings(model), folder=FOLDER, data_dir=self._folder, port=0)
        async with node.opened(asked, grace_s=GRACE_S) as started, node.listening(started) as url:
            key = (self._folder / "local.key").read_text().strip()
            async with AsyncClient(url, key) as client:
                await self._start(started, client)
                went_well = await self._work(client)
            await self._show_status(url)
            if self._keep:
                await self._look_around(url)
            self.processes += len(_descendants())
            self.ended_s = self._screen.elapsed_s
        return went_well

    async def _start(self, started: node.Node, client: AsyncClient) -> None:
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                await started.host.settled.wait()
        except TimeoutError:
            raise errors.StartRefused(
                f"cannot show the demonstration: its agents were not ready within {READY_WITHIN_S:g} s"
            ) from None
        for agent in await client.agents():
            if agent.state != "ready":
                raise errors.AgentInvalid(f"cannot show the demonstration: {agent.reason}")
        named = ", ".join(f"{replica.agent} (pid {replica.pid})" for replica in await client.replicas())
        self._screen.say(f"node: {started.url}, with a SQLite file and a replica process for each agent: {named}")

    async def _work(self, client: AsyncClient) -> bool:
        task = await client.submit(REQUEST)
        assert task.routing is not None, "the request named no agent"
        scores = ", ".join(f"{score.agent} {score.score:.2f}" for score in task.routing.scores)
        self._screen.say(f"request: {REQUEST}")
        self._screen.say(f"it names no agent; its text fits {task.agent} best ({scores})")
        self._screen.gap()
        followed = following.Following(client, self._narration.tell)
        try:
            with self._screen.following(followed.tasks):
                async with asyncio.timeout(DONE_WITHIN_S), asyncio.TaskGroup() as group:
                    killing = group.create_task(self._kill(client))
                    await followed.to_the_end(task)
                    killing.cancel()
        except BaseExceptionGroup as group_error:
            raise _first(group_error) from None
        except TimeoutError:
            raise errors.TaskPending(
                f"cannot show the answer: there was none within {DONE_WITHIN_S:g} s; is the model's endpoint well?"
            ) from None
        tasks = [await client.task(each.id) for each in followed.tasks]
        return self._judge(tasks)

    async def _kill(self, client: AsyncClient) -> None:
        await self._narration.victim_writes.wait()
        pid = await _pid_of_busy(client, VICTIM)
        self._narration.tell_kill(pid)
        os.kill(pid, signal.SIGKILL)
        self.processes += 1

    # --- at the end

    def _judge(self, tasks: Sequence[Task]) -> bool:
        """Show the answer and what it took; return whether all went as it should."""
        first, again = tasks[0], [task.agent for task in tasks if task.attempt > 1]
        self._screen.gap()
        if first.succeeded:
            self._screen.say(f"answer: {render.text_of(first.output)}", style="bold")
        elif first.error is not None:
            self._screen.say(f"{first.state}: {first.error.type}: {first.error.message}", style="red")
        self._screen.gap()
        render.table(COLUMNS, map(_row, tasks), empty="")
        self._screen.gap()
        if self._narration.killed_at is not None:
            once = ", ".join(task.agent for task in tasks if task.attempt == 1)
            self._screen.say(f"run again: {', '.join(again) or 'nothing'}; run once: {once or 'nothing'}")
        elif first.succeeded:
            self._screen.say(f"{VICTIM} was quicker than the kill; run the demonstration again", style="red")
        self._screen.gap()
        return first.succeeded and again == [VICTIM]

    async def _show_status(self, url: str) -> None:
        """What `greenroom status` prints; asked from a thread, as the node needs this one to answer."""
        await asyncio.to_thread(status.status, given=options.Options(url=url, data_dir=self._folder))
        self._screen.gap()

    async def _look_around(self, url: str) -> None:
        enough = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, enough.set)
        self._screen.say(f"the node goes on at {url}; Ctrl-C stops it")
        self._screen.say(f"next, in another terminal: greenroom status --data-dir {self._folder}")
        await enough.wait()
        loop.remove_signal_handler(signal.SIGINT)


def _settings(model: models.Model) -> settings.Settings:
    manifest = FOLDER / "greenroom.toml"
    names = settings.load(manifest).agents
    with_model = {name: {"arguments": {"model": model.arguments}} for name in names}
    return settings.load(manifest, overrides={"agents": with_model})


async def _pid_of_busy(client: AsyncClient, agent: str) -> int:
    for replica in await client.replicas():
        if replica.agent == agent and replica.busy and replica.pid is not None:
            return replica.pid
    raise errors.NotFound(f"cannot kill a replica of {agent}: none has a task; run the demonstration again")


def _row(task: Task) -> tuple[object, ...]:
    replicas = ", then ".join(attempt.replica or "" for attempt in task.attempts)
    usage = task.usage
    took = render.took(task.started_at, task.finished_at)
    return task.agent, task.state, task.attempt, replicas, usage.input_tokens, usage.output_tokens, took


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that the others followed from."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _descendants() -> list[int]:
    """The processes below this one, dead ones that nobody waited for included."""
    parents: dict[int, int] = {}
    for pid in kernel.pids():
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[pid] = int(kernel.stat(pid)[1])
    found = [os.getpid()]
    for above in found:
        found += [pid for pid, parent in parents.items() if parent == above]
    return found[1:]
