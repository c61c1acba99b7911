"""The secrets of webhooks as they are stored: encrypted with AES-256-GCM, each bound to its tenant and endpoint.

One that is copied to another's row opens nothing.
"""

from __future__ import annotations

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from greenroom.core import webhooks

_FORM = b"\x01"  # of what follows: a nonce and AES-256-GCM
_NONCE_BYTES = 12  # random: a key seals far fewer than 2**32


class WebhookSecrets:
    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def new(self, *, tenant: str, id: str) -> tuple[str, bytes]:
        """Make a secret; return it as it is shown, once, and as it is stored."""
        secret, nonce = secrets.token_bytes(webhooks.SECRET_BYTES), secrets.token_bytes(_NONCE_BYTES)
        sealed = self._aead.encrypt(nonce, secret, _bound(tenant, id))
        return webhooks.secret_text(secret), _FORM + nonce + sealed

    def opened(self, stored: bytes, *, tenant: str, id: str) -> bytes | None:
        """Return the secret; None for what this key has not sealed for this endpoint."""
        nonce, sealed = stored[1 : 1 + _NONCE_BYTES], stored[1 + _NONCE_BYTES :]
        if stored[:1] != _FORM:
            return None
        try:
            return self._aead.decrypt(nonce, sealed, _bound(tenant, id))
        except (InvalidTag, ValueError):  # ValueError: it was cut short
            return None


def _bound(tenant: str, id: str) -> bytes:
    return f"webhook|{len(tenant)}|{tenant}|{id}".encode()
