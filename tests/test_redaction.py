"""Secrets are masked by form and by value, in every way in which an output writes them, and quickly."""

from __future__ import annotations

import base64
import json
import secrets
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forge
from greenroom import redaction
from greenroom.security import keys, login_tokens

KEY = keys.mint("prod", bytes(32)).text
LINK = login_tokens.mint("link", bytes(32))[0]
TOKEN = forge.Forge(forge.make("Ed25519"), "EdDSA", {"sub": "ann", "iss": "https://id.example"}).token()
CANARY = "c4nary/Value+42"

FORMS = {
    "a key": (KEY, KEY.split("_")[3]),
    "a key in a sentence": (f"cannot use {KEY}, it is over", KEY.split("_")[3]),
    "a key without its checksum": (KEY.rpartition("_")[0], KEY.split("_")[3]),
    "a key behind a letter": (f"x{KEY}", KEY.split("_")[3]),
    "a login": (f"http://127.0.0.1:7080/login#{LINK}", LINK[3:46]),
    "a cookie": (f"greenroom_session={LINK}; Path=/", LINK[3:46]),
    "a token": (f"token {TOKEN} refused", TOKEN.split(".")[2]),
    "a bearer": (f"Authorization: Bearer {CANARY}", CANARY),
    "a bearer in a dict": (f"{{'authorization': 'Bearer {CANARY}'}}", CANARY),
    "basic": ("authorization: basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA"),
    "the password of a store": ("cannot open postgresql://ann:pa55wd@db/greenroom", "pa55wd"),
    "a libpq string": ("host=db user=ann password=pa55wd dbname=x", "pa55wd"),
    "a quoted libpq string": ("host=db password='pa55 wd' dbname=x", "pa55 wd"),
    "a variable": (f"OPENAI_API_KEY={CANARY}", CANARY),
    "JSON": (json.dumps({"client_secret": CANARY, "n": 1}), CANARY),
    "JSON with quotes": (json.dumps({"secret": f'{CANARY}"more'}), CANARY),
    "a Python dict": (repr({"api_key": CANARY}), CANARY),
    "a query": (f"GET /x?access_token={quote(CANARY, safe='')}&y=1", quote(CANARY, safe="")),
    "OpenAI": ("Incorrect API key provided: sk-proj-a1B2c3D4e5F6g7H8i9", "a1B2c3D4e5F6g7H8i9"),
    "Anthropic": ("sk-ant-api03-a1B2c3D4e5F6g7H8i9", "a1B2c3D4e5F6g7H8i9"),
    "Amazon": ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"),
    "Amazon's secret": ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "wJalrXUtnFEMI"),
    "GitHub": ("ghp_16C7e42F292c6912E7710c838347Ae178B4a", "16C7e42F292c6912E7710c838347Ae178B4a"),
    "Google": ("AIzaSyA-1234567890abcdefghijklmnopqrstu", "SyA-1234567890abcdefghijklmnopqrstu"),
    "a webhook's": ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    "a private key": (
        "x -----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\nBCIEI\n-----END PRIVATE KEY----- y",
        "MC4CAQAwBQYDK2Vw",
    ),
    "the begin of a private key": ("-----BEGIN RSA PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw", "MC4CAQAwBQYDK2Vw"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_secret_is_known_by_its_form(name: str) -> None:
    text, secret = FORMS[name]
    masked = redaction.Redactor().text(text)
    assert secret not in masked
    assert redaction.MASK in masked


@pytest.mark.parametrize(
    "text",
    [
        "node-1 is ready at http://127.0.0.1:7080",
        "unexpected token: }",
        "the bearer certificates are missing, basic functionality goes on",
        "input_tokens=500, max_tokens: 300, tokens=7",
        "task-pending and risk-averse-strategies-of-sk-learn",
        "KeyError: 'model'",
        "a keyboard, a monkey=1, secrets are resolved",
        "https://id.example:8443/realms/x@y",
        "cannot find the key 0123456789abcdef",
        "",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert redaction.Redactor().text(text) == text


@pytest.mark.parametrize(
    "secret", [CANARY, 'with "quotes" and \\', "ünï-cödé-secret", "two\nlines of it", bytes(range(32))]
)
def test_a_value_is_known_in_every_way_in_which_it_is_written(secret: str | bytes) -> None:
    redactor = redaction.Redactor()
    redactor.register(secret)
    data = secret if isinstance(secret, bytes) else secret.encode()
    written = [base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode(), data.hex(), repr(secret)]
    if isinstance(secret, str):
        written += [secret, quote(secret), quote(secret, safe=""), json.dumps(secret), json.dumps([secret])]
        written.append(json.dumps(secret, ensure_ascii=False))
    for text in written:
        masked = redactor.text(f"before {text} after")
        assert text.strip("'\"[]=")[:-1] not in masked
        assert masked.startswith("before ")
        assert masked.endswith(" after")


def test_short_values_would_mask_everything_and_are_not_masked() -> None:
    redactor = redaction.Redactor()
    redactor.register("1", "true", b"", "")
    assert redactor.text("1 is true") == "1 is true"


def test_of_variables_those_are_masked_that_may_be_secrets() -> None:
    redactor = redaction.Redactor()
    environment = {
        "OPENAI_API_KEY": "plain-looking",
        "DATABASE": "postgresql://ann:pa55wd@db/x",
        "ODD": "x9$kQ2!vB7",
        "MODEL": "gpt-4o-mini",
        "OPENAI_BASE_URL": "http://127.0.0.1:8080/v1",
        "CACHE": "/var/cache/models",
        "UNSET": "",
        "NOT_NAMED": "not-named-secret!",
    }
    redactor.register_environment(environment, [name for name in environment if name != "NOT_NAMED"])
    told = redactor.text(" ".join(environment.values()))
    assert told == "*** *** *** gpt-4o-mini http://127.0.0.1:8080/v1 /var/cache/models  not-named-secret!"


def test_values_are_masked_at_any_depth_and_stay_what_they_are() -> None:
    masked = redaction.Redactor().value({"a": [1, None, f"Bearer {CANARY}", {"b": KEY}], "c": 2.5})
    assert masked["a"][:2] == [1, None]
    assert masked["a"][2] == "Bearer ***"
    assert KEY not in str(masked)
    assert masked["c"] == 2.5


@given(st.text(), st.text())
def test_what_stands_around_a_value_changes_nothing(before: str, after: str) -> None:
    redactor = redaction.Redactor()
    redactor.register(CANARY)
    assert CANARY not in redactor.text(f"{before}{CANARY}{after}")


WORDS = ("sk-", "eyJ-", "://a:", "secret=", "'secret':'", "gr_dev_", "bearer ", "-----BEGIN PRIVATE KEY-----", "token ")


def _redactor() -> redaction.Redactor:
    redactor = redaction.Redactor()
    redactor.register(*(secrets.token_urlsafe(32) for _ in range(20)))
    return redactor


@pytest.mark.parametrize("word", WORDS)
def test_no_text_takes_long(word: str) -> None:
    """Log lines of agents are looked at. Quadratic, this would take a minute."""
    redactor, begun_s = _redactor(), time.process_time()
    redactor.text(word * 20_000)
    assert time.process_time() - begun_s < 5


@pytest.mark.timed
@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_a_text_takes_time_by_its_length_alone(word: str) -> None:
    redactor = _redactor()

    def took_s(text: str) -> float:
        begun_s = time.process_time()
        redactor.text(text)
        return time.process_time() - begun_s

    # The best of many: a busy machine makes none of them quicker. Squared, it would be sixteen times.
    longer_s, shorter_s = (min(took_s(word * times) for _ in range(20)) for times in (4000, 1000))
    assert longer_s < 8 * shorter_s + 0.001
