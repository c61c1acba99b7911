"""The certificate that a node shows: loaded, watched, and changed while connections stand.

Whoever renews it replaces the files; they are looked at every few seconds, and at once on SIGHUP. Handshakes from then
on see the new one, connections that are there go on. One that cannot be used is said, and the one before stays.
"""

from __future__ import annotations

import asyncio
import shlex
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from greenroom import clock as clocks
from greenroom import errors, telemetry
from greenroom.settings import Security

if TYPE_CHECKING:  # a node without TLS does without
    from cryptography import x509

LOOK_EVERY_S = 5.0
TELL_EVERY = timedelta(days=1)
EXPIRES_SOON = timedelta(days=14)  # or the last third of a shorter life
# Each with forward secrecy and authenticated encryption; those of TLS 1.3 all are.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class Files(NamedTuple):
    certificate: Path
    key: Path
    client_ca: Path | None

    def fingerprint(self) -> tuple[object, ...]:
        """Return what changes when one of them does."""
        return tuple(_state(path) for path in self if path is not None)


class _Unusable(Exception):
    """Says why."""


class _Loaded(NamedTuple):
    context: ssl.SSLContext
    leaf: x509.Certificate


def files_of(security: Security, folder: Path) -> Files | None:
    """Return the files that *security* names, relative to *folder*; None: the node speaks plain HTTP."""
    if not security.tls or security.tls_certificate is None or security.tls_key is None:
        return None
    client_ca = security.tls_client_ca
    return Files(
        folder / security.tls_certificate, folder / security.tls_key, None if client_ca is None else folder / client_ca
    )


class Certificate:
    """What the server listens with is `context`; *on_change* is called when the certificate is another one.

    Raises `errors.StartRefused` where it cannot be used.
    """

    def __init__(self, files: Files, clock: clocks.Clock, emit: Callable[[telemetry.Fact], None]) -> None:
        self._files, self._clock, self._emit = files, clock, emit
        self.on_change: Callable[[], None] = lambda: None
        self.wakeup = asyncio.Event()  # look now
        self._seen = files.fingerprint()
        self._fault: _Unusable | None = None  # of what was seen
        self._is_told = False  # the fault is
        self._told_at: datetime | None = None  # that it expires
        try:
            self._loaded = _load(files, clock.now())
            self.context = _load(files, clock.now()).context
        except _Unusable as why:
            raise errors.StartRefused(f"cannot serve with TLS: {why}") from None
        # The server keeps the context that it was started with: it hands each handshake on to the newest.
        self.context.sni_callback = self._hand_on
        self._tell_expiry()

    @property
    def pem(self) -> str:
        """The certificate itself, without those that it stands on."""
        from cryptography.hazmat.primitives.serialization import Encoding

        return self._loaded.leaf.public_bytes(Encoding.PEM).decode()

    @property
    def expires_at(self) -> datetime:
        return self._loaded.leaf.not_valid_after_utc

    @property
    def fault(self) -> str | None:
        """Why the files as they are now cannot be used; the certificate before serves on."""
        return None if self._fault is None else str(self._fault)

    def is_expiring(self, now: datetime) -> bool:
        """Whether it is time to renew it."""
        life = self.expires_at - self._loaded.leaf.not_valid_before_utc
        return self.expires_at - now <= min(EXPIRES_SOON, life / 3)

    def _hand_on(self, connection: ssl.SSLSocket | ssl.SSLObject, *_: object) -> None:
        connection.context = self._loaded.context

    async def watch(self) -> None:
        while True:
            await self._clock.sleep(LOOK_EVERY_S, self.wakeup)
            self.look()

    def look(self) -> None:
        """Load what has changed. Two files are rarely replaced in one moment: what is wrong is said when it stays."""
        found = self._files.fingerprint()
        if found != self._seen or self._fault is not None:
            try:
                loaded = _load(self._files, self._clock.now())
            except _Unusable as why:
                if found == self._seen and not self._is_told:
                    self._is_told = True
                    self._emit(telemetry.CertificateChanged("refused", str(self._files.certificate), str(why)))
                self._is_told = self._is_told and found == self._seen
                self._seen, self._fault = found, why
            else:
                self._take(found, loaded)
        self._tell_expiry()

    def _take(self, found: tuple[object, ...], loaded: _Loaded) -> None:
        self._seen, self._fault, self._is_told = found, None, False
        self._loaded, self._told_at = loaded, None
        detail = f"expires on {loaded.leaf.not_valid_after_utc:%Y-%m-%d}"
        self._emit(telemetry.CertificateChanged("loaded", str(self._files.certificate), detail))
        self.on_change()

    def _tell_expiry(self) -> None:
        """Say once a day that it expires soon, or has."""
        now = self._clock.now()
        if not self.is_expiring(now):
            return
        if self._told_at is not None and now - self._told_at < TELL_EVERY:
            return
        self._told_at = now
        state = "expired" if self.expires_at <= now else "expiring"
        detail = f"on {self.expires_at:%Y-%m-%d at %H:%M} UTC; replace the files, no restart is needed"
        self._emit(telemetry.CertificateChanged(state, str(self._files.certificate), detail))


def _load(files: Files, now: datetime) -> _Loaded:
    from cryptography import x509

    try:
        mode = files.key.stat().st_mode & 0o777
        leaf = x509.load_pem_x509_certificates(files.certificate.read_bytes())[0]
    except OSError as error:
        raise _Unusable(f"{error.filename}: {error.strerror}; see security.tls_certificate and tls_key") from None
    except ValueError:
        raise _Unusable(f"{files.certificate} is no certificate in PEM") from None
    if mode & 0o007:
        raise _Unusable(f"everybody may read the key (mode {mode:o}); run: chmod 600 {shlex.quote(str(files.key))}")
    if leaf.not_valid_after_utc <= now:
        raise _Unusable(f"{files.certificate} has expired on {leaf.not_valid_after_utc:%Y-%m-%d}; renew it")
    if leaf.not_valid_before_utc > now:
        raise _Unusable(f"{files.certificate} is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    return _Loaded(_context(files), leaf)


def _context(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_password)
    except ssl.SSLError as error:
        why = "is not its key" if error.reason == "KEY_VALUES_MISMATCH" else "is no key in PEM for it"
        raise _Unusable(f"{files.key} {why}: {files.certificate}") from None
    except OSError as error:
        raise _Unusable(f"{files.key}: {error.strerror}") from None
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # A ticket would let in whom the authority before has let in.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError:
            raise _Unusable(f"{files.client_ca} is no certificate in PEM; see security.tls_client_ca") from None
        except OSError as error:
            raise _Unusable(f"{files.client_ca}: {error.strerror}; see security.tls_client_ca") from None
    return context


def _refuse_password() -> str:
    raise _Unusable("the key is encrypted: give it without a passphrase, readable by the node's user alone")


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode
