"""Who may call the node: keys, roles, tokens of issuers, logins and limits, built from the settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from greenroom import clock as clocks
from greenroom import errors, settings, telemetry
from greenroom.api.auth import Authenticator
from greenroom.api.cookies import Logins
from greenroom.api.keys import Keys, presented_id
from greenroom.api.limits import Limits
from greenroom.api.roles import Roles
from greenroom.api.sources import Sources
from greenroom.control import supervisor
from greenroom.core import tenancy
from greenroom.core.isolation import Tier
from greenroom.core.permissions import HOME
from greenroom.security import secret_file
from greenroom.store.store import Store

if TYPE_CHECKING:
    from greenroom.security.issuers import Issuers

OWNER_KEY = "local.key"


class NodeAccess:
    """Relative paths of the settings are below *folder*; the owner's key is in *data_dir*."""

    def __init__(
        self,
        store: Store,
        clock: clocks.Clock,
        facts: telemetry.Telemetry,
        found: settings.Settings,
        *,
        secrets: secret_file.Secrets,
        folder: Path,
        data_dir: Path,
    ) -> None:
        self._settings = found
        self.owner_key = data_dir / OWNER_KEY
        policy = found.security.policy_file
        roles = Roles(None if policy is None else folder / policy)
        self.keys = Keys(store.principals, clock, facts, pepper=secrets.pepper, roles=roles)
        ledger = store.rates if store.rates.is_shared else None
        self.limits = Limits(found.security, clock, facts, ledger=ledger)
        self.sources = Sources(found.server.trusted_proxies)
        logins = Logins(store.logins, clock, key=secrets.login_key)
        self.auth = Authenticator(self.keys, clock, self.limits, logins=logins)
        loops: list[supervisor.Loop] = [self.keys, *([] if ledger is None else [self.limits])]
        self._issuers: Issuers | None = None
        if found.security.issuers:
            # Late: what reads tokens takes longer to import than all else.
            from greenroom.security.issuers import Issuers

            changed = self.auth.forget_tokens
            self._issuers = Issuers(found.security.issuers, clock, facts, folder=folder, changed=changed)
            self.auth.issuers = self._issuers
            loops.append(self._issuers)
        self.loops = tuple(loops)

    def issuers(self) -> Iterator[tuple[str, str]]:
        """Yield each issuer whose tokens are taken, and what is wrong with its keys; empty: nothing is."""
        if self._issuers is not None:
            yield from self._issuers.troubles()

    async def begin(self, tier: Tier, *, word: str) -> None:
        """Read the keys; make the owner's, with *word* in its text, where there is none that works.

        Raises `errors.StartRefused` where there are tenants whom nothing would keep apart in *tier*.
        """
        await self.keys.refresh()
        self._check_tenants(tier)
        if self.owner_key.exists() and self.auth.is_valid(b"Bearer " + self.owner_key.read_bytes().strip()):
            return
        key = await self.keys.create(tenant=HOME, name="owner", role="admin", word=word)
        secret_file.write_private(self.owner_key, key.text.encode() + b"\n")

    def exempt(self, source: str) -> None:
        """Limit the rates neither of *source* nor of the owner's key: they are the program that the node is part of."""
        owner = presented_id(b"Bearer " + self.owner_key.read_bytes())
        self.limits.unlimited = frozenset(filter(None, (source, owner)))

    async def end(self) -> None:
        with contextlib.suppress(errors.StoreUnavailable):
            await self.keys.close()

    def _check_tenants(self, tier: Tier) -> None:
        """Refuse to serve tenants whom nothing would keep apart; they may come from a node that did."""
        security = self._settings.security
        if security.tenants_below_t2 or tenancy.tenants_allowed(tier):
            return
        others = sorted(self.keys.tenants() - {HOME})
        issuers = [each.issuer for each in security.issuers if each.tenant != HOME]
        if others:
            names = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
            raise errors.StartRefused(
                f"cannot start: there are keys of other tenants ({names}), and {tenancy.refusal(tier)}"
            )
        if issuers:
            raise errors.StartRefused(
                f"cannot start: tokens of {issuers[0]} are of other tenants than {HOME}, and "
                f"{tenancy.refusal(tier)}; or give the issuer tenant = {HOME!r}"
            )
