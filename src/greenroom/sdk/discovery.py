"""Where the node is and which key opens it: what was given, else the environment, else the data directory.

A running node writes `DATA_DIR/node.json`, and its first start the owner's `DATA_DIR/local.key` (both mode
0600). Called by `client` and the command.
"""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from greenroom import errors

DEFAULT_DATA_DIR = ".greenroom"
DEFAULT_URL = "http://127.0.0.1:7080"


class Address(NamedTuple):
    """A node's URL without a trailing slash, and the key to show; None: none was found."""

    url: str
    key: str | None


def data_dir(given: str | Path | None = None) -> Path:
    return Path(given or os.environ.get("GREENROOM_DATA_DIR") or DEFAULT_DATA_DIR)


def address(url: str | None, key: str | None, folder: Path) -> Address:
    """The node to call. The owner's key in *folder* is shown on loopback or to the node that wrote it."""
    named = url or os.environ.get("GREENROOM_URL")
    written = _written_url(folder)
    chosen = _checked((named or written or DEFAULT_URL).rstrip("/"))
    key = key or os.environ.get("GREENROOM_KEY")
    if not key and (chosen == written or is_loopback(chosen)):
        key = _read(folder / "local.key").strip()
    return Address(chosen, key or None)


def certificate(url: str, folder: Path) -> str | None:
    """Return the certificate, in PEM, that the node at *url* has written into *folder*; None if it has not."""
    written = _written(folder)
    return written.get("certificate") if written.get("url", "").rstrip("/") == url else None


def is_loopback(url: str) -> bool:
    """Whether *url* surely stays on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isprintable() or " " in url:
        raise errors.NodeUnreachable(f"cannot use {url!r} as a node's address: expected http://HOST:PORT")
    return url


def _written_url(folder: Path) -> str | None:
    written = _written(folder)
    return written["url"].rstrip("/") if written else None


def _written(folder: Path) -> dict[str, str]:
    """Return what a running node has written into *folder*, nothing where none has."""
    path = folder / "node.json"
    text = _read(path)
    if not text:
        return {}
    try:
        found = json.loads(text)
        return {"url": str(found["url"]), **{name: found[name] for name in ("certificate",) if name in found}}
    except (ValueError, KeyError, TypeError):
        raise errors.NodeUnreachable(
            f"cannot find the node: {path} is not what a node writes; remove it, or set GREENROOM_URL"
        ) from None


def _read(path: Path) -> str:
    """The file's text, empty where there is none."""
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise errors.NodeUnreachable(
            f"cannot read {path}: {reason}; set GREENROOM_URL and GREENROOM_KEY, or run as the node's user"
        ) from None
