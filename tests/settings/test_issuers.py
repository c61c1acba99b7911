"""What the settings may say of an issuer of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from greenroom import settings
from greenroom.settings import SettingsInvalid

GOOD = {"issuer": "https://id.example", "tenant": "acme", "role": "user"}


def _problems(*issuers: dict[str, Any], **security: Any) -> dict[str, str]:
    with pytest.raises(SettingsInvalid) as caught:
        settings.load(overrides={"security": {"issuers": list(issuers), **security}}, environ={})
    return dict(caught.value.problems)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"issuer": "http://127.0.0.1:8080"},
        {"issuer": "http://localhost:8080/realms/x"},
        {"issuer": "http://[::1]:8080"},
        {"issuer": "http://inside.example", "key_file": "keys.json"},  # nothing is fetched
        {"jwks_url": "https://keys.example/jwks?x=1"},
        {"algorithms": ["HS256"], "key_file": "keys.json"},
        {"tenant": None, "tenant_claim": "org"},
        {"role": None, "roles": {"staff": "user"}},
        {"role": None},
    ],
)
def test_a_good_issuer_is_taken(changes: dict[str, Any]) -> None:
    loaded = settings.load(overrides={"security": {"issuers": [{**GOOD, **changes}]}}, environ={})
    assert loaded.security.issuers[0].audience == "greenroom"


@pytest.mark.parametrize(
    ("changes", "key", "told"),
    [
        ({"issuer": "http://id.example"}, "issuer", "plain HTTP"),
        ({"issuer": "http://127.0.0.1.evil.example"}, "issuer", "plain HTTP"),
        ({"issuer": "https://id.example?x"}, "issuer", "without user, query and fragment"),
        ({"issuer": "https://id.example#x"}, "issuer", "without user, query and fragment"),
        ({"issuer": "https://ann:pw@id.example"}, "issuer", "without user, query and fragment"),
        ({"issuer": "https://"}, "issuer", ""),
        ({"jwks_url": "http://keys.example/jwks"}, "jwks_url", "plain HTTP"),
        ({"jwks_url": "file:///etc/keys"}, "jwks_url", "expected"),
        ({"jwks_url": "https://id.example/k", "key_file": "k"}, "jwks_url", "one place"),
        ({"algorithms": ["HS256"]}, "algorithms", "key_file"),
        ({"algorithms": ["HS256", "RS256"], "key_file": "k"}, "algorithms", "no other algorithm"),
        ({"algorithms": ["EdDSA", "EdDSA"]}, "algorithms", "twice"),
        ({"algorithms": ["none"]}, "algorithms[0]", "expected one of"),
        ({"algorithms": []}, "algorithms", "1 to 10"),
        ({"tenant": None}, "tenant", "is missing"),
        ({"tenant_claim": "org"}, "tenant", "remove the other"),
        ({"tenant": "../x"}, "tenant", "expected"),
        ({"roles": {"a": "user"}}, "role", "remove one"),
        ({"role": None, "roles": {"a": 1}}, "roles", "name of a role"),
        ({"max_lifetime_s": 86_401}, "max_lifetime_s", "expected"),
        ({"max_lifetime_s": 0}, "max_lifetime_s", "expected"),
        ({"key": "x"}, "key", "unknown key"),
    ],
)
def test_what_cannot_be_trusted_is_refused_with_what_to_do(changes: dict[str, Any], key: str, told: str) -> None:
    problems = _problems({**GOOD, **changes})
    assert told in problems[f"security.issuers[0].{key}"]


def test_roles_have_to_be_there_and_issuers_differ() -> None:
    assert "there are viewer, user" in _problems({**GOOD, "role": "god"})["security.issuers"]
    assert "there are viewer, user" in _problems({**GOOD, "role": None, "roles": {"a": "god"}})["security.issuers"]
    assert "twice" in _problems(GOOD, GOOD)["security.issuers"]


def test_roles_of_the_policy_file_are_roles(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[roles.clerk]\ngrants = ["task:read"]\n')
    manifest = tmp_path / "greenroom.toml"
    for role, told in (("clerk", None), ("god", "there are")):
        issuer = f'issuer = "https://id.example"\ntenant = "acme"\nrole = "{role}"\n'
        manifest.write_text(f'[security]\npolicy_file = "policy.toml"\n[[security.issuers]]\n{issuer}')
        if told is None:
            assert settings.load(manifest, {}).security.issuers[0].role == role
        else:
            with pytest.raises(SettingsInvalid, match=told):
                settings.load(manifest, {})
