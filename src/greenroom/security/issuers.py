"""All issuers that a node trusts: from a token's text to whom it stands for.

`api.auth` asks; `node` has it look for new keys, as a loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.security import oidc, tokens
from greenroom.security.tokens import Proven
from greenroom.settings import Issuer


class Issuers:
    """*folder* is what key files are relative to; *changed* is called when a token's key may be worthless now."""

    name = "issuers"

    def __init__(
        self,
        issuers: Sequence[Issuer],
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        *,
        folder: Path,
        changed: Callable[[], None],
    ) -> None:
        self.wakeup = asyncio.Event()
        self._clock = clock
        self._trusted = {
            issuer.issuer: (
                issuer,
                oidc.Published(issuer, clock, facts, changed=changed)
                if issuer.key_file is None
                else oidc.from_file(issuer, folder / issuer.key_file),
            )
            for issuer in issuers
        }

    async def prove(self, text: str, *, roles: Container[str]) -> Proven | None:
        """Return whom the token *text* stands for; None for any that is not an issuer's, or not as it has to be."""
        token = tokens.parse(text)
        if token is None or token.issuer not in self._trusted:
            return None
        issuer, keys = self._trusted[token.issuer]
        if not tokens.may_be_of(token, issuer) or not tokens.is_signed(token, await keys.find(token.kid)):
            return None
        return tokens.proven(token.claims, issuer, now=self._clock.now(), roles=roles)

    def troubles(self) -> list[tuple[str, str]]:
        """Return each issuer, and why its keys cannot be fetched; empty: they can."""
        return [(issuer, keys.trouble) for issuer, (_, keys) in self._trusted.items()]

    async def step(self) -> float:
        """Fetch the keys that it is time for, of all issuers at once: none waits for another's."""
        delays_s = await asyncio.gather(*(keys.refresh() for _, keys in self._trusted.values()))
        return max(1.0, min(delays_s, default=oidc.FRESH_S))
