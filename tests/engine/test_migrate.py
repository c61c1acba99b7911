"""A session's state that another revision wrote goes through the agent's own `migrate`."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

import replicas
from greenroom.engine import protocol

OWN_REVISION = 1  # what `replicas.Replica` is of


def run(
    replica: replicas.Replica, state: Any, *, revision: int | None, input: Any = None, task: str = "t1"
) -> protocol.Ended:
    encoded = json.dumps(state, separators=(",", ":")).encode()
    invoke = protocol.Invoke(
        task, 1, json.dumps(input).encode(), 1, 60.0, session="s", state=encoded, state_revision=revision
    )
    replica.send(invoke)
    return replica.end_of(task)


def migrate(replica: replicas.Replica, state: Any, *, revision: int = 7, had_s: float = 60.0) -> protocol.Ended:
    replica.send(protocol.Migrate("m1", 1, json.dumps(state).encode(), revision, had_s))
    return replica.end_of("m1")


@pytest.mark.parametrize(
    ("factory", "seen"),
    [
        ("migrating:Own", {"path": ["object", 7, 1], "was": {"a": 1}}),
        ("migrating:build", {"path": ["function", 7, 1]}),
        ("migrating:Keeper", {"a": 1, "path": ["module", 7, 1]}),
        ("migrating:Unfit", {"a": 1, "path": ["module", 7, 1]}),
        ("migrating:agent", {"a": 1, "path": ["module", 7, 1]}),
        ("migrating.py:agent", {"a": 1, "path": ["module", 7, 1]}),
        ("plain:Notebook", {"a": 1}),
    ],
)
def test_it_is_found_on_the_agent_then_its_factory_then_their_module(factory: str, seen: Any) -> None:
    with replicas.started(factory, sessions=True) as replica:
        if factory == "plain:Notebook":  # has none at all
            assert migrate(replica, ["a line"]).output == b"true"
            assert replicas.output_of(run(replica, ["a line"], revision=7, input="another")) == 2
            return
        ended = run(replica, {"a": 1}, revision=7)
        assert replicas.output_of(ended) == seen
        assert ended.state is not None
        assert json.loads(ended.state) == seen


@pytest.mark.parametrize("revision", [OWN_REVISION, None])
def test_state_of_the_same_revision_is_taken_as_it_is(revision: int | None) -> None:
    with replicas.started("migrating:agent", sessions=True) as replica:
        ended = run(replica, {"a": 1}, revision=revision)
    assert (replicas.output_of(ended), ended.state) == ({"a": 1}, None)


def test_what_comes_out_the_same_is_stored_as_state_of_this_revision() -> None:
    with replicas.started("migrating:Same", sessions=True) as replica:
        assert run(replica, {"a": 1}, revision=7).state is not None
        assert run(replica, {"a": 1}, revision=7, task="t2").state == b'{"a":1}'


def test_a_migrate_that_returns_none_lets_the_session_begin_anew() -> None:
    with replicas.started("migrating:Fails", sessions=True) as replica:
        ended = run(replica, {"a": 1}, revision=7)
        assert (replicas.output_of(ended), ended.state) == (None, None)
        assert migrate(replica, {"a": 1}).output == b"true"


@pytest.mark.parametrize(
    ("state", "type", "words"),
    [
        ("raise", "state_not_migratable", ["Fails.migrate raised KeyError: 'no lines'"]),
        ("exit", "state_not_migratable", ["raised SystemExit: 3"]),
        ("set", "state_not_migratable", ["returned what cannot be kept: the state is not strict JSON: a set"]),
        ("huge", "state_not_migratable", ["the state is too large"]),
        ("unloadable", "state_not_loadable", ["written by revision 7 and taken through Fails.migrate: KeyError"]),
    ],
)
def test_a_state_that_cannot_be_taken_over_fails_its_task_with_what_to_do(
    state: str, type: str, words: list[str]
) -> None:
    with replicas.started("migrating:Fails", sessions=True) as replica:
        for ended in (run(replica, state, revision=7), migrate(replica, state)):
            assert (ended.error_type, ended.output, ended.state) == (type, None, None)
            for word in (*words, "revision 7", "remove the session"):
                assert word in ended.error_message
            if type == "state_not_migratable":
                assert "from revision 7 to 1" in ended.error_message


@pytest.mark.parametrize("factory", ["migrating:Own", "migrating:build", "migrating:Keeper", "migrating:agent"])
def test_a_migration_is_tried_and_nothing_of_it_is_kept(factory: str) -> None:
    with replicas.started(factory, sessions=True) as replica:
        assert migrate(replica, {"a": 1}) == protocol.Ended("m1", 1, output=b"true")
        assert replica.events == []


def test_a_state_that_is_no_json_is_told_of() -> None:
    with replicas.started("migrating:Own", sessions=True) as replica:
        replica.send(protocol.Migrate("m1", 1, b"{", 7, 60.0))
        assert replica.end_of("m1").error_type == "state_not_loadable"


def test_a_migration_that_does_not_end_is_told_so_after_its_time() -> None:
    with replicas.started("migrating:Fails", sessions=True) as replica:
        ended = migrate(replica, "wait", had_s=0.1)
        assert ended.error_type == "check_timeout"
        assert ended.error_message.startswith(
            "taking over a state that revision 7 wrote did not end in the 0.1 s that it had"
        )
        os.kill(replica.pid, signal.SIGKILL)  # as the node does
