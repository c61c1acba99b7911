"""What proves a login: the text of a one-time link, and of the cookie that it is exchanged for.

Each is 256 random bits and their MAC under the node's `login_key`, made for its purpose. What is forged is told by that
before any look-up; what is stored is a hash, which logs nobody in. Pure but for the randomness of `mint`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from typing import Literal

Purpose = Literal["link", "cookie"]

_FORM = re.compile(r"gl_([A-Za-z0-9_-]{43})_([A-Za-z0-9_-]{43})")


def mint(purpose: Purpose, key: bytes) -> tuple[str, str]:
    """Make a new text; return it with the digest that stands for it in the store."""
    bits = secrets.token_bytes(32)
    return f"gl_{_text(bits)}_{_text(_mac(bits, purpose, key))}", _digest(bits)


def digest_of(text: str, purpose: Purpose, key: bytes) -> str | None:
    """Return the digest of a text that a node of ours has made for *purpose*; None for any other."""
    match = _FORM.fullmatch(text)
    bits = _bits(match.group(1) if match is not None else "A" * 43)
    is_ours = hmac.compare_digest(_text(_mac(bits, purpose, key)), match.group(2) if match is not None else "")
    return _digest(bits) if is_ours else None


def _mac(bits: bytes, purpose: Purpose, key: bytes) -> bytes:
    return hmac.digest(key, purpose.encode() + b"\0" + bits, "sha256")


def _digest(bits: bytes) -> str:
    return hashlib.sha256(bits).hexdigest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bits(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=")
