"""Whom a client takes for the node, where it speaks TLS, and how it shows itself.

``GREENROOM_CA`` is the file of an authority to trust instead of the public ones. Without it, on the machine of a node
that wrote down its certificate in the data directory, that very certificate is trusted, by whatever name. For mutual
TLS: ``GREENROOM_CLIENT_CERT`` and ``GREENROOM_CLIENT_KEY``.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from greenroom import errors
from greenroom.sdk import discovery


def verification(url: str, folder: Path) -> ssl.SSLContext | bool:
    """Return what httpx is to verify the node at *url* by; *folder* is the data directory."""
    if not url.startswith("https:"):
        return False  # nothing is there to verify, and to load the authorities takes longer than most commands
    authority, pinned = os.environ.get("GREENROOM_CA"), discovery.certificate(url, folder)
    client = os.environ.get("GREENROOM_CLIENT_CERT")
    if authority:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load("GREENROOM_CA", lambda: context.load_verify_locations(authority))
    elif pinned:
        context = _trusting(pinned)
    elif client:
        context = httpx.create_ssl_context()
    else:
        return True
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if client:
        key = os.environ.get("GREENROOM_CLIENT_KEY")
        _load(
            "GREENROOM_CLIENT_CERT and GREENROOM_CLIENT_KEY",
            lambda: context.load_cert_chain(client, key or None, password=lambda: ""),
        )
    return context


def _trusting(certificate: str) -> ssl.SSLContext:
    """Trust one certificate, not whom it stands on: those vouch for others, too. So its name need not be looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    _load("node.json", lambda: context.load_verify_locations(cadata=certificate))
    return context


def _load(what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise errors.NodeUnreachable(f"cannot use {what}: {error.reason or 'no certificate in PEM'}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise errors.NodeUnreachable(f"cannot read what {what} names: {reason}") from None


def advice(error: BaseException, url: str) -> str | None:
    """Return what is wrong with the node's certificate, or with ours, where that is what *error* came of."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLError):
        seen = seen.__cause__ or seen.__context__
    if isinstance(seen, ssl.SSLCertVerificationError):
        return _of_its_certificate(seen, urlsplit(url).hostname or url)
    if not isinstance(seen, ssl.SSLError):
        # What the node said when it ended the handshake is often lost with the connection.
        is_cut_off = url.startswith("https:") and isinstance(error, httpx.ReadError | httpx.RemoteProtocolError)
        return _OF_OURS if is_cut_off else None
    match seen.reason:
        case "WRONG_VERSION_NUMBER" | "RECORD_LAYER_FAILURE" | "HTTP_REQUEST":
            return "it speaks plain HTTP there: use http://"
        case str(reason) if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
            return _OF_OURS
        case str(reason) if "ALERT" in reason and ("UNKNOWN_CA" in reason or "CERTIFICATE" in reason):
            return _OF_OURS
        case reason:
            return f"TLS failed ({reason})"


_OF_OURS = (
    "it has closed the connection; if it asks for client certificates (mutual TLS), set GREENROOM_CLIENT_CERT and "
    "GREENROOM_CLIENT_KEY to one of its authority"
)


def _of_its_certificate(error: ssl.SSLCertVerificationError, host: str) -> str:
    match error.verify_code:  # X509_V_ERR_… of OpenSSL
        case 10:
            return "its certificate has expired: renew it"
        case 9:
            return "its certificate is not valid yet: look at the clocks"
        case 62 | 64:
            return f"its certificate is for another name than {host}: use the name that it was made for"
        case _:
            return (
                f"its certificate is not trusted ({error.verify_message}): set GREENROOM_CA to the file of the "
                "authority that made it"
            )
