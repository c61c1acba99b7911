"""What a rollout tries before users meet a revision: checks of its own code, in a replica."""

from __future__ import annotations

import json
import os
import signal

import pytest

import replicas
from greenroom.engine import protocol

FACTORY = "checked:agent"


def check(replica: replicas.Replica, function: str | None, *, task: str = "c1", had_s: float = 60.0) -> protocol.Ended:
    replica.send(protocol.Check(task, 1, had_s, function))
    return replica.end_of(task)


def heard(replica: replicas.Replica, text: bytes) -> None:
    """Wait until agent code has written *text*."""
    seen = b""
    while text not in seen:
        seen += os.read(replica.output, 1000)


# --- the probe


@pytest.mark.parametrize("factory", [FACTORY, "checked:Built", "plain:make_later"])
def test_without_a_function_an_agent_is_built_and_closed(factory: str) -> None:
    with replicas.started(factory) as replica:
        for task in ("c1", "c2"):
            assert check(replica, None, task=task) == protocol.Ended(task, 1, output=b"true")


def test_an_agent_that_cannot_be_built_has_failed_the_check() -> None:
    with replicas.started("checked:build_nothing") as replica:
        ended = check(replica, None)
    assert (ended.output, ended.error_type) == (None, "LookupError")
    assert ended.error_message.startswith("no model")


# --- functions


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "coroutine",
        "asks",
        "awaits",
        "asks_from_a_thread",
        "returns_a_coroutine",
        "sees_the_errors",
    ],
)
def test_a_check_passes_unless_it_raises_or_returns_false(name: str) -> None:
    with replicas.started(FACTORY) as replica:
        assert check(replica, f"checked:{name}") == protocol.Ended("c1", 1, output=b"true")


@pytest.mark.parametrize(
    ("name", "type", "message"),
    [
        ("bare", "AssertionError", "checked.py:{line}: assert answer == 5"),
        ("in_words", "AssertionError", "2 + 2 is 4"),
        ("in_a_group", "LookupError", "nothing there"),
        (
            "reads_a_variable",
            "KeyError",
            "'A_SECRET_KEY'; the agent sees only the variables that its `env` names: add \"A_SECRET_KEY\" to `env`",
        ),
        ("returns_false", "check_failed", "checked:returns_false returned False"),
        ("leaves", "SystemExit", "3"),
        ("interrupts", "KeyboardInterrupt", "checked.py:{line}: raise KeyboardInterrupt"),
        ("cancels_itself", "CancelledError", "checked.py:{line}: raise asyncio.CancelledError"),
        (
            "does_not_await",
            "check_failed",
            "checked:does_not_await called the agent without `await`, or did not wait for it",
        ),
        ("fails_with_the_agent", "SubTaskFailed", "the call of tested failed: ValueError: cannot do that"),
        (
            "asks_what_is_no_json",
            "input_not_json",
            "the input is not strict JSON: a set is no JSON",
        ),
        (
            "calls",
            "RuntimeError",
            "cannot call other: this is a check and no user's task, and durable sub-tasks cannot be made in a check",
        ),
    ],
)
def test_a_check_fails_with_words_that_say_why_and_its_replica_lives(name: str, type: str, message: str) -> None:
    source = (replicas.AGENTS / "checked.py").read_text().splitlines()
    line = next((n for n, text in enumerate(source, 1) if text.strip() == message.partition(": ")[2]), 0)
    with replicas.started(FACTORY) as replica:
        ended = check(replica, f"checked:{name}")
        assert (ended.output, ended.cancelled) == (None, False)
        assert ended.error_type == type
        assert ended.error_message.startswith(message.format(line=line))
        assert check(replica, "checked:plain", task="c2").output == b"true"


@pytest.mark.parametrize(
    ("function", "type", "words"),
    [
        ("checked:smok", "AttributeError", ["cannot load the check checked:smok of agent tested", "bare, blocks"]),
        ("no_such_module:smoke", "ModuleNotFoundError", ["check the check function's module name"]),
        ("broken:smoke", "ModuleNotFoundError", ["install 'a_package_that_nobody_has'"]),
        ("exits:smoke", "SystemExit", ["an import must not exit"]),
        ("nothing.py:smoke", "FileNotFoundError", ["there is no file nothing.py"]),
        ("checked", "ValueError", ["the check function 'checked' is not 'module:attribute'"]),
        ("checked:takes_two", "TypeError", ["cannot call the check checked:takes_two", "no parameter, or one"]),
        ("checked:yields", "TypeError", ["`yield`"]),
        ("checked:Checks", "TypeError", ["it is a class; name a function"]),
        ("checked:counted", "TypeError", ["it is a list; name a function"]),
        ("builtins:max", "TypeError", ["no signature"]),
    ],
)
def test_what_can_be_no_check_fails_with_what_is_wrong(function: str, type: str, words: list[str]) -> None:
    with replicas.started(FACTORY) as replica:
        ended = check(replica, function)
        assert ended.error_type == type
        for word in words:
            assert word in ended.error_message
        assert replicas.output_of(replica.run({"sum": [1]})) == 1


def test_checks_of_scripts_are_found_and_disturb_no_script_that_runs() -> None:
    with replicas.started("script.py:Agent") as replica:
        assert check(replica, "checked.py:plain").output == b"true"
        assert check(replica, "checked.py:coroutine", task="c2").output == b"true"
        result = replicas.output_of(replica.run("p"))
    assert result == {"module": "__greenroom_main__", "hints": ["text"], "same": True, "payload": "p"}


def test_a_check_runs_the_agent_on_fresh_instances_and_says_nothing_of_it() -> None:
    with replicas.started(FACTORY) as replica:
        assert check(replica, "checked:asks").output == b"true"
        assert replica.events == []
        assert list(replica.ended) == ["c1"]


def test_a_run_that_its_check_gives_up_is_ended() -> None:
    with replicas.started("checked:asleep") as replica:
        assert check(replica, "checked:gives_up").output == b"true"
        heard(replica, b"the agent was woken")


# --- time and cancel


@pytest.mark.parametrize("name", ["waits", "blocks", "swallows"])
def test_a_check_that_does_not_end_is_told_so_after_its_time(name: str) -> None:
    with replicas.started(FACTORY) as replica:
        ended = check(replica, f"checked:{name}", had_s=0.1)
        assert ended.error_type == "check_timeout"
        assert (
            ended.error_message
            == f"the check checked:{name} did not end in the 0.1 s that it had; make it quicker, or give it more time"
        )
        assert replicas.output_of(replica.run({"sum": [1]})) == 1
        os.kill(replica.pid, signal.SIGKILL)  # as the node does


def test_an_agent_whose_building_does_not_end_is_told_so_after_its_time() -> None:
    with replicas.started("checked:build_for_ever") as replica:
        ended = check(replica, None, had_s=0.1)
    assert ended.error_type == "check_timeout"
    assert ended.error_message.startswith("building the agent did not end in the 0.1 s")


@pytest.mark.parametrize("name", ["asks_and_waits", "awaits_and_waits"])
def test_a_check_whose_agent_does_not_end_takes_it_along(name: str) -> None:
    with replicas.started("checked:asleep") as replica:
        assert check(replica, f"checked:{name}", had_s=0.1).error_type == "check_timeout"
        heard(replica, b"the agent was woken")


def test_a_cancelled_check_is_ended_at_once() -> None:
    with replicas.started(FACTORY) as replica:
        replica.send(protocol.Check("c1", 1, 60.0, "checked:waits"))
        heard(replica, b"the check waits")
        replica.send(protocol.Cancel("c1", 1, grace_s=0.1))
        assert replica.end_of("c1").cancelled
        heard(replica, b"the check was woken")


@pytest.mark.parametrize("name", ["asks_and_waits", "awaits_and_waits"])
def test_a_cancelled_check_ends_the_runs_of_its_agent(name: str) -> None:
    with replicas.started("checked:asleep") as replica:
        replica.send(protocol.Check("c1", 1, 60.0, f"checked:{name}"))
        heard(replica, b"the agent sleeps")
        replica.send(protocol.Cancel("c1", 1, grace_s=1.0))
        assert replica.end_of("c1").cancelled


def test_a_cancelled_check_has_ended_when_what_it_gave_up_has() -> None:
    with replicas.started(FACTORY) as replica:
        replica.send(protocol.Check("c1", 1, 60.0, "checked:gives_up_a_blocking_one"))
        heard(replica, b"the check waits")
        replica.send(protocol.Cancel("c1", 1, grace_s=0.1))
        assert replica.end_of("c1").cancelled


@pytest.mark.parametrize("name", ["blocks", "asks_a_blocking_one", "awaits_a_blocking_one"])
def test_a_cancelled_check_is_not_said_to_have_ended_before_it_has(name: str) -> None:
    with replicas.started(FACTORY) as replica:
        replica.send(protocol.Check("c1", 1, 60.0, f"checked:{name}"))
        heard(replica, b"blocks")
        replica.send(protocol.Cancel("c1", 1, grace_s=0.1))
        assert check(replica, "checked:slow_to_tell", task="c2").output == b"true"
        replica.send(protocol.Check("c3", 1, 0.3, "checked:waits"))
        assert replica.end_of("c3").error_type == "check_timeout"
        assert "c1" not in replica.ended
        os.kill(replica.pid, signal.SIGKILL)  # as the node does
        replica.exit_code()
        assert "Traceback" not in replica.printed()


def test_sigterm_cancels_a_check_and_the_replica_leaves() -> None:
    with replicas.started(FACTORY) as replica:
        replica.send(protocol.Check("c1", 1, 60.0, "checked:waits"))
        heard(replica, b"the check waits")
        os.kill(replica.pid, signal.SIGTERM)
        assert replica.end_of("c1").cancelled
        assert replica.exit_code() == 0


# --- example tasks


def test_an_example_task_emits_nothing_and_makes_no_sub_tasks() -> None:
    with replicas.started(FACTORY) as replica:
        for task, input in (("e1", "talk"), ("e2", "call")):
            replica.send(protocol.Invoke(task, 1, json.dumps(input).encode(), 1, 60.0, is_check=True))
        assert replicas.output_of(replica.end_of("e1")) == "talk"
        refused = replica.end_of("e2")
        assert (refused.error_type, replica.events) == ("RuntimeError", [])
        assert "durable sub-tasks cannot be made in a check" in refused.error_message
        assert replicas.output_of(replica.run("talk")) == "talk"
        assert replica.data("message") == ["loud"]
