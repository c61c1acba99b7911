"""The controls of the security report say what is in force, not what the settings wish for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

import nodes
from greenroom import node, telemetry
from greenroom.core.isolation import Decision, Tier
from greenroom.core.posture import State
from greenroom.store.vault import Mode

ENCRYPTED = {"encryption_at_rest": True}


async def controls(api: nodes.Api) -> dict[str, tuple[str, str]]:
    return {each["name"]: (each["state"], each["why"]) for each in (await api.get("/v1/security"))["controls"]}


async def test_a_plain_node_says_what_is_off(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {}) as api:
        found = await controls(api)
    assert {name: state for name, (state, _) in found.items() if name != "no code at start"} == {
        "audit log": "on",
        "audit export": "off by setting",
        "intrusion rules": "off by setting",
        "authentication": "on",
        "roles": "on",
        "rate limit of a source": "off by setting",
        "rate limit of a principal": "off by setting",
        "rate limit of a tenant": "off by setting",
        "tls": "off by setting",
        "encryption at rest": "off by setting",
        "isolation": "off by setting",
        "tenants apart": "on",
        "no code by API": "on",
        "webhooks": "on",
        "backups": "off by setting",
    }
    assert all(why for _, why in found.values())


async def test_limits_exceptions_and_code_by_api_are_said(data_dir: Path) -> None:
    security = {"rate_limit_per_minute": 60}
    server = {"accept_code": True, "webhook_hosts": ["hooks.internal"]}
    async with nodes.opened(data_dir, {}, security=security, server=server) as api:
        found = await controls(api)
    assert found["rate limit of a principal"] == ("on", "60 requests a minute")
    assert found["rate limit of a tenant"] == ("on", "600 requests a minute")
    assert found["rate limit of a source"] == ("on", "6000 requests a minute")
    assert found["no code by API"][0] == "off by setting"
    assert "hooks.internal" in found["webhooks"][1]
    assert "names no issuer" in found["authentication"][1]


async def test_tenants_that_nothing_keeps_apart_are_said(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {}, security={"tenants_below_t2": True}) as api:
        state, why = (await controls(api))["tenants apart"]
        assert (state, "tenants_below_t2" in why) == ("off by setting", True)
        api.running.isolation = Decision(Tier.T2)
        assert (await controls(api))["tenants apart"][0] == "on"


async def test_isolation_that_the_machine_cannot_give_is_not_off_by_setting(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {}) as api:
        running = api.running
        running.isolation = Decision(Tier.T0, ("the kernel has no Landlock",))
        security = msgspec.structs.replace(running.settings.security, isolation="auto")
        running.settings = msgspec.structs.replace(running.settings, security=security)
        assert (await controls(api))["isolation"][0] == "not possible here"
        running.isolation = Decision(Tier.T1)
        assert (await controls(api))["isolation"][0] == "on"


async def test_a_key_beside_the_store_is_said_and_what_is_not_sealed_is_degraded(data_dir: Path) -> None:
    async with nodes.opened(data_dir, {}, security=ENCRYPTED) as api:
        state, why = (await controls(api))["encryption at rest"]
        assert (state, "encryption.key lies in the data directory" in why) == (State.ON, True)
        api.running.store.vault.mode = Mode.SEALING
        assert (await controls(api))["encryption at rest"][0] == State.DEGRADED
        api.running.store.vault.mode = Mode.SEALED
        api.running.facts.emit(telemetry.ValueDamaged("input of task 7: it was changed"))
        state, why = (await controls(api))["encryption at rest"]
        assert (state, "input of task 7" in why) == (State.DEGRADED, True)
        assert (await api.get("/v1/security"))["grade"] != "good"
    async with nodes.opened(data_dir, {}) as api:
        state, why = (await controls(api))["encryption at rest"]
        assert (state, "what was encrypted before is still read" in why) == (State.OFF, True)


async def test_a_policy_file_that_was_broken_is_degraded_until_it_is_right_again(
    data_dir: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[roles.reader]\ngrants = ["task:read"]\n')
    async with nodes.opened(data_dir, {}, security={"policy_file": str(policy)}) as api:
        assert (await controls(api))["roles"][0] == "on"
        policy.write_text("[roles.reader]\ngrants = ['task:fly']\n")
        await api.running.access.keys.step()
        assert (await controls(api))["roles"][0] == "degraded"
        policy.write_text('[roles.reader]\ngrants = ["task:read", "agent:read"]\n')
        await api.running.access.keys.step()
        assert (await controls(api))["roles"][0] == "on"


async def test_the_certificate_that_is_shown_counts_not_the_setting(data_dir: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "tls.pem", tmp_path / "tls.key"

    def issue(**given: Any) -> None:
        made = authority.issue_cert("127.0.0.1", **given)
        made.cert_chain_pems[0].write_to_path(str(certificate))
        made.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)

    issue()
    files = {"tls": True, "tls_certificate": str(certificate), "tls_key": str(key)}
    async with nodes.opened(data_dir, {}, security=files) as api:
        assert (await controls(api))["tls"][0] == "off by setting"  # nobody can connect
        async with node.listening(api.running):
            state, why = (await controls(api))["tls"]
            assert (state, "good until" in why) == ("on", True)
            certificate.write_text("nonsense")
            shown = api.running.certificate
            assert shown is not None
            await asyncio.to_thread(shown.look)
            state, why = (await controls(api))["tls"]
            assert (state, "the certificate before serves on" in why) == ("degraded", True)
    by_default = nodes.opened(data_dir, {}, environment="staging", security={"encryption_at_rest": False})
    async with by_default as api, node.listening(api.running):
        state, why = (await controls(api))["tls"]
        assert (state, "names no certificate" in why) == ("off by setting", True)


@pytest.mark.parametrize(("age_s", "state"), [(None, "on"), (30.0, "on"), (3 * 3600.0, "degraded")])
async def test_backups_that_have_stopped_are_degraded(
    data_dir: Path, age_s: float | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes.opened(data_dir, {}) as api:
        made = msgspec.structs.replace(api.running.backups.state(), every_s=3600.0, age_s=age_s, error=None)
        monkeypatch.setattr(api.running.backups, "state", lambda: made)
        assert (await controls(api))["backups"][0] == state
        monkeypatch.setattr(api.running.backups, "state", lambda: msgspec.structs.replace(made, error="no room"))
        assert (await controls(api))["backups"][0] == "degraded"
