"""An OpenID Connect provider for tests: real HTTP on loopback, which rotates its keys and misbehaves when told to."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import ssl
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import forge
from forge import Forge

DISCOVERY, KEYS = "/.well-known/openid-configuration", "/keys"
MIB = 1024 * 1024


class Provider:
    """*mode* is how it answers: well, slow, down (503), nonsense, huge, redirect, zipped, empty, or what discovery says
    wrongly: other issuer, elsewhere, plain. *hits* counts the requests by path.
    """

    def __init__(self, kind: str = "P-256", algorithm: str = "ES256", *, certificate: Path | None = None) -> None:
        self.mode = "well"
        self.hits: Counter[str] = Counter()
        self.asked = threading.Event()
        self.release = threading.Event()  # what is slow waits for it
        self._algorithm, self._kind = algorithm, kind
        self.keys: dict[str, forge.Private] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.hits[self.path] += 1
                provider.asked.set()
                provider._answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.rotate("k1")

    def rotate(self, kid: str) -> None:
        """Sign with a new key from now on; the old ones are gone."""
        self.keys = {kid: forge.make(self._kind)}

    def token(self, *, kid: str | None = None, **claims: Any) -> str:
        """A good token by the newest key, or one that says it is by *kid*."""
        now_s = int(time.time())
        (named, key), *_ = self.keys.items()
        given = {"iss": self.url, "aud": "greenroom", "sub": "ann", "jti": "j", "iat": now_s, "exp": now_s + 300}
        return Forge(key, self._algorithm, given, kid=kid or named).token(claims=claims)

    async def is_asked(self) -> None:
        """Wait for a request."""
        await asyncio.to_thread(self.asked.wait, 30)

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, to: BaseHTTPRequestHandler) -> None:
        body, headers, status = self._document(to.path), {"content-type": "application/json"}, 200
        match self.mode:
            case "slow":
                self.release.wait(30)
            case "down":
                status = 503
            case "nonsense":
                body = b"<html>not JSON</html>"
            case "empty":
                body = b'{"keys": []}'
            case "huge":
                body = b" " * MIB
            case "zipped":
                headers["content-encoding"], body = "gzip", gzip.compress(body)
            case "redirect":
                status, headers["location"] = 302, f"{self.url}/moved{to.path}"
        to.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            to.send_header(name, value)
        to.end_headers()
        with contextlib.suppress(OSError):  # who asked has gone
            to.wfile.write(body)

    def _document(self, path: str) -> bytes:
        if path.endswith(DISCOVERY):
            issuer = f"{self.url}/" if self.mode == "other issuer" else self.url
            keys = {"elsewhere": "file:///etc/passwd", "plain": "http://id.example/keys"}.get(
                self.mode, f"{self.url}{KEYS}"
            )
            return json.dumps({"issuer": issuer, "jwks_uri": keys}).encode()
        jwks = [forge.public_jwk(key, kid=kid, use="sig", alg=self._algorithm) for kid, key in self.keys.items()]
        return json.dumps({"keys": jwks}).encode()
