"""What no output may hold: secrets are masked, by form and by value, in whatever is logged, answered or told.

By form: our own keys and logins, tokens, what stands behind ``Bearer`` or ``password=``, the password of a URL, keys of
well-known providers, private keys. By value: what a process was told of (`register`), as it is and as outputs write it
(base64, hexadecimal, quoted for URLs and JSON). It is a net below careful code, not a wall: who cuts a secret into
pieces gets it through.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"
LEAST = 8  # characters of a value; shorter ones stand everywhere
MOST = 1000  # values; the first are kept

_NAMES = ("key", "secret", "passw", "token", "credential")
_NAME = r"(?:(?:api|private|access|signing)[_-]?key|secret|passw(?:or)?d|passwd|token|credentials?)"
# Words of which a text in lower letters has one where the form may be in it, the form, and what takes its place.
_FORMS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = tuple(
    (words, re.compile(form), mask)
    for words, form, mask in (
        (
            ("private key-----",),
            r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----)[\s\S]*?(?=-----END|\Z)",
            rf"\1{MASK}",
        ),
        (("gr_",), r"(gr_[a-z]{2,12}_[0-9a-f]{16}_)[A-Za-z0-9~-]{20,43}(?:_[0-9a-f]{1,8})?", rf"\1{MASK}"),
        (("gl_",), r"(gl_)[A-Za-z0-9_-]{43}_[A-Za-z0-9_-]{20,43}", rf"\1{MASK}"),
        (("eyj",), r"(?<![\w-])(eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){0,3}", rf"\1{MASK}"),
        (
            ("bearer", "basic"),
            r"\b((?i:bearer|basic)[ \t]+)(?=[a-z]*[A-Z0-9+/=_.~-])[A-Za-z0-9._~+/=-]{8,}",
            rf"\1{MASK}",
        ),
        (("://",), r"(://[^\s/:@\"']{0,200}:)[^\s/@\"']+(?=@)", rf"\1{MASK}"),
        (
            _NAMES,
            rf"(?i)({_NAME}[\"']?\s?=\s?)(?:\"[^\"\n]+\"|'[^'\n]+'|[^\s\"',;&)}}\]]+)",
            rf"\1{MASK}",
        ),
        (_NAMES, rf"(?i)({_NAME}[\"']\s?:\s?)(?:\"(?:[^\"\\\n]|\\.)+\"|'[^'\n]+')", rf'\1"{MASK}"'),
        (
            ("sk-", "rk-", "pk-", "sk_", "rk_"),
            r"(?<![\w-])([srp]k[-_])(?=[A-Za-z_-]{0,40}\d)[A-Za-z0-9_-]{16,}",
            rf"\1{MASK}",
        ),
        (
            ("gh", "glpat-", "xox", "hf_", "whsec_", "aiza", "npm_", "pypi-"),
            r"\b(gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|hf_|whsec_|AIza|npm_|pypi-)[A-Za-z0-9_+/=-]{16,}",
            rf"\1{MASK}",
        ),
        (("akia", "asia"), r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", rf"\1{MASK}"),
    )
)
# `api_key`, `OPENAI_KEY`, `access-token`, `accessKey`, `dbPassword`, but neither `max_tokens` nor `monkey`.
_SECRET_NAME = re.compile(r"(?i)(?:api|[_-]|^)_?-?key$|(?-i:[a-z]Key)$|token$|secret|passw|credential|^authorization$")
# What variables say that is no secret: an address, a path, a number, a word.
_PLAIN = re.compile(r"https?://[^@\s]*|/[\w./-]*|[\d.]+|[A-Za-z]+(?:[-_.:][A-Za-z0-9]+){0,3}")


class Redactor:
    """Masks by form, and the values that it is told of."""

    def __init__(self) -> None:
        self._values: dict[str, None] = {}
        self._known: re.Pattern[str] | None = None

    def register(self, *secrets: str | bytes) -> None:
        """Have *secrets* masked from now on, wherever they stand; those of less than `LEAST` characters are not."""
        before = len(self._values)
        for secret in secrets:
            if len(secret) >= LEAST and len(self._values) < MOST * 8:
                self._values.update(dict.fromkeys(_written(secret)))
        if len(self._values) > before:
            longest_first = sorted(self._values, key=len, reverse=True)
            self._known = re.compile("|".join(map(re.escape, longest_first)))

    def register_environment(self, environment: Mapping[str, str], names: Iterable[str]) -> None:
        """Have the values of those variables masked that by their name or their look may be secrets."""
        values = ((name, environment.get(name, "")) for name in names)
        self.register(*(value for name, value in values if is_secret_name(name) or not _PLAIN.fullmatch(value)))

    def text(self, text: str) -> str:
        """Return *text* with `MASK` in the place of secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        lowered = text.lower()
        for words, form, mask in _FORMS:
            for word in words:
                if word in lowered:
                    text = form.sub(mask, text)
                    break
        return text

    def value(self, value: Any) -> Any:
        """Return a JSON *value* with every text in it masked."""
        match value:
            case str():
                return self.text(value)
            case Mapping():
                return {key: self.value(inner) for key, inner in value.items()}
            case list() | tuple():
                return type(value)(map(self.value, value)) if type(value) in (list, tuple) else value
            case _:
                return value


def is_secret_name(name: str) -> bool:
    """Tell whether what has that name is a secret, by the name."""
    return _SECRET_NAME.search(name) is not None


def _written(secret: str | bytes) -> set[str]:
    """Return *secret* in the ways in which outputs write it."""
    data = secret if isinstance(secret, bytes) else secret.encode("utf-8", "surrogatepass")
    forms = {data.hex()}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms.add(encode(data).decode().rstrip("="))
    if isinstance(secret, str):
        escaped = (json.dumps(secret, ensure_ascii=ascii)[1:-1] for ascii in (True, False))
        forms |= {secret, quote(secret, safe=""), quote(secret), quote_plus(secret), repr(secret)[1:-1], *escaped}
    else:
        forms.add(repr(data)[2:-1])
    return {form for form in forms if len(form) >= LEAST}


# One for each process: what it was told of must not leave it, whoever in it speaks.
_redactor = Redactor()
register, register_environment = _redactor.register, _redactor.register_environment
text, value = _redactor.text, _redactor.value
