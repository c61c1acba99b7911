"""The keys of an OpenID Connect provider: found, renewed, kept while it is down, not fetched at a stranger's will."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import forge
from greenroom import settings, telemetry
from greenroom.core import permissions
from greenroom.security import oidc
from greenroom.security.issuers import Issuers
from greenroom.testing.fakes import FakeClock
from provider import DISCOVERY, KEYS, Provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


class _Clock(FakeClock):
    """Moved by the test for all but the instants in tokens."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class Trusting:
    """Issuers that trust *provider*, on a clock that the test moves; tokens are judged by the real time."""

    def __init__(self, provider: Provider, **given: object) -> None:
        self.clock, self.forgotten = _Clock(), 0
        self.told: list[telemetry.IssuerChanged] = []
        facts = telemetry.Telemetry()
        facts.subscribe(self.told.append, telemetry.IssuerChanged)
        issuer = {"issuer": provider.url, "algorithms": ["ES256"], "tenant": "acme", "role": "user", **given}
        found = settings.load(overrides={"security": {"issuers": [issuer]}}, environ={})
        self.issuers = Issuers(found.security.issuers, self.clock, facts, folder=Path(), changed=self._forget)

    def _forget(self) -> None:
        self.forgotten += 1

    async def takes(self, token: str) -> bool:
        return not isinstance(await self.issuers.prove(token, roles=permissions.ROLES), str)


@pytest.fixture
def trusting(provider: Provider) -> Trusting:
    return Trusting(provider)


async def test_keys_are_found_by_discovery_in_the_background(provider: Provider, trusting: Trusting) -> None:
    assert await trusting.issuers.step() == oidc.FRESH_S
    assert await trusting.takes(provider.token())
    assert provider.hits == {DISCOVERY: 1, KEYS: 1}
    trusting.clock.advance(oidc.FRESH_S - 1)
    assert await trusting.issuers.step() == pytest.approx(1)
    trusting.clock.advance(1)
    await trusting.issuers.step()
    assert provider.hits == {DISCOVERY: 2, KEYS: 2}


async def test_the_first_token_waits_for_the_first_keys_and_all_wait_for_one_fetch(
    provider: Provider, trusting: Trusting
) -> None:
    provider.mode = "slow"
    asking = [asyncio.create_task(trusting.takes(provider.token(sub=f"s{n}"))) for n in range(50)]
    await provider.is_asked()
    provider.release.set()
    assert all(await asyncio.gather(*asking))
    assert provider.hits == {DISCOVERY: 1, KEYS: 1}


async def test_one_who_goes_away_does_not_take_the_keys_from_the_others(provider: Provider, trusting: Trusting) -> None:
    provider.mode = "slow"
    first, second = (asyncio.create_task(trusting.takes(provider.token())) for _ in range(2))
    await provider.is_asked()
    first.cancel()
    await asyncio.sleep(0)
    provider.release.set()
    assert await second


async def test_a_new_key_is_fetched_when_the_first_token_of_it_comes(provider: Provider, trusting: Trusting) -> None:
    old = provider.token()
    assert await trusting.takes(old)
    provider.rotate("k2")
    trusting.clock.advance(oidc.AGAIN_S)
    assert await trusting.takes(provider.token())
    assert trusting.forgotten == 1  # what the old key has proven
    assert not await trusting.takes(old)
    assert provider.hits[KEYS] == 2


async def test_a_key_that_is_replaced_under_its_name_is_another(provider: Provider, trusting: Trusting) -> None:
    old = provider.token()
    assert await trusting.takes(old)
    provider.rotate("k1")
    trusting.clock.advance(oidc.FRESH_S)
    await trusting.issuers.step()
    assert trusting.forgotten == 1
    assert not await trusting.takes(old)
    assert await trusting.takes(provider.token())


async def test_names_that_strangers_think_of_cause_one_fetch_in_thirty_seconds(
    provider: Provider, trusting: Trusting
) -> None:
    assert await trusting.takes(provider.token())
    for n in range(300):
        assert not await trusting.takes(provider.token(kid=f"random-{n}"))
    assert provider.hits[KEYS] == 1
    trusting.clock.advance(oidc.AGAIN_S)
    for n in range(300):
        assert not await trusting.takes(provider.token(kid=f"random-{n}"))
    assert provider.hits[KEYS] == 2
    assert await trusting.takes(provider.token())


@pytest.mark.parametrize(
    "claims", [{"aud": "other"}, {"sub": ""}, {"exp": 1}], ids=["another audience", "no subject", "over"]
)
async def test_what_is_signed_and_wrong_is_refused(
    provider: Provider, trusting: Trusting, claims: dict[str, Any]
) -> None:
    assert await trusting.takes(provider.token())
    assert not await trusting.takes(provider.token(**claims))


@pytest.mark.parametrize("mode", ["down", "nonsense", "huge", "redirect", "empty", "zipped"])
async def test_the_last_keys_go_on_while_the_provider_misbehaves_but_not_for_ever(
    provider: Provider, trusting: Trusting, mode: str
) -> None:
    assert await trusting.takes(provider.token())
    provider.mode = mode
    trusting.clock.advance(oidc.FRESH_S)
    assert await trusting.issuers.step() == oidc.AGAIN_S
    assert await trusting.takes(provider.token())
    assert [fact.state for fact in trusting.told] == ["unreachable"]
    assert not [path for path in provider.hits if path.startswith("/moved")]
    trusting.clock.advance(oidc.STALE_S)
    assert not await trusting.takes(provider.token())
    assert trusting.forgotten == 1
    provider.mode = "well"
    trusting.clock.advance(oidc.AGAIN_S)
    assert await trusting.takes(provider.token())
    assert [fact.state for fact in trusting.told] == ["unreachable", "ok"]


@pytest.mark.parametrize("mode", ["other issuer", "elsewhere", "plain"])
async def test_a_document_that_names_another_issuer_or_unsafe_keys_is_not_believed(
    provider: Provider, trusting: Trusting, mode: str
) -> None:
    provider.mode = mode
    assert not await trusting.takes(provider.token())
    assert provider.hits == {DISCOVERY: 1}
    assert "openid-configuration" in trusting.told[0].reason


async def test_a_provider_that_does_not_answer_is_given_up(
    provider: Provider, trusting: Trusting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "FETCH_S", 0.05)
    provider.mode = "slow"
    assert not await trusting.takes(provider.token())
    assert "no answer within" in trusting.told[0].reason


async def test_a_provider_that_is_not_there_is_said_once(provider: Provider, trusting: Trusting) -> None:
    token = provider.token()
    provider.close()
    for _ in range(3):
        assert not await trusting.takes(token)
        await trusting.issuers.step()
        trusting.clock.advance(oidc.AGAIN_S)
    assert len(trusting.told) == 1


async def test_a_provider_whose_certificate_nobody_vouches_for_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Provider(certificate=forge.certificate(tmp_path / "certificate.pem"))
    try:
        oidc._authorities.cache_clear()
        stranger = Trusting(made)
        assert not await stranger.takes(made.token())
        assert "certificate" in stranger.told[0].reason.lower()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        oidc._authorities.cache_clear()
        assert await Trusting(made).takes(made.token())
    finally:
        oidc._authorities.cache_clear()
        made.close()
