"""TLS on real sockets: who is trusted, what is refused, and certificates that change while connections stand."""

# ruff: noqa: ASYNC240 - the files here are touched and looked at, never waited for

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

import nodes
from greenroom import AsyncClient, errors, node, settings, telemetry
from greenroom.api import connections
from greenroom.node import tls
from greenroom.testing import fakes

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GREENROOM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def files(tmp_path: Path, authority: trustme.CA) -> tls.Files:
    folder = tmp_path / "tls"
    folder.mkdir()
    found = tls.Files(folder / "cert.pem", folder / "key.pem", None)
    _write(found, authority.issue_cert("127.0.0.1", "localhost"))
    return found


def _write(files: tls.Files, made: trustme.LeafCert) -> None:
    files.certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    files.key.write_bytes(made.private_key_pem.bytes())
    files.key.chmod(0o600)


def _security(files: tls.Files) -> dict[str, Any]:
    named = {"tls_certificate": files.certificate, "tls_key": files.key, "tls_client_ca": files.client_ca}
    return {"tls": True, **{name: str(path) for name, path in named.items() if path is not None}}


@contextlib.asynccontextmanager
async def _listening(data_dir: Path, files: tls.Files) -> AsyncIterator[tuple[nodes.Api, str]]:
    async with nodes.opened(data_dir, {}, security=_security(files)) as api, node.listening(api.running) as url:
        yield api, url


def _shown(url: str, context: ssl.SSLContext | None = None) -> bytes | None:
    """The certificate that a new handshake is shown, in DER."""
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    place = httpx.URL(url)
    with (
        socket.create_connection((place.host, place.port or 0), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=place.host) as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True)


def _leaf(files: tls.Files) -> bytes:
    return ssl.PEM_cert_to_DER_cert(files.certificate.read_text().split("-----END")[0] + "-----END CERTIFICATE-----")


async def test_whoever_trusts_the_authority_is_served_and_http_is_not(
    data_dir: Path, files: tls.Files, authority: trustme.CA
) -> None:
    async with _listening(data_dir, files) as (api, url):
        assert url.startswith("https://127.0.0.1:")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(context)
        headers = {"authorization": api.http.headers["authorization"]}
        async with httpx.AsyncClient(base_url=url, verify=context, headers=headers) as http:
            assert (await http.get("/v1/status")).status_code == 200
            with pytest.raises(httpx.TransportError):
                await http.get(url.replace("https", "http") + "/v1/status")


async def test_the_machine_of_the_node_trusts_its_very_certificate_by_whatever_name(
    data_dir: Path, files: tls.Files, authority: trustme.CA
) -> None:
    _write(files, authority.issue_cert("greenroom.example.com"))
    async with _listening(data_dir, files) as (_, url):
        written = json.loads((data_dir / "node.json").read_text())
        assert written["url"] == url
        async with AsyncClient(data_dir=data_dir) as client:
            assert (await client.status())["node"]
        # Another one of the same authority is not it.
        written["certificate"] = authority.issue_cert("127.0.0.1").cert_chain_pems[0].bytes().decode()
        (data_dir / "node.json").write_text(json.dumps(written))
        async with AsyncClient(data_dir=data_dir, timeout_s=0.3) as client:
            with pytest.raises(errors.NodeUnreachable, match="its certificate is not trusted"):
                await client.status()


async def test_a_client_elsewhere_says_what_is_wrong(
    data_dir: Path, files: tls.Files, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _listening(data_dir, files) as (api, url):
        key = api.http.headers["authorization"].removeprefix("Bearer ")
        elsewhere: dict[str, Any] = {"key": key, "data_dir": tmp_path / "elsewhere", "timeout_s": 0.3}
        async with AsyncClient(url, **elsewhere) as client:
            with pytest.raises(errors.NodeUnreachable, match="set GREENROOM_CA to the file of the authority"):
                await client.status()
        monkeypatch.setenv("GREENROOM_CA", str(tmp_path / "ca.pem"))
        with pytest.raises(errors.NodeUnreachable, match="cannot read what GREENROOM_CA names: No such file"):
            AsyncClient(url, **elsewhere)
        (tmp_path / "ca.pem").write_text("nonsense")
        with pytest.raises(errors.NodeUnreachable, match="cannot use GREENROOM_CA"):
            AsyncClient(url, **elsewhere)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        async with AsyncClient(url, **elsewhere | {"timeout_s": 10.0}) as client:
            assert (await client.status())["node"]
        _write(files, authority.issue_cert("greenroom.example.com"))
        await _reload(api)
        async with AsyncClient(url, **elsewhere) as client:
            with pytest.raises(errors.NodeUnreachable, match=r"another name than 127\.0\.0\.1: use the name"):
                await client.status()
        async with AsyncClient(url.replace("https", "http"), **elsewhere) as client:
            with pytest.raises(errors.NodeUnreachable):
                await client.status()
    async with (
        nodes.opened(data_dir / "plain", {}) as api,
        node.listening(api.running) as url,
        AsyncClient(url.replace("http", "https"), **elsewhere) as client,
    ):
        with pytest.raises(errors.NodeUnreachable, match="it speaks plain HTTP there"):
            await client.status()


async def _reload(api: nodes.Api) -> None:
    """Have the node look, as SIGHUP does, and let it."""
    facts: list[telemetry.CertificateChanged] = []
    api.running.facts.subscribe(facts.append, telemetry.CertificateChanged)
    api.running.look_at_certificate()

    async def is_loaded() -> bool:
        return any(fact.state == "loaded" for fact in facts)

    await nodes.eventually(is_loaded)


async def test_a_renewed_certificate_is_shown_and_connections_go_on(
    data_dir: Path, files: tls.Files, authority: trustme.CA
) -> None:
    async with _listening(data_dir, files) as (api, url):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(context)
        headers = {"authorization": api.http.headers["authorization"]}
        async with httpx.AsyncClient(base_url=url, verify=context, headers=headers) as http:
            await http.get("/v1/status")
            before = await asyncio.to_thread(_shown, url)
            _write(files, authority.issue_cert("127.0.0.1"))
            await _reload(api)
            assert await asyncio.to_thread(_shown, url) == _leaf(files) != before
            response = await http.get("/v1/status")
            assert response.status_code == 200
            stream = response.extensions["network_stream"]
            assert stream.get_extra_info("ssl_object").getpeercert(binary_form=True) == before  # the same connection
        async with AsyncClient(data_dir=data_dir) as client:
            assert (await client.status())["node"]


async def test_mutual_tls_asks_for_a_certificate_of_the_authority_of_today(
    data_dir: Path, files: tls.Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients, others = trustme.CA(), trustme.CA()
    files = files._replace(client_ca=tmp_path / "clients.pem")
    assert files.client_ca is not None
    clients.cert_pem.write_to_path(str(files.client_ca))
    for name, ca in (("one", clients), ("other", others)):
        made = ca.issue_cert("client@example.com")
        made.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / f"{name}.pem"))

    async def is_let_in(within_s: float = 10.0) -> None:
        async with AsyncClient(data_dir=data_dir, timeout_s=within_s) as client:
            await client.status()

    async with _listening(data_dir, files) as (api, _):
        with pytest.raises(errors.NodeUnreachable, match="set GREENROOM_CLIENT_CERT and GREENROOM_CLIENT_KEY"):
            await is_let_in(0.3)
        monkeypatch.setenv("GREENROOM_CLIENT_CERT", str(tmp_path / "one.pem"))
        await is_let_in()
        monkeypatch.setenv("GREENROOM_CLIENT_CERT", str(tmp_path / "other.pem"))
        with pytest.raises(errors.NodeUnreachable, match="asks for client certificates"):
            await is_let_in(0.3)
        others.cert_pem.write_to_path(str(files.client_ca))
        await _reload(api)
        await is_let_in()
        monkeypatch.setenv("GREENROOM_CLIENT_CERT", str(tmp_path / "one.pem"))
        with pytest.raises(errors.NodeUnreachable, match="asks for client certificates"):
            await is_let_in(0.3)
        async with httpx.AsyncClient(verify=False) as http:  # without one there is not even a request
            with pytest.raises(httpx.TransportError):
                await http.get(api.running.url + "/healthz")


async def test_old_versions_and_weak_ciphers_are_refused(data_dir: Path, files: tls.Files) -> None:
    async with _listening(data_dir, files) as (_, url):
        for version, ciphers in (
            (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"),
            (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256"),
            (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA"),
        ):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers(ciphers)
            with (
                pytest.warns(DeprecationWarning, match="deprecated")
                if version < ssl.TLSVersion.TLSv1_2
                else contextlib.nullcontext()
            ):
                context.minimum_version = ssl.TLSVersion.TLSv1 if version < ssl.TLSVersion.TLSv1_2 else version
                context.maximum_version = version
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.to_thread(_shown, url, context)


async def test_a_handshake_that_does_not_come_is_not_waited_for(
    data_dir: Path, files: tls.Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.3)
    async with _listening(data_dir, files) as (_, url):
        reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port or 0)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


# What cannot be used


def _encrypted(files: tls.Files) -> None:
    key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    packed = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    files.key.write_bytes(packed)


def _another_key(files: tls.Files) -> None:
    files.key.write_bytes(trustme.CA().issue_cert("x").private_key_pem.bytes())


def _old(files: tls.Files) -> None:
    _write(files, trustme.CA().issue_cert("127.0.0.1", not_after=NOW - datetime.timedelta(days=1)))


def _early(files: tls.Files) -> None:
    _write(files, trustme.CA().issue_cert("127.0.0.1", not_before=NOW + datetime.timedelta(days=1)))


BROKEN: dict[str, tuple[Callable[[tls.Files], object], str]] = {
    "no certificate": (lambda files: files.certificate.unlink(), "No such file or directory; see security.tls_cert"),
    "no key": (lambda files: files.key.unlink(), "key.pem: No such file or directory"),
    "nonsense": (lambda files: files.certificate.write_text("x"), "is no certificate in PEM"),
    "a key that is none": (lambda files: files.key.write_text("x"), "key.pem is no key in PEM"),
    "another key": (_another_key, "key.pem is not its key"),
    "a key with a passphrase": (_encrypted, "the key is encrypted: give it without a passphrase"),
    "a key for everybody": (lambda files: files.key.chmod(0o644), "everybody may read the key (mode 644); run: chmod"),
    "one that has expired": (_old, "has expired on"),
    "one that is not valid yet": (_early, "is not valid before"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_refused_at_the_start_and_passed_over_later(name: str, files: tls.Files) -> None:
    make, why = BROKEN[name]
    facts: list[Any] = []
    serving = tls.Certificate(files, fakes.FakeClock(NOW), facts.append)
    before = serving.pem
    make(files)
    with pytest.raises(errors.StartRefused) as refused:
        tls.Certificate(files, fakes.FakeClock(NOW), facts.append)
    assert why in str(refused.value)
    serving.look()
    assert facts == []  # the other file may be on its way
    for _ in range(3):
        serving.look()
    assert [(fact.state, why in fact.detail) for fact in facts] == [("refused", True)]
    assert serving.pem == before
    _write(files, trustme.CA().issue_cert("127.0.0.1"))
    serving.look()
    assert [fact.state for fact in facts] == ["refused", "loaded"]
    assert serving.pem != before


def test_it_is_said_once_a_day_that_a_certificate_expires(files: tls.Files, authority: trustme.CA) -> None:
    _write(files, authority.issue_cert("x", not_after=NOW + datetime.timedelta(days=16)))
    clock, facts = fakes.FakeClock(NOW), list[Any]()
    serving = tls.Certificate(files, clock, facts.append)
    for _ in range(24 * 17):
        clock.advance(3600)
        serving.look()
    states = [fact.state for fact in facts]
    assert states == ["expiring"] * states.count("expiring") + ["expired"] * states.count("expired")
    assert (states.count("expiring"), states.count("expired")) in {(14, 1), (15, 1), (14, 2)}
    assert "no restart is needed" in facts[0].detail


def test_the_files_stand_in_the_manifests_folder(tmp_path: Path) -> None:
    given = {"tls": True, "tls_certificate": "tls/cert.pem", "tls_key": "/etc/key.pem"}
    security = settings.load(None, {}, overrides={"security": given}).security
    assert tls.files_of(security, tmp_path) == (tmp_path / "tls/cert.pem", Path("/etc/key.pem"), None)
    assert tls.files_of(settings.load(None, {}).security, tmp_path) is None


# Plain HTTP


@pytest.mark.parametrize("environment", ["development", "staging", "production"])
async def test_no_environment_listens_in_plain_text_where_others_could(data_dir: Path, environment: str) -> None:
    data_dir.mkdir()
    given = nodes.options(data_dir, {}, environment=environment)
    running = node.Node(given, fakes.FakeClock())
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        running.options = node.Options(**{**_fields(given), "host": host})
        with pytest.raises(errors.StartRefused, match=f"cannot listen on {host} without TLS.* set security.tls"):
            async with node.listening(running):
                raise AssertionError
    await running.store.db.close()


def _fields(options: node.Options) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__struct_fields__}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[nodes.Folder]:
    folder = nodes.Folder(tmp_path / "project")
    yield folder
    folder.close()


@pytest.mark.slow
def test_a_node_of_the_command_serves_with_tls_and_reloads_on_sighup(
    up: nodes.Folder, files: tls.Files, authority: trustme.CA
) -> None:
    shutil.copy(files.certificate, up.path / "cert.pem")
    shutil.copy(files.key, up.path / "key.pem")
    up.manifest('[security]\ntls = true\ntls_certificate = "cert.pem"\ntls_key = "key.pem"\n')
    code, told = up.refused("--host", "0.0.0.0", "--store", "nonsense://")
    assert code == 1
    assert "cannot open a store" in told  # with a certificate any address is fine
    with up.log.open("w") as output:
        process = up.command(output=output)
    place = up.path / ".greenroom" / "node.json"
    try:
        nodes.wait_until(place.exists)
        url = json.loads(place.read_text())["url"]
        assert url.startswith("https://")
        before = _shown(url)
        moved = files._replace(certificate=up.path / "cert.pem", key=up.path / "key.pem")
        _write(moved, authority.issue_cert("127.0.0.1"))
        process.send_signal(1)
        nodes.wait_until(lambda: _shown(url) != before, within_s=4.0)
        assert _shown(url) == _leaf(moved)
    finally:
        process.kill()
        process.wait()
