"""What tasks hold and sessions keep, as text for people: bounded, whatever it is. Pure.

It is the text of others: templates escape it as all they are given.
"""

from __future__ import annotations

import msgspec

MAX_CHARACTERS = 16_384
MAX_PREVIEW = 160
MAX_PRETTY_BYTES = 262_144  # what is larger is shown as it is: of it only the beginning is seen


class Shown(msgspec.Struct, frozen=True):
    """The *text*, or the beginning of it where it *is_cut*, and how large all is."""

    text: str
    size_mb: float
    is_cut: bool = False


def shown(json: msgspec.Raw) -> Shown | None:
    r"""Return JSON as a page shows it: a string as the text that it is, all else indented; None for null.

    >>> shown(msgspec.Raw(b'"two\\nlines"')).text, shown(msgspec.Raw(b'{"a":[1]}')).text, shown(msgspec.Raw(b"null"))
    ('two\nlines', '{\n  "a": [\n    1\n  ]\n}', None)
    """
    raw = bytes(json)
    if raw == b"null":
        return None
    text = _text(raw)
    return Shown(text[:MAX_CHARACTERS], len(raw) / 1e6, len(text) > MAX_CHARACTERS)


def _text(raw: bytes) -> str:
    if len(raw) > MAX_PRETTY_BYTES:
        return raw[: 4 * MAX_CHARACTERS].decode(errors="replace")
    if raw.startswith(b'"'):
        return msgspec.json.decode(raw, type=str)
    return msgspec.json.format(raw, indent=2).decode()


def preview(json: msgspec.Raw, most: int = MAX_PREVIEW) -> str:
    """Return the beginning of it in one line.

    >>> preview(msgspec.Raw(b'{"number":1}')), preview(msgspec.Raw(b'"xxxxxxxx"'), most=4)
    ('{"number":1}', '"xxx…')
    """
    text = bytes(json)[: 4 * most].decode(errors="replace")
    return text if len(text) <= most else text[:most] + "…"
