"""`greenroom`: the verbs, and what becomes of errors. The installed script calls `main`.

Verbs are imported when they are used, so that `--help` and completion are quick. Exit codes: 0 done, 1 the
thing failed, 2 usage, 3 cannot reach a node, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

import cyclopts

from greenroom import __version__, errors, redaction
from greenroom.cli import options, render

DONE, FAILED, USAGE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

VERBS = (  # in the order in which one meets them
    ("init", "starter:init", "Write a manifest and an agent to start from."),
    ("up", "node:up", "Start a node on the manifest, in the foreground."),
    ("demo", "node:demo", "See three agents work together, and survive a killed replica."),
    ("deploy", "deploy:deploy", "Deploy this folder's agents: print the plan, begin the rollouts, and follow them."),
    ("submit", "submit:app", "Give an agent a task; without an agent, the one that fits."),
    ("tasks", "tasks:app", "List, show, watch, cancel and retry tasks."),
    ("sessions", "sessions:app", "List, show and remove sessions."),
    ("agents", "agents:agents", "Show the agents and what they have to do; release one that is quarantined."),
    ("replicas", "agents:replicas", "Show, restart and drain the processes that run the agents."),
    ("failures", "alerts:failures", "Show how replicas failed, and what was done about it."),
    ("alerts", "alerts:app", "List what people have to look after, and take it on."),
    ("advice", "advice:advice", "Show what the optimizer advises, what was done about it, and what that has changed."),
    ("rollout", "rollout:app", "Show how new revisions take over; promote, pause, resume, abort and undo it."),
    ("scale", "scaling:app", "Set the number of an agent's replicas; explain it; try other settings on recorded load."),
    ("health", "health:health", "Show how the system or an agent is, why, and what is left of its error budget."),
    ("history", "history:history", "Show how an agent did: what became of its attempts, and how long they took."),
    ("logs", "logs:logs", "Show what replicas and tasks said, and what befell them; follow it."),
    ("status", "status:status", "Show how the node and its agents are."),
    ("top", "top:top", "Watch the node in the terminal: health, throughput, latency, agents, alerts and rollouts."),
    ("backup", "backup:app", "Make, list, restore and rehearse backups of the store."),
    ("keys", "keys:app", "Create, list and revoke the keys of those who may call; ask what each may do."),
    ("shutdown", "shutdown:shutdown", "Have the node drain and stop."),
    ("dashboard", "dashboard:dashboard", "Log a browser in, by a link that works once."),
    ("webhooks", "webhooks:app", "Have the ends of tasks told to receivers; test and rotate them."),
    ("audit", "audit:app", "Show who did what; check that nobody has changed the record; export it."),
    ("security", "security:app", "Show how the node is protected and what was found; let somebody in again."),
    ("encryption", "encryption:app", "Show how the store is encrypted; take new keys into use."),
    ("config", "config:app", "Show and check the settings."),
    ("chaos", "chaos:chaos", "Inject faults into the node that runs here, and see whether anything is lost."),
    ("doctor", "doctor:doctor", "Check whether this machine and this manifest are ready."),
)

app = cyclopts.App(
    name="greenroom",
    help="""Takes the AI agents you have to production.

    Start with greenroom init and greenroom up, or see it work: greenroom demo.""",
    version=__version__,
    default_parameter=cyclopts.Parameter(negative=()),
    suppress_keyboard_interrupt=False,
    result_action="return_int_as_exit_code_else_zero",
)
for _place, (_verb, _home, _help) in enumerate(VERBS):
    app.command(f"greenroom.cli.{_home}", name=_verb, help=_help, sort_key=_place)
app.register_install_completion_command()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; with GREENROOM_DEBUG=1, errors are raised."""
    sys.excepthook = _crashed
    try:
        code: int = app(argv, exit_on_error=False, print_error=False)
    except (cyclopts.CycloptsError, errors.GreenroomError, OSError, KeyboardInterrupt) as error:
        if os.environ.get("GREENROOM_DEBUG", "0") not in ("", "0"):
            raise
        return _report(error)
    return code


def _crashed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug without the secrets that its message may hold."""
    text = redaction.text("".join(traceback.format_exception(kind, error, trace)))
    sys.stderr.write(render.printable(text, lines=True))


def _report(error: BaseException) -> int:
    """Tell the user, and return the exit code."""
    match error:
        case KeyboardInterrupt():
            return INTERRUPTED
        case cyclopts.CycloptsError():
            render.failure(str(error), ["see greenroom --help, or --help after the verb"])
        case BrokenPipeError():  # whoever read our output, `head` for example, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            render.failure(f"cannot do this: {where}{error.strerror or error}")
        case _:
            render.failure(str(error), getattr(error, "__notes__", []))
    return _exit_code(error)


def _exit_code(error: BaseException) -> int:
    match error:
        case errors.NodeUnreachable():
            return UNREACHABLE
        case cyclopts.CycloptsError() | errors.SettingsInvalid() | errors.JsonRefused() | options.Usage():
            return USAGE
        case _:
            return FAILED
