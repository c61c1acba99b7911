"""`greenroom top`: the overview of a node in the terminal, live.

Rich and not Textual: it is one picture and three keys, and Rich is here already; Textual would bring an
event loop and a framework of widgets that nobody asked for. `cli.top_frame` draws; this asks, waits and listens.
A thread asks the node, so that keys are obeyed while it does not answer.
"""

from __future__ import annotations

import select
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from greenroom import clock, errors
from greenroom.cli import options, pace, render, top_frame

if TYPE_CHECKING:
    from rich import live

    from greenroom.sdk import client, models

KEY_WAIT_S = 0.25
UNCUT_WIDTH = 120  # columns, where no screen sets them
MOST_HISTORIES = 40  # agents whose history is asked for: the first ones by name
RESTART_TOLD_S = 30.0

_now = clock.SystemClock().now


class Watch:
    """Asks the node, one look after another; after the first, each look renews one history, the oldest.

    Not to be used by two threads at a time.
    """

    def __init__(self, connect: Callable[[], client.Client], now: Callable[[], datetime] = _now) -> None:
        self._connect, self._now = connect, now
        self._node: client.Client | None = None
        self._histories: dict[str, list[models.HistoryBucket]] = {}  # the oldest first
        self._alerts: list[models.Alert] = []
        self._counted: Mapping[str, int] = {}  # alerts, as the status counted them when they were read
        self._life: object = None
        self.requests = 0  # of the last look
        self.restarted_at: datetime | None = None

    def look(self) -> top_frame.Look:
        """Ask once; raises `errors.GreenroomError`, after which the next call connects anew, perhaps elsewhere.

        What it returns can be drawn: a node of another release, or what is no node at all, may say anything.
        """
        try:
            if self._node is None:
                self._node = self._connect()
            look = self._look(self._node)
            top_frame.check(look)
        except errors.GreenroomError:
            self.close()
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            self.close()
            raise errors.GreenroomError(
                f"cannot read the answer: {type(error).__name__}: {error}; is this a Greenroom node of this release?"
            ) from error
        return look

    def close(self) -> None:
        if self._node is not None:
            self._node.close()
            self._node = None

    def _look(self, node: client.Client) -> top_frame.Look:
        status, self.requests = node.status(), 1
        life = (status.get("node") or {}).get("started_at")
        if self._life is not None and life != self._life:
            self.restarted_at = self._now()
        self._life = life
        counted = status.get("alerts") or {}
        if counted != self._counted:
            self._alerts = (
                [alert for alert in node.alerts() if alert.state == "firing"] if any(counted.values()) else []
            )
            self._counted = counted
            self.requests += 1
        self._renew(node, status)
        return top_frame.Look(self._now(), status, tuple(self._alerts), dict(self._histories))

    def _renew(self, node: client.Client, status: Mapping[str, Any]) -> None:
        names = sorted(agent["name"] for agent in status.get("agents") or [])[:MOST_HISTORIES]
        for gone in self._histories.keys() - set(names):
            del self._histories[gone]
        due = [name for name in names if name not in self._histories] or list(self._histories)[:1]
        for name in due:
            self._histories.pop(name, None)  # what is renewed goes to the end
            self._histories[name] = self._history(node, name)
            self.requests += 1

    def _history(self, node: client.Client, name: str) -> list[models.HistoryBucket]:
        since = self._now() - timedelta(minutes=top_frame.MINUTES)
        try:
            return node.history(name, since=since)
        except errors.NodeUnreachable:
            raise
        except errors.GreenroomError:  # one may read of it, and not observe it; or it went a moment ago
            return []


def top(
    *,
    interval: Annotated[float, cyclopts.Parameter(validator=cyclopts.validators.Number(gte=1, lte=3600))] = 2.0,
    once: bool = False,
    given: options.Options = options.DEFAULT,
) -> None:
    """Watch the node: health, throughput, latency, agents, alerts and rollouts. q quits, s sorts, p pauses.

    Parameters
    ----------
    interval
        Seconds between two looks; longer where the node would take them for too many requests.
    once
        Print what there is now, and end; so it is where no terminal reads.
    """
    watch = Watch(given.connect)
    look = watch.look()
    console = render.out()
    if console.is_terminal and not once and not given.json:
        _Screen(watch, look, interval).run()
        return
    watch.close()
    if given.json:
        render.json({"status": look.status, "alerts": look.alerts, "history": look.histories})
        return
    width = console.width if console.width < render.UNLIMITED else UNCUT_WIDTH
    console.print(top_frame.frame(look, width=width), width=width)


class _Screen:
    """The live picture: what it shows, and the thread that asks for more."""

    def __init__(self, watch: Watch, look: top_frame.Look, interval_s: float) -> None:
        self._watch, self._interval_s, self._pace = watch, interval_s, pace.Pace()
        self._asked = (look, "")  # the latest look, and why there is no later one; set by the thread
        self._shown = look
        self._orders = list(top_frame.ORDERS)
        self._is_paused = False
        self._stop = threading.Event()

    def run(self) -> None:
        from rich.live import Live

        asking = threading.Thread(target=self._ask, name="top", daemon=True)
        with _keys() as read, Live(console=render.out(), screen=True, auto_refresh=False) as live:
            asking.start()
            try:
                self._show(live, read)
            finally:
                self._stop.set()
        asking.join(KEY_WAIT_S)  # whom the node lets wait for longer, ends with the process

    def _show(self, live: live.Live, read: Callable[[], str]) -> None:
        drawn: object = None
        key = ""
        while key != "q":
            self._obey(key)
            size = live.console.size
            state = (self._asked, size, self._orders[0], self._is_paused)
            if state != drawn:
                live.update(self._picture(size.width, size.height), refresh=True)
                drawn = state
            key = read()

    def _ask(self) -> None:
        while not self._stop.wait(self._pace.delay_s(self._watch.requests, least_s=self._interval_s)):
            if self._is_paused:
                continue
            try:
                self._asked = (self._watch.look(), "")
            except errors.GreenroomError as error:
                self._asked = (self._asked[0], str(error))
        self._watch.close()

    def _obey(self, key: str) -> None:
        if key == "s":
            self._orders.append(self._orders.pop(0))
        elif key == "p":
            self._is_paused = not self._is_paused

    def _picture(self, width: int, height: int) -> Any:
        look, trouble = self._asked
        if not self._is_paused:
            self._shown = look
        keys = f"{top_frame.KEYS}   by {self._orders[0]}" + ("   paused" if self._is_paused else "")
        return top_frame.frame(
            self._shown, width=width, height=height, order=self._orders[0], notes=self._notes(trouble), keys=keys
        )

    def _notes(self, trouble: str) -> list[str]:
        if trouble:
            return [f"as of {self._shown.at.astimezone():%H:%M:%S}; asking again: {trouble}"]
        at = self._watch.restarted_at
        if at is not None and (self._shown.at - at).total_seconds() < RESTART_TOLD_S:
            return [f"the node has restarted; connected again at {at.astimezone():%H:%M:%S}"]
        return []


@contextmanager
def _keys() -> Iterator[Callable[[], str]]:
    """Yield what waits a moment for a key, and returns it, or nothing; the terminal is as it was afterwards."""
    import termios
    import tty

    if not sys.stdin.isatty():
        nothing = threading.Event()

        def wait() -> str:
            nothing.wait(KEY_WAIT_S)
            return ""

        yield wait
        return
    import os

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def read() -> str:
        if not select.select([terminal], [], [], KEY_WAIT_S)[0]:
            return ""
        # Nothing at all: the terminal is gone.
        return os.read(terminal, 1).decode(errors="replace") or "q"

    try:
        tty.setcbreak(terminal)
        yield read
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
