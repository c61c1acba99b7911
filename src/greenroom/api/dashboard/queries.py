"""Queries of pages with filters: a form sends also what was left empty, and a link keeps what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

import msgspec

from greenroom.api.request import Call


def without_blanks(call: Call) -> Call:
    """Return *call* as if fields that were left empty had not been sent: for the API they would be values."""
    pairs = parse_qsl(call.scope["query_string"].decode("ascii", "replace"))
    scope = {**call.scope, "query_string": urlencode(pairs).encode()}
    return msgspec.structs.replace(call, scope=scope)


def link(call: Call, fields: Mapping[str, str]) -> str:
    """Return the address of the same page with other *fields*; empty ones are left out."""
    query = urlencode({name: value for name, value in fields.items() if value})
    return f"{call.scope['path']}?{query}" if query else str(call.scope["path"])
