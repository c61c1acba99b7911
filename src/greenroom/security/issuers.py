"""All issuers that a node trusts: from a token's text to whom it stands for.

`api.auth` asks; `node` has it look for new keys, as a loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Literal

from greenroom import clock as clocks
from greenroom import telemetry
from greenroom.security import oidc, tokens
from greenroom.security.tokens import Proven
from greenroom.settings import Issuer

Why = Literal["unknown", "forged"]


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

    async def prove(self, text: str, *, roles: Container[str]) -> Proven | Why:
        """Return whom the token *text* stands for; else why it is rejected, for those who watch.

        Forged is what somebody has made up in the name of an issuer. A token of others, of yesterday, for another
        audience or by a key that is not known here is an honest client's mistake, or ours.
        """
        token = tokens.parse(text)
        if token is None or token.issuer not in self._trusted:
            return "unknown"
        issuer, keys = self._trusted[token.issuer]
        if tokens.is_made_up(token, issuer):
            return "forged"
        if not tokens.may_be_of(token, issuer) or (key := await keys.find(token.kid)) is None:
            return "unknown"
        if not tokens.is_signed(token, key):
            return "forged"
        return tokens.proven(token.claims, issuer, now=self._clock.now(), roles=roles) or "unknown"

    def troubles(self) -> list[tuple[str, str]]:
        """Return each issuer, and why its keys cannot be fetched; empty: they can."""
        return [(issuer, keys.trouble) for issuer, (_, keys) in self._trusted.items()]

    async def step(self) -> float:
        """Fetch the keys that it is time for, of all issuers at once: none waits for another's."""
        delays_s = await asyncio.gather(*(keys.refresh() for _, keys in self._trusted.values()))
        return max(1.0, min(delays_s, default=oidc.FRESH_S))
