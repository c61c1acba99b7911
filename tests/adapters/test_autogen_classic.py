from __future__ import annotations

import importlib
import warnings

import pytest

import replicas
from greenroom.engine import protocol

with warnings.catch_warnings(
    action="ignore", category=DeprecationWarning
):  # of what it imports where that is installed
    importlib.import_module("autogen")


def test_an_agent_replies_and_prints_as_its_task() -> None:
    with replicas.Replica("classic:agent", check=True) as replica:
        ready = replica.ready()
        ended = replica.run("hello")
        assert replica.data("log")[0]["line"] == "replying"
        assert replica.data("message") == [{"source": "classic", "content": "1: hello"}]
    assert ready.adapter == "autogen-classic"
    assert replicas.output_of(ended) == "1: hello"


@pytest.mark.parametrize(("input", "output"), [("dict", "in a dict"), ("nothing", None), ({"content": "x"}, "1: x")])
def test_a_reply_may_be_a_dict_or_nothing(input: object, output: str | None) -> None:
    with replicas.started("classic:agent") as replica:
        assert replicas.output_of(replica.run(input)) == output


def test_a_long_reply_is_shown_by_its_beginning_and_returned_whole() -> None:
    with replicas.started("classic:agent") as replica:
        assert replicas.output_of(replica.run("long")) == "y" * 1_000_000
        assert replica.data("message") == [{"source": "classic", "content": "y" * 8192, "shortened": True}]


def test_an_asynchronous_reply_function_is_awaited() -> None:
    with replicas.started("classic:asynchronous_agent") as replica:
        assert replicas.output_of(replica.run("hello")) == "later: hello"


def test_a_session_is_the_conversation() -> None:
    with replicas.started("classic:agent", sessions=True) as replica:
        first = replica.run("one", session="s")
        second = replica.run("two", task="t2", session="s", state=first.state)
        other = replica.run("three", task="t3", session="other")
    assert replicas.output_of(second) == "3: one, 1: one, two"
    assert replicas.output_of(other) == "1: three"


def test_tokens_are_counted() -> None:
    with replicas.started("classic:counted_agent") as replica:
        ended = replica.run("x")
    assert (ended.input_tokens, ended.output_tokens) == (7, 3)


def test_a_model_client_that_counts_badly_harms_no_task() -> None:
    with replicas.started("classic:miscounted_agent") as replica:
        ended = replica.run("x")
    assert replicas.output_of(ended) == "1: x"
    assert (ended.input_tokens, ended.output_tokens) == (7, 0)


def test_an_agent_that_two_group_chats_share_is_refused() -> None:
    with replicas.Replica("classic:manager_of_a_shared_agent", check=True) as replica:
        refused = replica.refused()
    assert refused.error_type == "SharedAgent"
    assert "gave the same ConversableAgent again" in refused.message


def test_a_blocked_reply_is_left_to_the_node() -> None:
    with replicas.started("classic:agent") as replica:
        replica.invoke("t1", "block")
        replica.event("log", "replying")
        replica.send(protocol.Cancel("t1", 1, grace_s=0.1))
        assert replicas.output_of(replica.run("next", task="t2")) == "1: next"
        assert "t1" not in replica.ended
