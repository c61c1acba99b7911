"""The controls that a security report shows beside the audit log and intrusion detection: each with its state and why.

What a setting asks for is not told as being so: each says what is in force now, and what is wrong with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from greenroom import telemetry
from greenroom.api.routes import OPEN
from greenroom.core import tenancy
from greenroom.core.isolation import Tier
from greenroom.core.posture import State
from greenroom.sdk.security import Control
from greenroom.security import start_code
from greenroom.store.vault import Mode

if TYPE_CHECKING:
    from greenroom.node.composition import Node

MAX_NAMED = 3


class Controls:
    """Of *node*, which may still be about to start."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._start_code = start_code.found(start_code.sites())  # as it was when it ran
        self._damaged: deque[str] = deque(maxlen=1)
        node.facts.subscribe(lambda fact: self._damaged.append(fact.what), telemetry.ValueDamaged)

    def __call__(self) -> Iterator[Control]:
        yield from self._authentication()
        yield from self._rate_limits()
        yield self._tls(self._node.clock.now())
        yield self._encryption()
        yield self._isolation()
        yield self._tenants()
        yield self._code_by_api()
        yield self._supply_chain()
        yield self._webhooks()
        yield self._backups()

    def _authentication(self) -> Iterator[Control]:
        access, security = self._node.access, self._node.settings.security
        tenants = access.keys.tenants()
        *others, last = OPEN
        is_open = f"{', '.join(others)} and {last}"
        why = f"every path but {is_open} asks for a credential; keys of {_many(len(tenants), 'tenant')}"
        if not security.issuers:
            why += "; no tokens are taken: security.issuers names no issuer"
        yield Control(name="authentication", state=State.ON, why=why)
        for issuer, trouble in access.issuers():
            why = trouble or "its tokens are taken"
            yield Control(name=f"tokens of {issuer}", state=State.DEGRADED if trouble else State.ON, why=why)
        if security.policy_file is None:
            why = "the built-in ones; security.policy_file is not set"
        else:
            why = access.keys.trouble or f"those of {security.policy_file} beside the built-in ones"
        yield Control(name="roles", state=State.DEGRADED if access.keys.trouble else State.ON, why=why)

    def _rate_limits(self) -> Iterator[Control]:
        for kind, per_minute in self._node.access.limits.per_minute.items():
            key = "rate_limit_per_minute" if kind == "principal" else f"{kind}_rate_limit_per_minute"
            state = State.OFF if per_minute is None else State.ON
            why = f"security.{key} is off" if per_minute is None else f"{per_minute} requests a minute"
            yield Control(name=f"rate limit of a {kind}", state=state, why=why)

    def _tls(self, now: datetime) -> Control:
        certificate = self._node.certificate
        if not self._node.url:
            why = "the node does not listen: the program that it is in alone can reach it"
            return Control(name="tls", state=State.OFF, why=why)
        if certificate is None:
            why = "plain HTTP, on loopback: only this machine can read along"
            if self._node.settings.security.tls:
                why += "; security.tls is on, and names no certificate"
            return Control(name="tls", state=State.OFF, why=why)
        if certificate.fault is not None:
            why = f"the files were replaced and cannot be used, the certificate before serves on: {certificate.fault}"
            return Control(name="tls", state=State.DEGRADED, why=why)
        until = f"{certificate.expires_at:%Y-%m-%d at %H:%M} UTC"
        if certificate.expires_at <= now:
            return Control(name="tls", state=State.DEGRADED, why=f"the certificate has expired on {until}")
        if certificate.is_expiring(now):
            return Control(name="tls", state=State.DEGRADED, why=f"the certificate expires on {until}: renew it")
        why = f"TLS 1.2 or newer; the certificate is good until {until}"
        if self._node.settings.security.tls_client_ca is not None:
            why += "; callers have to show one, too"
        return Control(name="tls", state=State.ON, why=why)

    def _encryption(self) -> Control:
        name, vault = "encryption at rest", self._node.store.vault
        if self._damaged:
            return Control(name=name, state=State.DEGRADED, why=f"what is stored was changed: {self._damaged[-1]}")
        progress = self._node.store.resealing.progress
        match vault.mode:
            case Mode.OFF:
                return Control(name=name, state=State.OFF, why="security.encryption_at_rest is off")
            case Mode.LEFT:
                why = "security.encryption_at_rest is off; what was encrypted before is still read, what comes is not"
                return Control(name=name, state=State.OFF, why=why)
            case Mode.SEALING:
                why = "what comes is encrypted, some of what was stored before is not yet: "
                why += f"{progress.seen} of {progress.rows} rows were looked at"
                if progress.unreadable:
                    why += f", {progress.unreadable} values cannot be read"
                return Control(name=name, state=State.DEGRADED, why=why)
        return Control(name=name, state=State.ON, why=self._where_the_key_is())

    def _where_the_key_is(self) -> str:
        key_file = self._node.key_source.file.resolve()
        if self._node.store.vault.keys.is_managed:
            return "all of it; a key management service has the key"
        if key_file.is_relative_to(self._node.options.data_dir.resolve()):
            return (
                f"all of it; but the key {key_file.name} lies in the data directory: who copies that whole reads it "
                "all; name another place as security.encryption_key_file"
            )
        return f"all of it; the key is in {key_file}"

    def _isolation(self) -> Control:
        decision, asked = self._node.isolation, self._node.settings.security.isolation
        why = self._node.services.isolation
        if decision.tier is not Tier.T0:
            return Control(name="isolation", state=State.ON, why=why)
        return Control(name="isolation", state=State.OFF if asked == "T0" else State.IMPOSSIBLE, why=why)

    def _tenants(self) -> Control:
        tier, name = self._node.isolation.tier, "tenants apart"
        if tenancy.tenants_allowed(tier):
            return Control(name=name, state=State.ON, why=f"agents of one tenant run in rooms of their own: {tier}")
        if self._node.settings.security.tenants_below_t2:
            why = f"security.tenants_below_t2 is true: at {tier} agents of one tenant reach what another's have"
            return Control(name=name, state=State.OFF, why=why)
        return Control(name=name, state=State.ON, why=f"at {tier} no second tenant is taken")

    def _code_by_api(self) -> Control:
        if self._node.settings.server.accept_code:
            why = "server.accept_code is on: whoever may deploy can run anything here"
            return Control(name="no code by API", state=State.OFF, why=why)
        return Control(name="no code by API", state=State.ON, why="only code of the node's own folder runs")

    def _supply_chain(self) -> Control:
        files, name = self._start_code, "no code at start"
        named = ", ".join(Path(file).name for file in files[:MAX_NAMED]) + (", …" if len(files) > MAX_NAMED else "")
        if start_code.is_kept_out():
            return Control(name=name, state=State.ON, why=f"the node was started without {named or '.pth files'}")
        if not files:
            return Control(name=name, state=State.ON, why="no package runs code when Python starts")
        why = f"{named}: ran in the node before its own code; see Supply chain in docs/security.md"
        return Control(name=name, state=State.OFF, why=why)

    def _webhooks(self) -> Control:
        server = self._node.settings.server
        why = f"signed, to public addresses alone, on ports {', '.join(map(str, server.webhook_ports))}"
        if server.webhook_hosts:
            hosts = ", ".join(server.webhook_hosts[:MAX_NAMED]) + (
                ", …" if len(server.webhook_hosts) > MAX_NAMED else ""
            )
            why += f"; and to these, wherever they are (server.webhook_hosts): {hosts}"
        return Control(name="webhooks", state=State.ON, why=why)

    def _backups(self) -> Control:
        state = self._node.backups.state()
        age = "there is none yet" if state.age_s is None else f"the last one is {state.age_s / 3600:.1f} h old"
        if state.error is not None:
            return Control(name="backups", state=State.DEGRADED, why=f"{state.error}; {age}")
        if state.every_s is None:
            why = f"cluster.scheduled_backups is off: they are made when somebody asks; {age}"
            return Control(name="backups", state=State.OFF, why=why)
        if state.age_s is not None and state.age_s > 2 * state.every_s:
            return Control(
                name="backups", state=State.DEGRADED, why=f"one is made every {state.every_s:g} s, and {age}"
            )
        return Control(name="backups", state=State.ON, why=f"encrypted, one every {state.every_s:g} s; {age}")


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
