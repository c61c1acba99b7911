from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import replicas
from greenroom.engine import output, protocol, running, said, task_context, values

SOURCE = Path(protocol.__file__).parents[2]


# --- what a factory is taken for


@pytest.mark.parametrize(
    ("factory", "arguments", "input", "result"),
    [
        ("plain:echo", {}, {"a": [1, None, "é"]}, {"a": [1, None, "é"]}),
        ("plain:blocking_echo", {}, "x", "x"),
        ("plain:prompted", {"prompt": "say"}, "x", "say: x"),
        ("plain:make_shouter", {"mark": "?"}, "x", "X?"),
        ("plain:make_later", {}, "x", "x"),
        (
            "plain:Research",
            {"llm_config": {"model": "m"}},
            {"topic": "t"},
            {"topic": "t", "model": "m", "tasks": 1},
        ),
        ("plain:Doubler", {}, 4, 8),
        ("plain:doubler", {}, 4, 8),
        ("plain:notebook", {}, "line", 1),
    ],
)
def test_a_factory_is_the_agent_or_builds_it(factory: str, arguments: dict[str, Any], input: Any, result: Any) -> None:
    for check in (False, True):
        with replicas.started(factory, arguments=arguments, check=check) as replica:
            assert replicas.output_of(replica.run(input)) == result


def test_each_task_has_an_instance_of_its_own() -> None:
    with replicas.started("plain:Research", arguments={"llm_config": {"model": "m"}}) as replica:
        results = [replicas.output_of(replica.run({"topic": "t"}, task=f"t{n}")) for n in range(3)]
    assert [result["tasks"] for result in results] == [1, 1, 1]


def test_a_script_is_imported_once_and_never_run() -> None:
    with replicas.started("script.py:Agent") as replica:
        result = replicas.output_of(replica.run("p"))
    assert result == {"module": "__greenroom_main__", "hints": ["text"], "same": True, "payload": "p"}


def test_ready_says_what_the_factory_was_taken_for() -> None:
    with replicas.Replica("plain:blocking_echo") as replica:
        ready = replica.ready()
    assert ready.adapter == "callables"
    assert (
        ready.took == "plain:blocking_echo is the agent itself: a function, called in a thread with each task's payload"
    )


@pytest.mark.parametrize(
    ("factory", "arguments", "type", "words"),
    [
        ("plain:needs_key", {}, "TypeError", ["needs 'api_key'", "`arguments`", "`input`"]),
        ("plain:unnamed", {}, "TypeError", ["needs 'text'", "`input`"]),
        (
            "plain:make_shouter",
            {"marks": "!"},
            "TypeError",
            ["does not take the argument 'marks'", "it takes mark"],
        ),
        ("plain:notebook", {"a": 1}, "TypeError", ["takes no arguments"]),
        ("plain:number", {}, "UnknownAgent", ["builtins.int", "execute_task(payload)"]),
        ("plain:returns_a_number", {}, "UnknownAgent", ["builtins.int"]),
        ("plain:raises", {}, "LookupError", ["its factory raised LookupError: no model configured"]),
        ("plain:exits", {}, "SystemExit", ["cannot start"]),
        ("plain:missing", {}, "AttributeError", ["plain has no 'missing'", "echo"]),
        ("plain", {}, "ValueError", ["is not 'module:attribute'"]),
        ("nothing_here:agent", {}, "ModuleNotFoundError", ["check the factory's module name"]),
        ("nothing_here.py:agent", {}, "FileNotFoundError", ["there is no file nothing_here.py"]),
        ("broken:agent", {}, "ModuleNotFoundError", ["install 'a_package_that_nobody_has'"]),
        ("exits:agent", {}, "SystemExit", ["__main__"]),
    ],
)
def test_what_is_no_agent_is_refused_with_the_fix(
    factory: str, arguments: dict[str, Any], type: str, words: list[str]
) -> None:
    with replicas.Replica(factory, arguments=arguments, check=True) as replica:
        refused = replica.refused()
        assert replica.exit_code() == os.EX_CONFIG
    assert refused.error_type == type
    assert refused.message.startswith(("cannot load agent tested", "cannot build agent tested"))
    for word in words:
        assert word in refused.message


def test_a_refusal_shows_the_lines_of_agent_code_only() -> None:
    with replicas.Replica("plain:raises", check=True) as replica:
        refused = replica.refused()
    assert "plain.py" in refused.traceback
    assert "factories.py" not in refused.traceback


def test_without_a_check_the_task_tells_what_is_wrong_and_the_replica_lives() -> None:
    with replicas.started("plain:returns_a_number") as replica:
        for task in ("t1", "t2"):
            assert replica.run("x", task=task).error_type == "UnknownAgent"


# --- results


@pytest.mark.parametrize(
    ("input", "type"),
    [
        ("100 MB", "result_too_large"),
        ("100 MB in pieces", "result_too_large"),
        *(
            (name, "result_not_json")
            for name in (
                "NaN",
                "cycle",
                "bytes",
                "lone surrogate",
                "raising __str__",
                "raising key",
                "raising mapping",
                "deep nesting",
                "very deep nesting",
                "huge int",
                "very huge int",
                "tuple keys",
                "keys that collide",
                "NUL",
                "a generator inside",
                "a class",
            )
        ),
    ],
)
def test_a_hostile_result_fails_its_task_and_nothing_else(input: str, type: str) -> None:
    with replicas.started("hostile:result") as replica:
        ended = replica.run(input)
        assert (ended.error_type, ended.output, ended.retryable) == (type, None, False)
        assert ended.error_message.startswith("the result is ")
        assert replica.run("NaN", task="again").error_type == "result_not_json"


@pytest.mark.parametrize(
    ("input", "type", "message"),
    [
        ("10 MB message", "ValueError", "é"),
        ("raising __str__", "MuteError", "(its text cannot be had: str() raised RuntimeError)"),
        ("surrogate and NUL", "ValueError", "a?b?c"),
        ("long type name", "EEE", ""),
        ("recursion", "RecursionError", "maximum recursion depth"),
    ],
)
def test_a_hostile_exception_is_told_within_bounds(input: str, type: str, message: str) -> None:
    with replicas.started("hostile:error") as replica:
        ended = replica.run(input)
    assert ended.error_type is not None
    assert ended.error_type.startswith(type)
    assert ended.error_message.startswith(message)
    assert len(ended.error_message.encode()) <= 4096
    assert len(ended.error_type) <= 200


@pytest.mark.parametrize("factory", ["hostile:endless", "hostile:endless_async"])
def test_an_endless_generator_is_ended(factory: str) -> None:
    with replicas.started(factory) as replica:
        ended = replica.run("x")
    assert ended.error_type == "result_too_large"
    assert "10000 values" in ended.error_message


def test_a_flood_on_stdout_is_cut() -> None:
    with replicas.started("hostile:flood") as replica:
        assert replicas.output_of(replica.run("x")) == "dry"
        lines = replica.data("log")
    assert sum(len(line["line"]) for line in lines) <= output.MAX_TASK_CHARACTERS
    assert lines[0]["line"].endswith("x…")
    assert "dropped" in lines[-1]["line"]


def test_exit_in_an_agent_is_a_failure_of_its_task() -> None:
    with replicas.started("hostile:stdin_and_exit") as replica:
        ended = replica.run("x")
        assert (ended.error_type, ended.error_message) == ("SystemExit", "1")
        assert replica.run("x", task="t2").error_type == "SystemExit"


def test_dataclasses_and_structs_are_results_at_any_depth() -> None:
    with replicas.started("plain:shapes") as replica:
        assert replicas.output_of(replica.run("x")) == {
            "point": {"x": 1, "y": 2},
            "pair": {"left": {"x": 3, "y": 4}, "right": {"x": 5, "y": 6}},
            "tuple": [1, 2],
            "number": {"1": "one"},
        }


@pytest.mark.parametrize("factory", ["plain:words", "plain:blocking_words"])
def test_a_generator_streams_and_its_last_value_is_the_output(factory: str) -> None:
    with replicas.started(factory) as replica:
        assert replicas.output_of(replica.run("one two three")) == "three"
        assert replica.data("output") == ["one", "two", "three"]


@pytest.mark.parametrize("factory", ["plain:drafts", "plain:blocking_drafts"])
@pytest.mark.parametrize(("unit", "begins"), [("é", "é" * 8192), ([1], str([1] * 8192)[:8192])])
def test_a_streamed_value_that_is_too_large_for_an_event_is_shown_by_its_beginning(
    factory: str, unit: Any, begins: str
) -> None:
    with replicas.started(factory) as replica:
        assert replicas.output_of(replica.run(unit)) == unit * 1_000_000
        assert replica.data("output") == [unit * 10, {"content": begins, "shortened": True}]


def test_a_streamed_value_that_is_no_json_fails_its_task() -> None:
    with replicas.started("hostile:streamed_set") as replica:
        assert replica.run("x").error_type == "event_not_json"


# --- errors


@pytest.mark.parametrize(
    ("input", "retry_on", "type", "retryable"),
    [
        ("value", (), "ValueError", False),
        ("flaky", (), "Flaky", False),
        ("flaky", ("Flaky",), "Flaky", True),
        ("flaky", ("OSError",), "Flaky", True),
        ("busy", (), "Busy", True),
        ("group", ("Flaky",), "Flaky", True),
        ("exit", (), "SystemExit", False),
        ("exit in a task", (), "SystemExit", False),
        ("cancel", (), "CancelledError", False),
    ],
)
def test_an_exception_is_told_with_its_type(input: str, retry_on: tuple[str, ...], type: str, retryable: bool) -> None:
    with replicas.started("plain:fail", retry_on=retry_on) as replica:
        ended = replica.run(input)
        assert (ended.error_type, ended.retryable, ended.cancelled) == (type, retryable, False)
        assert replica.run("value", task="again").error_type == "ValueError"


@pytest.mark.parametrize(("input", "type"), [("stop", "RuntimeError"), ("3", "SystemExit")])
def test_what_a_thread_cannot_carry_is_told_too(input: str, type: str) -> None:
    with replicas.started("plain:fail_blocking") as replica:
        assert replica.run(input).error_type == type


# --- sessions


def test_a_session_keeps_a_chain_of_all_its_inputs() -> None:
    with replicas.started("plain:remember", sessions=True) as replica:
        state: bytes | None = None
        for number in range(20):
            ended = replica.run(f"i{number}", task=f"t{number}", session="s", state=state)
            assert replicas.output_of(ended) == [f"i{n}" for n in range(number + 1)]
            assert ended.state is not None
            state = ended.state
        failed = replica.run("fail", task="f", session="s", state=state)
        assert (failed.error_type, failed.state) == ("ValueError", None)
        assert len(replicas.output_of(replica.run("after", task="a", session="s", state=state))) == 21


def test_without_a_session_no_state_is_kept() -> None:
    with replicas.started("plain:remember", sessions=True) as replica:
        assert replica.run("a").state is None
        assert replicas.output_of(replica.run("b", task="t2")) == ["b"]
    with replicas.started("plain:remember") as replica:
        assert replica.run("a", session="s").state is None


def test_an_object_may_keep_its_own_state() -> None:
    with replicas.started("plain:Notebook", sessions=True) as replica:
        first = replica.run("one", session="s")
        assert first.state is not None
        assert json.loads(first.state) == ["one"]
        assert replicas.output_of(replica.run("two", task="t2", session="s", state=first.state)) == 2


@pytest.mark.parametrize("state", [[1], "text", 5, None])
def test_a_state_that_is_no_dict_fails_the_task_that_sets_it_and_no_later_one(state: Any) -> None:
    with replicas.started("plain:set_state", sessions=True) as replica:
        first = replica.run({"a": 1}, session="s")
        refused = replica.run(state, task="t2", session="s", state=first.state)
        assert (refused.error_type, refused.state) == ("TypeError", None)
        assert refused.error_message == f"context.state takes a dict ({{}} empties it); got {state!r}"
        emptied = replica.run({}, task="t3", session="s", state=first.state)
        assert (replicas.output_of(emptied), emptied.state) == ({"a": 1}, b"{}")
        assert replicas.output_of(replica.run({"b": 2}, task="t4", session="s", state=emptied.state)) == {}


def test_a_state_that_does_not_fit_is_an_error_that_names_its_revision() -> None:
    with replicas.started("plain:remember", sessions=True) as replica:
        ended = replica.run("x", session="s", state=b"[1]")
    assert ended.error_type == "state_not_loadable"
    assert "revision 1" in ended.error_message
    assert "remove the session" in ended.error_message


# --- cancel


def test_a_coroutine_is_cancelled_at_once() -> None:
    with replicas.started("plain:sleep") as replica:
        replica.invoke("t1", "x")
        replica.send(protocol.Probe(1))
        replica.until(lambda m: m == protocol.Alive(1))
        replica.send(protocol.Cancel("t1", 1, grace_s=60.0))
        assert replica.end_of("t1").cancelled
        assert replica.data("log")[-1]["line"] == "woken"


def test_a_cancel_that_comes_with_its_invoke_is_not_lost() -> None:
    with replicas.started("plain:sleep") as replica:
        invoke = protocol.frame(protocol.Invoke("t1", 1, b'"x"', 1, 60.0))
        replica.channel.sendall(invoke + protocol.frame(protocol.Cancel("t1", 1, grace_s=0.2)))
        assert replica.end_of("t1").cancelled


def test_what_a_cancelled_agent_left_running_is_ended_too() -> None:
    with replicas.started("plain:leave_a_task") as replica:
        replica.invoke("t1", "x")
        replica.send(protocol.Probe(1))
        replica.until(lambda m: m == protocol.Alive(1))
        replica.send(protocol.Cancel("t1", 1, grace_s=10.0))
        assert replica.end_of("t1").cancelled
        assert replica.data("log")[-1]["line"] == "the left task was ended"


def test_an_agent_that_swallows_one_cancel_gets_another() -> None:
    with replicas.started("plain:stubborn") as replica:
        replica.invoke("t1", "x")
        replica.event("message", "sleeping")
        replica.send(protocol.Cancel("t1", 1, grace_s=0.2))
        ended = replica.end_of("t1")
        assert ended.cancelled
        assert ended.output is None


def test_a_cancelled_thread_is_not_said_to_have_ended_before_it_has() -> None:
    with replicas.started("plain:block") as replica:
        replica.invoke("t1", 30.0)
        replica.event("message", "blocking")
        replica.send(protocol.Cancel("t1", 1, grace_s=0.1))
        assert replicas.output_of(replica.run(0, task="t2")) == "unblocked"
        assert "t1" not in replica.ended
        os.kill(replica.pid, signal.SIGKILL)  # as the node does


def test_a_cancelled_thread_that_ends_in_time_is_answered() -> None:
    with replicas.started("plain:block") as replica:
        replica.invoke("t1", 0.2)
        replica.event("message", "blocking")
        replica.send(protocol.Cancel("t1", 1, grace_s=10.0))
        assert replica.end_of("t1").cancelled


def test_a_thread_that_waits_for_a_sub_task_is_freed_by_a_cancel() -> None:
    with replicas.started("plain:blocking_parent") as replica:
        replica.invoke("t1", "x")
        replica.called()
        replica.send(protocol.Cancel("t1", 1, grace_s=10.0))
        assert replica.end_of("t1").cancelled


def test_a_cancel_of_what_has_ended_is_ignored() -> None:
    with replicas.started("plain:echo") as replica:
        replica.run("x")
        replica.send(protocol.Cancel("t1", 1))
        replica.send(protocol.CallEnded("t1", 1, 0))
        assert replicas.output_of(replica.run("y", task="t2")) == "y"


# --- the context


def test_sub_tasks_are_numbered_in_the_order_of_their_calls() -> None:
    with replicas.started("plain:parent") as replica:
        replica.invoke("t1", ["a", "b", "c"])
        calls = [replica.called() for _ in range(3)]
        assert [(call.ordinal, call.agent, json.loads(call.input), call.timeout_s) for call in calls] == [
            (0, "child", "a", 5.0),
            (1, "child", "b", 5.0),
            (2, "child", "c", 5.0),
        ]
        for call in reversed(calls):
            replica.send(protocol.CallEnded("t1", 1, call.ordinal, output=call.input.upper()))
        assert replicas.output_of(replica.end_of("t1")) == ["A", "B", "C"]


def test_a_failed_sub_task_is_an_exception_of_its_caller() -> None:
    with replicas.started("plain:forgiving_parent") as replica:
        replica.invoke("t1", "x")
        replica.called()
        replica.send(protocol.CallEnded("t1", 1, 0, error_type="expired", error_message="too late"))
        assert replicas.output_of(replica.end_of("t1")) == "child expired too late"


def test_a_synchronous_agent_calls_sub_tasks_from_its_thread() -> None:
    with replicas.started("plain:blocking_parent") as replica:
        replica.invoke("t1", "x")
        assert replica.called().session == "s"
        replica.send(protocol.CallEnded("t1", 1, 0, output=b'{"done":true}'))
        assert replicas.output_of(replica.end_of("t1")) == {"done": True}


@pytest.mark.parametrize(
    ("argument", "given", "type", "takes"),
    [
        ("agent", 5, "TypeError", "a name of at most 63"),
        ("agent", None, "TypeError", "a name of at most 63"),
        ("agent", "Child", "ValueError", "a name of at most 63"),
        ("agent", "child\n", "ValueError", "a name of at most 63"),
        ("agent", "c" * 64, "ValueError", "a name of at most 63"),
        ("session", 5, "TypeError", "at most 128 letters"),
        ("session", "", "ValueError", "at most 128 letters"),
        ("session", "a b", "ValueError", "at most 128 letters"),
        ("session", "s" * 129, "ValueError", "at most 128 letters"),
        ("timeout_s", "5", "TypeError", "a number of seconds > 0"),
        ("timeout_s", True, "TypeError", "a number of seconds > 0"),
        ("timeout_s", -1, "ValueError", "a number of seconds > 0"),
        ("timeout_s", 0, "ValueError", "a number of seconds > 0"),
        ("timeout_s", 1e300, "ValueError", "a number of seconds > 0 and at most 604800"),
    ],
)
def test_a_call_with_a_wrong_argument_is_an_error_of_the_code_that_makes_it(
    argument: str, given: Any, type: str, takes: str
) -> None:
    with replicas.started("plain:careless_parent") as replica:
        refused = replicas.output_of(replica.run({argument: given}))
    for message in refused:
        assert message.startswith(f"{type}: cannot call: {argument} takes {takes}")
        assert message.endswith(f"got {given!r}") or len(str(given)) > 30
    assert len(refused) == 2


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf")])
def test_a_call_takes_no_time_that_is_no_number(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s takes a number of seconds"):
        _context([])._begin_call("child", None, timeout_s, None)


def test_what_is_a_text_or_a_number_by_inheritance_is_sent_as_one() -> None:
    class Text(str):
        __slots__ = ()

    class Number(float):
        pass

    sent: list[protocol.ToNode] = []
    context = _context(sent)
    context._begin_call(Text("child"), Text("x"), Number(5), Text("s"))
    context.emit(Text("x"), type=Text("output"))
    for message in sent:
        assert protocol.decode_for_node(protocol.frame(message)[4:]) == message


def _context(sent: list[protocol.ToNode]) -> task_context.TaskContext:
    return task_context.TaskContext(protocol.Invoke("t1", 1, b"null", 1, 60.0), "tested", sent.append)


def test_a_blocking_call_on_the_loop_is_refused() -> None:
    with replicas.started("plain:misused") as replica:
        assert "await context.call" in replicas.output_of(replica.run("x"))


def test_the_context_tells_of_the_task() -> None:
    with replicas.started("plain:named_context") as replica:
        assert replicas.output_of(replica.run("x")) == ["x", "t1", "t1", True]


def test_events_are_strict_json_of_a_known_type_and_size() -> None:
    with replicas.started("plain:emits") as replica:
        refused = replicas.output_of(replica.run("x"))
        assert replica.data("progress") == [{"step": 1}]
        assert replica.data("message") == ["from a thread"]
    assert [message.partition(":")[0] for message in refused] == [
        "the event is not strict JSON",
        "the event is too large",
        "cannot emit",
        "cannot emit",
        "the event is not strict JSON",
    ]


def test_a_flood_of_events_is_cut() -> None:
    with replicas.started("plain:floods") as replica:
        assert replicas.output_of(replica.run("x")) == "done"
        assert len(replica.data("message")) == 9_999
        logs = replica.data("log")
    assert logs[0]["truncated"]
    assert len(logs) == 1 + output.MAX_TASK_LINES + 1


# --- what agents print


def test_what_an_agent_prints_is_told_of_its_task() -> None:
    with replicas.started("plain:talk") as replica:
        replica.run("you")
        replica.channel.close()
        replica.exit_code()
        assert replica.printed() == "from a thread of no task\n"
    assert replica.data("log") == [
        {"stream": "stdout", "line": "hello you"},
        {"stream": "stderr", "line": "WARNING logged", "level": "warning", "logger": "agent"},
        {"stream": "stderr", "line": "no end"},
        {"stream": "stdout", "line": "the tail"},
    ]


# --- the process


def test_a_blocked_thread_does_not_stop_the_loop() -> None:
    with replicas.started("plain:block") as replica:
        replica.invoke("t1", 30.0)
        replica.event("message", "blocking")
        replica.send(protocol.Probe(5))
        replica.until(lambda m: m == protocol.Alive(5))


@pytest.mark.slow
def test_the_loop_shows_that_it_is_alive_while_a_task_runs() -> None:
    with replicas.started("plain:sleep") as replica:
        replica.invoke("t1", "x")
        replica.until(lambda m: m == protocol.Alive(0))


def test_a_replica_leaves_when_its_node_is_gone() -> None:
    with replicas.started("plain:block") as replica:
        replica.invoke("t1", 30.0)
        replica.event("message", "blocking")
        replica.channel.close()
        assert replica.exit_code() == 0


def test_a_replica_whose_loop_is_blocked_leaves_when_its_node_is_gone() -> None:
    with replicas.started("plain:block_the_loop") as replica:
        replica.invoke("t1", 60.0)
        assert os.read(replica.output, 100) == b"blocking the loop"
        replica.channel.close()
        assert replica.exit_code() == 0


def test_sigterm_cancels_what_runs_and_leaves() -> None:
    with replicas.started("plain:sleep") as replica:
        replica.invoke("t1", "x")
        replica.send(protocol.Probe(1))
        replica.until(lambda m: m == protocol.Alive(1))
        os.kill(replica.pid, signal.SIGTERM)
        assert replica.end_of("t1").cancelled
        assert replica.exit_code() == 0


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\x02\x00\x00\x00\x91\x63", b"\x01\x00\x00\x00\xc1"])
def test_a_garbled_frame_ends_the_replica(garbage: bytes) -> None:
    with replicas.started("plain:echo") as replica:
        replica.channel.sendall(garbage)
        assert replica.exit_code() == os.EX_PROTOCOL


def test_a_process_that_agent_code_ends_is_gone() -> None:
    with replicas.started("plain:fail") as replica:
        replica.invoke("t1", "die")
        assert replica.exit_code() == 7


def test_large_inputs_and_results_pass() -> None:
    with replicas.started("plain:echo") as replica:
        text = "é" * 3_000_000
        assert replicas.output_of(replica.run(text)) == text


def test_a_replica_imports_little() -> None:
    allowed = {
        "greenroom",
        "greenroom.errors",
        "greenroom.redaction",
        "greenroom.strict_json",
        "greenroom.sdk",
        "greenroom.sdk.context",
        "greenroom.engine",
        *(
            f"greenroom.engine.{name}"
            for name in (
                "advice",
                "factories",
                "failures",
                "migrations",
                "otel",
                "output",
                "protocol",
                "replica",
                "running",
                "said",
                "secret_values",
                "spans",
                "task_context",
                "threads",
                "trying",
                "values",
            )
        ),
        "greenroom.adapters",
        *(
            f"greenroom.adapters.{name}"
            for name in ("autogen_agentchat", "autogen_classic", "callables", "contract", "model_calls", "registry")
        ),
    }
    probe = "import json, sys; import greenroom.engine.replica; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", probe], env={"PYTHONPATH": str(SOURCE)}, capture_output=True, check=True
    )
    imported = json.loads(done.stdout)
    own = {name for name in imported if name.partition(".")[0] == "greenroom"}
    assert own == allowed
    foreign = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"greenroom", "__main__"}
    assert foreign <= {"msgspec", "_virtualenv", "sitecustomize", "_distutils_hack", "typing_extensions"}
    assert not {"uvloop", "importlib.metadata", "unittest", "email", "http", "xml"} & set(imported)


# --- bounds, without a process


def test_a_task_log_joins_the_pieces_of_a_line_and_cuts_long_ones() -> None:
    lines: list[said.Line] = []
    log = output.TaskLog(lines.append)
    log.write("stdout", "a")
    log.write("stderr", "error\n")
    log.write("stdout", "b\nc\n\nd")
    log.write("stdout", "x" * 10_000)
    log.write("stdout", "y" * 10_000 + "\nend")
    log.close()
    log.write("stdout", "late\n")
    assert [line.text for line in lines if line.stream == "stdout"] == [
        "ab",
        "c",
        "",
        "d" + "x" * 4095 + "…",
        "end",
    ]
    assert said.Line("stderr", "error") in lines


def test_a_result_at_the_limit_fits_and_one_byte_more_does_not() -> None:
    limit = running.MAX_OUTPUT_BYTES
    assert len(values.encode("x" * (limit - 2), "result", limit_bytes=limit)) == limit
    with pytest.raises(values.Unfit, match="too large"):
        values.encode("x" * (limit - 1), "result", limit_bytes=limit)
