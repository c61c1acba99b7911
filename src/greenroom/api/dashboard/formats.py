"""Numbers and instants as pages write them: short, of one width, and with the exact value beside. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

NONE = "—"


def number(value: float | None) -> str:
    """Return a count or a rate.

    >>> number(None), number(0), number(0.25), number(7.5), number(1234), number(1_250_000)
    ('—', '0', '0.25', '7.5', '1,234', '1.25 M')
    """
    if value is None:
        return NONE
    if abs(value) >= 1_000_000:
        return f"{value / 1e6:.3g} M"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.1f}"


def percent(part: float, whole: float) -> str:
    """Return a share; that of nothing is not known.

    >>> percent(1, 3), percent(0, 5), percent(1, 10_000), percent(0, 0)
    ('33 %', '0 %', '<0.1 %', '—')
    """
    if not whole:
        return NONE
    value = 100 * part / whole
    if value and value < 0.1:
        return "<0.1 %"
    return f"{value:.1f} %" if value and value < 10 else f"{value:.0f} %"


def size(megabytes: float | None) -> str:
    """Return an amount of memory.

    >>> size(None), size(0.5), size(87.34), size(2048)
    ('—', '0.5 MB', '87 MB', '2.0 GB')
    """
    if megabytes is None:
        return NONE
    if megabytes >= 1024:
        return f"{megabytes / 1024:.1f} GB"
    return f"{megabytes:.0f} MB" if megabytes >= 10 else f"{megabytes:.1f} MB"


def duration(seconds: float | None) -> str:
    """Return how long something takes or took.

    >>> duration(None), duration(0.0004), duration(0.0123), duration(2.5), duration(75), duration(7300), duration(2e5)
    ('—', '<1 ms', '12 ms', '2.5 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 or not seconds else "<1 ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for unit_s, unit, below_s, below in ((60, "min", 1, "s"), (3600, "h", 60, "min"), (86_400, "d", 3600, "h")):
        if seconds < unit_s * {60: 60, 3600: 24}.get(unit_s, 10**9):
            whole, rest = divmod(int(seconds), unit_s)
            return f"{whole} {unit}" + (f" {rest // below_s} {below}" if rest // below_s else "")
    raise AssertionError(seconds)


def ago(at: datetime | None, now: datetime) -> str:
    """Return since when, to the minute: what says the seconds is other text each second, and would be sent again.

    >>> now = datetime(2030, 1, 2, tzinfo=UTC)
    >>> ago(datetime(2030, 1, 1, 23, 59, 40, tzinfo=UTC), now), ago(datetime(2030, 1, 1, 21, tzinfo=UTC), now)
    ('just now', '3 h ago')
    >>> ago(datetime(2030, 1, 2, 0, 5, tzinfo=UTC), now)
    'in 5 min'
    """
    if at is None:
        return NONE
    passed_s = (now - at).total_seconds()
    for unit_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if abs(passed_s) >= unit_s:
            text = f"{int(abs(passed_s) // unit_s)} {unit}"
            return f"{text} ago" if passed_s > 0 else f"in {text}"
    return "just now" if passed_s >= 0 else "soon"


def exact(at: datetime) -> str:
    """Return an instant to the second, for people.

    >>> exact(datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2030-01-02 03:04:05 UTC'
    """
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
