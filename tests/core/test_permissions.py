"""Permissions: what a grant allows, what a layer takes away, and that nobody grants more than they have."""

from __future__ import annotations

import fnmatch
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.core import permissions
from greenroom.core.permissions import HOME, ON_AGENTS, ROLES, SYSTEM, Action, Grant, Layer, Rights

NAMES = ("a", "ab", "abc", "b", "ba", "research", "research-1", "a_b")
PATTERNS = st.text("ab*", min_size=1, max_size=5)
GRANTS = st.builds(
    Grant,
    st.sampled_from(["*", "task:*", "*:read", "key:*", *Action]),
    st.one_of(st.just("*"), PATTERNS.map(lambda name: f"agent:{name}")),
)


def _rights(*layers: tuple[str, ...]) -> Rights:
    return Rights(Layer(f"layer {n}", tuple(map(permissions.parse, layer))) for n, layer in enumerate(layers))


@given(PATTERNS, st.text("ab", max_size=6))
def test_a_pattern_matches_what_the_shells_does(pattern: str, text: str) -> None:
    assert permissions.matches(pattern, text) == fnmatch.fnmatchcase(text, pattern)


@given(PATTERNS, PATTERNS, st.text("ab", max_size=6))
def test_a_pattern_that_matches_another_matches_all_that_the_other_does(wide: str, narrow: str, text: str) -> None:
    if permissions.matches(wide, narrow) and permissions.matches(narrow, text):
        assert permissions.matches(wide, text)


def test_a_pattern_of_many_stars_costs_no_more_than_its_length() -> None:
    assert not permissions.matches("agent:" + "a*" * 28 + "b", "agent:" + "a" * 63)


def test_what_is_not_granted_is_denied() -> None:
    assert not any(Rights(()).allows(action) for action in Action)
    assert not any(_rights(()).allows(action) for action in Action)
    assert not any(permissions.rights("god", tenant=HOME).allows(action) for action in Action)


def test_a_grant_on_an_agent_is_for_that_agent_and_for_nothing_beside_agents() -> None:
    rights = _rights(("* on agent:research",))
    assert {action for action in Action if rights.allows(action)} == ON_AGENTS
    assert rights.on_agent(Action.TASK_SUBMIT, "research")
    assert not rights.on_agent(Action.TASK_SUBMIT, "research-1")
    assert not rights.on_all(Action.TASK_SUBMIT)
    assert not rights.allows(Action.SYSTEM_SHUTDOWN, "agent:research")
    assert rights.agents(Action.TASK_SUBMIT) == (("research",),)
    assert rights.agents(Action.KEY_CREATE) == ()


def test_a_layer_narrows_and_never_widens() -> None:
    rights = _rights(("task:read", "task:submit on agent:research-*"), ("task:* on agent:*-1", "agent:read"))
    assert rights.on_agent(Action.TASK_SUBMIT, "research-1")
    assert not rights.on_agent(Action.TASK_SUBMIT, "research-2")
    assert not rights.on_agent(Action.TASK_SUBMIT, "other-1")
    assert rights.on_agent(Action.TASK_READ, "other-1")
    assert not rights.allows(Action.TASK_CANCEL)
    assert not rights.allows(Action.AGENT_READ)
    assert rights.agents(Action.TASK_SUBMIT) == (("research-*", "*-1"),)


@given(st.lists(st.lists(GRANTS, max_size=4), min_size=1, max_size=3), st.sampled_from(Action), st.sampled_from(NAMES))
def test_rights_are_what_every_layer_grants(layers: list[list[Grant]], action: Action, name: str) -> None:
    rights = Rights(Layer("", tuple(layer)) for layer in layers)
    resource = f"agent:{name}"

    def is_granted(grant: Grant) -> bool:
        if not fnmatch.fnmatchcase(action, grant.action):
            return False
        return grant.resource == "*" or (action in ON_AGENTS and fnmatch.fnmatchcase(resource, grant.resource))

    assert rights.allows(action, resource) == all(any(map(is_granted, layer)) for layer in layers)
    assert rights.on_agent(action, name) == rights.allows(action, resource)
    assert rights.on_agent(action, name) == rights.on_agent(action, name), "also when it is known"
    if rights.on_all(action):
        assert rights.on_agent(action, name)
    patterns = rights.agents(action)
    assert rights.on_agent(action, name) == (
        patterns is None or any(all(fnmatch.fnmatchcase(name, one) for one in each) for each in patterns)
    )


@given(
    st.lists(st.lists(GRANTS, max_size=4), min_size=1, max_size=2),
    st.lists(st.lists(GRANTS, max_size=4), min_size=1, max_size=2),
)
@settings(max_examples=300)
def test_what_is_covered_allows_no_more(wide: list[list[Grant]], narrow: list[list[Grant]]) -> None:
    mine, theirs = (Rights(Layer("", tuple(layer)) for layer in layers) for layers in (wide, narrow))
    assert mine.covers(mine)
    if mine.covers(theirs):
        for action in Action:
            assert mine.allows(action) or not theirs.allows(action)
            assert mine.on_all(action) or not theirs.on_all(action)
            for name in NAMES:
                assert mine.on_agent(action, name) or not theirs.on_agent(action, name)


KEYS = st.tuples(st.sampled_from([*ROLES]), st.none() | st.lists(GRANTS, max_size=3), st.sampled_from([HOME, "acme"]))


@given(st.lists(st.tuples(st.integers(0, 20), KEYS), max_size=12), KEYS)
@settings(max_examples=300)
def test_no_series_of_keys_leads_to_more_than_the_first_allowed(
    wishes: list[tuple[int, tuple[str, list[Grant] | None, str]]], first: tuple[str, list[Grant] | None, str]
) -> None:
    def rights(key: tuple[str, list[Grant] | None, str]) -> Rights:
        role, scopes, tenant = key
        return permissions.rights(role, tenant=tenant, scopes=scopes)

    keys = [rights(first)]
    for creator, wished in wishes:
        by, new = keys[creator % len(keys)], rights(wished)
        if by.allows(Action.KEY_CREATE) and by.covers(new):
            keys.append(new)
    for key in keys:
        for action in Action:
            assert keys[0].allows(action) or not key.allows(action)
            for name in NAMES:
                assert keys[0].on_agent(action, name) or not key.on_agent(action, name)


def test_a_key_whose_scopes_leave_the_same_may_be_made_by_one_with_those() -> None:
    creator = permissions.rights("admin", tenant=HOME, scopes=[Grant("key:*"), Grant("task:*", "agent:b")])
    same = permissions.rights(
        "admin", tenant=HOME, scopes=[Grant("task:*", "agent:a"), Grant("task:submit", "agent:b")]
    )
    assert creator.lacks(same) == [Action.TASK_SUBMIT, Action.TASK_READ, Action.TASK_CANCEL]
    narrower = permissions.rights("user", tenant=HOME, scopes=[Grant("task:submit", "agent:b")])
    assert creator.covers(narrower)


# Roles and tenants


def test_the_roles_hold_one_another() -> None:
    roles = [permissions.rights(role, tenant=HOME) for role in ("viewer", "user", "operator", "admin")]
    for lower, higher in itertools.pairwise(roles):
        assert higher.covers(lower)
        assert not lower.covers(higher)
    assert all(roles[-1].on_all(action) for action in Action)


def test_the_chapters_matrix_is_the_core() -> None:
    core = {
        Action.AGENT_DEPLOY: {"admin"},
        Action.TASK_SUBMIT: {"user", "operator", "admin"},
        Action.METRICS_READ: {"viewer", "user", "operator", "admin"},
        Action.SYSTEM_SHUTDOWN: {"admin"},
    }
    for action, roles in core.items():
        assert {role for role in ROLES if permissions.rights(role, tenant=HOME).allows(action)} == roles


@pytest.mark.parametrize("role", ROLES)
def test_what_concerns_all_tenants_is_for_the_home_tenant(role: str) -> None:
    home, other = (permissions.rights(role, tenant=tenant) for tenant in (HOME, "acme"))
    assert not any(other.allows(action) for action in SYSTEM)
    assert home.covers(other)
    for action in set(Action) - SYSTEM:
        assert other.allows(action) == home.allows(action)


def test_no_tenant_is_the_home_tenant_by_another_spelling() -> None:
    for tenant in ("", "Default", "default ", "DEFAULT"):
        assert not permissions.rights("admin", tenant=tenant).allows(Action.AGENT_DEPLOY)


# Grants as text


@pytest.mark.parametrize("text", ["task:submit", "task:*", "*", "*:read", "task:submit on agent:research-*"])
def test_a_grant_is_read_as_it_is_written(text: str) -> None:
    assert str(permissions.parse(text)) == text
    assert permissions.parse(f"  {text.replace(' ', '   ')} ") == permissions.parse(text)


def test_every_agent_is_every_resource_of_what_is_done_on_agents() -> None:
    assert permissions.parse("task:read on agent:*") == Grant("task:read")
    assert permissions.parse("task:read on *") == Grant("task:read")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task:sumbit", 'did you mean "task:submit"?'),
        ("tasks:*", "there is no action"),
        ("task:submit on agent:Foo", "there is no resource"),
        ("task:submit on agent:a/b", "there is no resource"),
        ("task:submit on research", 'did you mean "agent:research"?'),
        ("task:submit on tenant:a", "there is no resource"),
        ("metrics:read on agent:a", "is done on no agent"),
        ("task:submit at agent:a", "expected an action"),
        ("", "expected an action"),
        ("task:submit\n on", "expected an action"),
        ("TASK:SUBMIT", "there is no action"),
        ("task:[a-z]*", "there is no action"),
        ("task:submit on agent:" + "a" * 64, "there is no resource"),
        ("task:submit on agent:a\u202e", "there is no resource"),
    ],
)
def test_a_grant_with_a_mistake_says_what_is_wrong(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        permissions.parse(text)
    assert str(refused.value).isprintable()


def test_why_names_the_grants_that_allow_and_the_layer_that_does_not() -> None:
    rights = permissions.rights("user", tenant="acme", scopes=[permissions.parse("task:submit on agent:a")])
    assert rights.why(Action.TASK_SUBMIT, "agent:a") == (
        '"task:submit" of the role user and "task:submit on agent:a" of the key\'s scope list and "task:submit" of the '
        "tenant acme (not the node's own)"
    )
    assert rights.why(Action.TASK_SUBMIT, "agent:b") == "the key's scope list does not grant task:submit on agent:b"
    assert rights.why(Action.KEY_CREATE) == "the role user does not grant key:create"
    admin = permissions.rights("admin", tenant="acme")
    assert admin.why(Action.AGENT_DEPLOY).startswith("the tenant acme (not the node's own)")
