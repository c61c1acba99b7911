"""What a list shows by patterns is what the permissions allow by them, in both databases."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.core import permissions
from greenroom.store import agent_patterns
from greenroom.testing import databases
from greenroom.testing.store_contract import TENANT, Node

NAMES = ("a", "ab", "a_b", "a-b", "aab", "b", "axb", "research", "research-1")
PATTERNS = ("*", "a", "a*", "*b", "a_*", "*_*", "a*b", "re*ch-*", "a-b", "x*", "**", "research")


@pytest.fixture(params=["sqlite_scratch", "postgres_scratch"])
def scratch(request: pytest.FixtureRequest) -> databases.Scratch:
    opened: databases.Scratch = request.getfixturevalue(request.param)
    return opened


@pytest.fixture
async def node(scratch: databases.Scratch) -> Node:
    return Node(await scratch.open())


async def test_a_list_has_the_rows_of_the_agents_that_match(node: Node) -> None:
    for name in NAMES:
        await node.submit(agent=name)
    for each in itertools.chain(
        [(one,) for one in PATTERNS], itertools.combinations(PATTERNS, 2), itertools.product("a", "b")
    ):
        for agents in ([each], [(one,) for one in each]):
            found = {task.agent for task in await node.store.tasks.list(tenant=TENANT, agents=agents)}
            wanted = {name for name in NAMES if any(all(permissions.matches(p, name) for p in c) for c in agents)}
            assert found == wanted, agents


async def test_no_pattern_matches_nothing_and_none_is_no_condition(node: Node) -> None:
    await node.submit(agent="a")
    assert not await node.store.tasks.list(tenant=TENANT, agents=())
    assert len(await node.store.tasks.list(tenant=TENANT)) == 1


async def test_thousands_of_patterns_are_no_statement_that_is_too_deep(node: Node) -> None:
    await node.submit(agent="research")
    many = [(f"x{n}*", "*y") for n in range(1_500)]
    assert not await node.store.tasks.list(tenant=TENANT, agents=many)
    assert len(await node.store.tasks.list(tenant=TENANT, agents=[*many, ("res*",)])) == 1


@given(st.lists(st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3), max_size=4))
@settings(max_examples=50)
def test_every_parameter_has_a_name_of_its_own(agents: list[list[str]]) -> None:
    params: dict[str, object] = {"tenant": "t", "limit": 1}
    condition = agent_patterns.condition(agents, params)
    assert condition is not None
    assert len(params) == 2 + sum(map(len, agents))
    assert all(f":{name}" in condition for name in params if name.startswith("agent_"))
