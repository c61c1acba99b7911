"""Policies: roles beside the built-in ones, and every mistake in them at once."""

from __future__ import annotations

from typing import Any

import pytest

from greenroom.core import isolation, permissions, policies, tenancy
from greenroom.core.permissions import HOME, ROLES, Action


def _mistakes(roles: Any) -> dict[str, str]:
    _, problems = policies.read({"roles": roles})
    return {".".join(map(str, where)): why for where, why in problems}


def test_a_role_has_its_grants_and_those_of_what_it_extends() -> None:
    document = {
        "roles": {
            "lead": {"extends": ["researcher", "viewer"], "grants": ["key:read"]},
            "researcher": {"description": "The research team", "grants": ["task:* on agent:research-*"]},
        }
    }
    roles, problems = policies.read(document)
    assert problems == []
    assert {*roles} == {*ROLES, "lead", "researcher"}
    lead = permissions.rights("lead", tenant=HOME, roles=roles)
    assert lead.allows(Action.KEY_READ)
    assert lead.on_agent(Action.TASK_CANCEL, "research-1")
    assert not lead.on_agent(Action.TASK_CANCEL, "writer")
    assert lead.on_agent(Action.TASK_READ, "writer")


def test_without_roles_there_are_the_built_in_ones() -> None:
    assert policies.read({}) == (ROLES, [])


def test_every_mistake_is_told_at_once_and_where() -> None:
    found = _mistakes(
        {
            "admin": {"grants": ["*"]},
            "Boss": {"extends": "viewer"},
            "a": {"extends": "viewr", "grants": ["task:sumbit", "task:read on reserch", 3, ""]},
            "b": {"extends": ["c"]},
            "c": {"extends": "b"},
            "d": {"extends": "d"},
            "e": {},
            "f": [],
            "g": {"grants": "task:read", "extends": 1, "description": 2, "grant": []},
        }
    )
    assert set(found) == {
        "roles.admin",
        "roles.Boss",
        "roles.a.extends",
        *(f"roles.a.grants.{place}" for place in range(4)),
        "roles.b.extends",
        "roles.c.extends",
        "roles.d.extends",
        "roles.e",
        "roles.f",
        *(f"roles.g.{key}" for key in ("grants", "extends", "description", "grant")),
    }
    assert 'did you mean "viewer"?' in found["roles.a.extends"]
    assert 'did you mean "task:submit"?' in found["roles.a.grants.0"]
    assert 'did you mean "grants"?' in found["roles.g.grant"]
    assert "built in" in found["roles.admin"]


def test_with_a_mistake_no_role_of_the_file_is_given_out() -> None:
    roles, problems = policies.read({"roles": {"good": {"extends": "admin"}, "bad": {}}})
    assert problems
    assert roles == ROLES


@pytest.mark.parametrize("document", [{"role": {}}, {"roles": []}, {"roles": 1}, {"roles": {}, "x": 1}])
def test_a_file_of_another_shape_is_refused(document: dict[str, Any]) -> None:
    assert policies.read(document)[1]


def test_there_are_bounds() -> None:
    many = {f"r{n}": {"extends": "viewer"} for n in range(policies.MAX_ROLES + 1)}
    assert "at most" in _mistakes(many)["roles"]
    grants = [f"task:read on agent:a{n}" for n in range(permissions.MAX_GRANTS)]
    found = _mistakes({"a": {"grants": grants}, "b": {"extends": "a", "grants": ["key:read"]}})
    assert list(found) == ["roles.b"]


def test_a_grant_on_an_agent_that_is_not_there_is_named() -> None:
    roles, _ = policies.read({"roles": {"a": {"grants": ["task:read on agent:reserch", "task:read on agent:wri*"]}}})
    assert [(role, str(grant)) for role, grant in policies.unmatched(roles, {"research": 1, "writer": 1})] == [
        ("a", "task:read on agent:reserch")
    ]


@pytest.mark.parametrize(("tier", "allowed"), [("T0", False), ("T1", False), ("T2", True)])
def test_several_tenants_need_the_second_tier(tier: isolation.Tier, allowed: bool) -> None:
    assert tenancy.tenants_allowed(tier) is allowed
