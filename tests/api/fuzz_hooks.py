"""What schemathesis cannot know by itself; read by the command that `test_fuzz` runs."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def map_query(context: Any, query: Any) -> Any:
    """Follow no logs for long: nobody waits for them here."""
    del context
    return {**query, "follow_s": 0} if query and isinstance(query.get("follow_s"), int | float) else query


@schemathesis.serializer("application/gzip")
def archive(context: Any, value: Any) -> bytes:
    """Send archives of code as they are drawn: most are none."""
    del context
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
