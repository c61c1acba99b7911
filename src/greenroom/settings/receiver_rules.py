"""The rules of a receiver of alerts that concern more than one key, or the variables that it names.

None of the messages says what a variable holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from greenroom.core import addresses as places
from greenroom.core import webhooks
from greenroom.settings import addresses
from greenroom.settings.checking import Checker
from greenroom.settings.problems import KeyPath
from greenroom.settings.rules import Rule
from greenroom.settings.schema import Receiver

HIDDEN = ("slack", "email", "apprise")  # whose URLs are secrets
_APPRISE = ("email", "apprise")
_MAIL = ("mailto", "mailtos")
_VARIABLE = re.compile(r"(?!GREENROOM_)[A-Za-z_][A-Za-z0-9_]{0,199}")


def rules(environ: Mapping[str, str] | None) -> tuple[Rule[Receiver], ...]:
    """Return the rules, for a node that has the variables of *environ*; None: they are not looked at."""

    def has_url(receiver: Receiver) -> str | None:
        if receiver.url is not None and receiver.url_env is not None:
            return "is given beside url_env: the URL has one place; remove one of them"
        if receiver.url is None and receiver.url_env is None:
            return "is missing; give url_env" + ("" if receiver.type in HIDDEN else ", or url")
        if receiver.url is not None and not addresses.is_plain(receiver.url):
            return "has a user, a query or a fragment, which may be secrets: put the URL into a variable, with url_env"
        return None if receiver.url is None else _fault(receiver, receiver.url)

    def url_is_held(receiver: Receiver) -> str | None:
        if receiver.url_env is None or environ is None:
            return None
        url = environ.get(receiver.url_env)
        if not url:
            return _not_set(receiver.url_env)
        fault = _fault(receiver, url)
        return None if fault is None else f"the URL in {receiver.url_env}: {fault}"

    def secret_is_held(receiver: Receiver) -> str | None:
        if (receiver.secret_env is None) != (receiver.type != "webhook"):
            if receiver.secret_env is not None:
                return f"is of webhook only, and the type is {receiver.type}; remove it"
            return "is missing: a webhook is signed; name the variable that holds its secret (whsec_…)"
        if receiver.secret_env is None or environ is None:
            return None
        text = environ.get(receiver.secret_env)
        if not text:
            return _not_set(receiver.secret_env)
        try:
            webhooks.secret_bytes(text)
        except ValueError as error:
            return f"what {receiver.secret_env} holds {error}"
        return None

    return (
        Rule((("url",), ("url_env",), ("type",)), has_url),
        Rule((("url_env",), ("type",), ("url",)), url_is_held),
        Rule((("secret_env",), ("type",)), secret_is_held),
    )


def without_secrets(given: object, path: KeyPath, checker: Checker) -> object:
    """Return the table without what may be a secret where none belongs, reported in words that do not repeat it."""
    if not isinstance(given, Mapping):
        return given
    left = dict(given)
    for key in ("url_env", "secret_env"):
        if isinstance(value := left.get(key), str) and not _VARIABLE.fullmatch(value):
            checker.report((*path, key), "is no name of an environment variable; the secret itself belongs into one")
            del left[key]
    if left.get("type") in HIDDEN and left.pop("url", None) is not None:
        checker.report((*path, "url"), f"is a secret of {left['type']}: name the variable that holds it in url_env")
    return left


def policy(urls: list[str]) -> places.Policy:
    """Return what lets the operator's own receivers be inner addresses, and have any port."""
    parts = [urlsplit(url) for url in urls]
    return places.Policy(
        ports=tuple({part.port or places.HTTPS_PORT for part in parts} | {places.HTTP_PORT}),
        inner_hosts=tuple({part.hostname or "" for part in parts}),
    )


def _not_set(name: str) -> str:
    return f"the variable {name} is not set; set it where the node is started"


def _fault(receiver: Receiver, url: str) -> str | None:
    if receiver.type not in _APPRISE:
        try:
            judged = places.judge(url, policy([url]))
        except ValueError:
            return "it is no URL"
        return judged if isinstance(judged, str) else None
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    if not scheme or not url.isprintable():
        return "it is no URL of apprise, for example mailtos://USER:PASSWORD@HOST?to=ADDRESS"
    if receiver.type == "email" and scheme not in _MAIL:
        return 'it does not begin with mailto:// or mailtos://; other services are of type = "apprise"'
    return None
