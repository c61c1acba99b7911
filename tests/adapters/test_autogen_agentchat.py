"""The experiments E1 to E10 of AutoGen 0.7.5, through a real replica."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

import replicas
from greenroom.adapters import autogen_agentchat
from greenroom.engine import protocol

importlib.import_module("autogen_agentchat.teams")  # here once, and not in every replica after its fork
importlib.import_module("autogen_ext.models.replay")


@pytest.mark.parametrize("factory", ["chat:seen_by_agent", "chat:seen_by_team"])
def test_tasks_at_once_do_not_see_each_other(factory: str) -> None:
    with replicas.started(factory) as replica:
        replica.invoke("alice", "ALICE secret")
        replica.invoke("bob", "BOB")
        assert json.loads(replicas.output_of(replica.end_of("alice"))) == ["ALICE secret"]
        assert json.loads(replicas.output_of(replica.end_of("bob"))) == ["BOB"]


def test_one_agent_object_for_all_tasks_is_refused_before_any_task() -> None:
    for factory, words in (
        ("chat:ready_made", "def build(): return AssistantAgent(...)"),
        ("chat:always_the_same", "gave the same AssistantAgent again"),
        ("chat:team_of_shared_agents", "gave the same AssistantAgent again"),
        ("chat:team_of_a_shared_team", "gave the same RoundRobinGroupChat again"),
    ):
        with replicas.Replica(factory, check=True) as replica:
            refused = replica.refused()
        assert refused.error_type == "SharedAgent"
        assert words in refused.message


def test_one_agent_object_for_all_tasks_fails_each_but_the_first_where_nobody_checked() -> None:
    with replicas.started("chat:always_the_same") as replica:
        replica.run("ALICE")
        again = replica.run("BOB", task="t2")
    assert again.error_type == "SharedAgent"
    assert "build all of it inside the factory" in again.error_message


@pytest.mark.parametrize("factory", ["chat:stuck_agent", "chat:stuck_team"])
def test_a_cancel_during_a_tool_call_ends_within_its_grace(factory: str) -> None:
    with replicas.started(factory) as replica:
        replica.invoke("t1", "go")
        replica.event("log", "in the tool")
        replica.send(protocol.Cancel("t1", 1, grace_s=1.0))
        ended = replica.end_of("t1")
        assert ended.cancelled
        assert (ended.output, ended.state, ended.error_type) == (None, None, None)
        assert {"stream": "stdout", "line": "tool ended"} in replica.data("log")
        assert ended.input_tokens == 10
        replica.channel.close()
        replica.exit_code()
        assert "task_done" not in replica.printed()


@pytest.mark.parametrize("factory", ["chat:stuck_agent", "chat:stuck_team"])
def test_the_turn_after_a_cancelled_one_sees_no_tool_call_without_a_result(factory: str) -> None:
    with replicas.started(factory, sessions=True) as replica:
        first = replica.run("hello", session="s")
        replica.invoke("t2", "go", session="s", state=first.state)
        replica.event("log", "in the tool")
        replica.send(protocol.Cancel("t2", 1, grace_s=0.2))
        assert replica.end_of("t2").state is None
        third = replica.run("next", task="t3", session="s", state=first.state)
    assert json.loads(replicas.output_of(third)) == ["UserMessage", "AssistantMessage", "UserMessage"]


def test_a_state_from_elsewhere_with_an_open_tool_call_is_repaired() -> None:
    call = {"id": "1", "name": "stuck", "arguments": "{}"}
    history = [
        {"type": "UserMessage", "content": "go", "source": "user"},
        {"type": "AssistantMessage", "content": [call], "source": "a"},
    ]
    state = {"type": "AssistantAgentState", "version": "1.0.0", "llm_context": {"messages": history}}
    with replicas.started("chat:stuck_agent", sessions=True) as replica:
        ended = replica.run("next", session="s", state=json.dumps(state).encode())
    assert json.loads(replicas.output_of(ended)) == [
        "UserMessage",
        "AssistantMessage",
        "FunctionExecutionResultMessage",
        "UserMessage",
    ]


def test_answered_tool_calls_are_left_as_they_are() -> None:
    history: list[dict[str, Any]] = [
        {"type": "AssistantMessage", "content": [{"id": "1", "name": "f", "arguments": "{}"}]},
        {"type": "FunctionExecutionResultMessage", "content": []},
        {"type": "AssistantMessage", "content": "text"},
    ]
    state = {"agent_states": {"a": {"agent_state": {"llm_context": {"messages": list(history)}}}}}
    autogen_agentchat.answer_open_calls(state)
    assert state["agent_states"]["a"]["agent_state"]["llm_context"]["messages"] == history


def test_a_session_of_an_agent_remembers() -> None:
    with replicas.started("chat:remembering_agent", sessions=True) as replica:
        first = replica.run("one", session="s")
    with replicas.started("chat:remembering_agent", sessions=True) as replica:  # another process
        second = replica.run("two", session="s", state=first.state)
        other = replica.run("three", task="t2", session="other")
    assert json.loads(replicas.output_of(second)) == ["one", "two"]
    assert json.loads(replicas.output_of(other)) == ["three"]


def test_a_session_of_a_team_remembers() -> None:
    with replicas.started("chat:remembering_team", sessions=True) as replica:
        state = replica.run("one", session="s").state
    with replicas.started("chat:remembering_team", sessions=True) as replica:
        second = replicas.output_of(replica.run("two", session="s", state=state))
    assert "one" in second
    assert "two" in second


def test_a_state_of_a_team_with_other_members_is_refused() -> None:
    with replicas.started("chat:remembering_team", sessions=True) as replica:
        state = replica.run("one", session="s").state
    with replicas.started("chat:remembering_team", sessions=True, arguments={"names": ["a", "c"]}) as replica:
        ended = replica.run("two", session="s", state=state)
    assert ended.error_type == "state_not_loadable"
    assert "Agent state for c not found" in ended.error_message


@pytest.mark.parametrize("factory", ["chat:failing_agent", "chat:failing_team", "chat:failing_team_of_teams"])
@pytest.mark.parametrize(
    ("input", "retry_on", "type", "message", "retryable"),
    [
        ("x", (), "TimeoutError", "429", False),
        ("x", ("TimeoutError",), "TimeoutError", "429", True),
        ("x", ("OSError",), "TimeoutError", "429", True),
        ("overloaded", (), "Overloaded", "come back: later", True),
        ("x", ("RuntimeError",), "TimeoutError", "429", False),
    ],
)
def test_an_error_in_a_team_is_told_with_its_own_type(
    factory: str, input: str, *, retry_on: tuple[str, ...], type: str, message: str, retryable: bool
) -> None:
    with replicas.started(factory, retry_on=retry_on) as replica:
        ended = replica.run(input)
    assert (ended.error_type, ended.error_message, ended.retryable) == (type, message, retryable)


def test_tool_calls_are_events_and_all_tokens_count() -> None:
    with replicas.started("chat:tool_agent", check=True) as replica:
        ended = replica.run("hi")
        request, execution = replica.data("tool")
        assert request["type"] == "ToolCallRequestEvent"
        assert request["content"][0]["name"] == "shout"
        assert execution["content"][0]["content"] == "HI"
        assert {"from": "tool"} in replica.data("message")
        assert {"stream": "stdout", "line": "shouting"} in replica.data("log")
        assert replica.data("message")[-1]["source"] == "a"
    assert "I said" in replicas.output_of(ended)
    assert (ended.input_tokens, ended.output_tokens) == (20, 10)


def test_chunks_are_output_events_and_are_not_counted_twice() -> None:
    with replicas.started("chat:streaming_agent") as replica:
        ended = replica.run("x")
        chunks = replica.data("output")
    assert "".join(chunk["content"] for chunk in chunks) == "one two three"
    assert {chunk["source"] for chunk in chunks} == {"a"}
    assert replicas.output_of(ended) == "one two three"
    assert ended.output_tokens == 3


def test_a_team_streams_its_messages_and_says_why_it_stopped() -> None:
    with replicas.Replica("chat:replay_team", check=True) as replica:
        ready = replica.ready()
        ended = replica.run({"task": "go"})
        said = [(message["source"], message["content"]) for message in replica.data("message")]
        assert replica.data("progress") == [{"stop_reason": "Maximum number of turns 2 reached."}]
    assert ready.adapter == "autogen-agentchat"
    assert "builds an AutoGen AgentChat agent or team" in ready.took
    assert said == [("research", "research done"), ("analysis", "analysis done")]
    assert replicas.output_of(ended) == "analysis done"


@pytest.mark.parametrize(
    ("factory", "output"),
    [
        ("chat:structured_agent", {"good": True, "score": 3}),
        ("chat:summary_agent", "X"),
        ("chat:handing_team", "over to you"),
    ],
)
def test_the_output_is_the_last_message(factory: str, output: Any) -> None:
    with replicas.started(factory) as replica:
        assert replicas.output_of(replica.run("x")) == output


def test_the_agents_of_a_team_are_closed() -> None:
    with replicas.started("chat:handing_team") as replica:
        replica.run("x")
        assert replica.data("log") == [{"stream": "stdout", "line": "closed"}]


def test_a_function_runs_agents_inside_its_task() -> None:
    with replicas.started("chat:function_that_runs_agents") as replica:
        ended = replica.run("hi")
        assert len(replica.data("tool")) == 2
    assert json.loads(replicas.output_of(ended)[1]) == ["hi"]
    assert (ended.input_tokens, ended.output_tokens) == (30, 15)


@pytest.mark.parametrize(
    ("input", "text"),
    [
        ("plain", "plain"),
        ({"task": "t"}, "t"),
        ({"prompt": "p"}, "p"),
        ({"task": 1}, '{"task":1}'),
        ({"task": "t", "style": "short"}, '{"task":"t","style":"short"}'),
        ([1, "é"], '[1,"é"]'),
        (None, "null"),
    ],
)
def test_an_input_becomes_text(input: Any, text: str) -> None:
    assert autogen_agentchat.text_of(input) == text
