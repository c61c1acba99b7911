"""The geometry of a small chart of one series, drawn as SVG by `templates/macros.html`. Pure.

What was not measured is a gap, never a zero; what has gaps on both sides is a dash as wide as its step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

Values = Sequence[float | None]
Point = tuple[float, float]


class Chart(msgspec.Struct, frozen=True):
    """SVG paths in a box of *width* by *height*: the *line*, and the *area* under it; the highest value is *most*."""

    width: int
    height: int
    line: str
    area: str
    most: float
    latest: float | None


def chart(values: Values, *, width: int = 240, height: int = 48) -> Chart:
    """Draw *values*, which lie evenly from left to right and begin at zero at the bottom.

    >>> drawn = chart([0, 1, None, 2], width=30, height=10)
    >>> drawn.line
    'M0 9L10 5M30 1h-10'
    >>> drawn.most, drawn.latest
    (2, 2)
    """
    known = [value for value in values if value is not None]
    most = max(known, default=0)
    runs = list(_runs(values, width=width, height=height, most=most))
    dash = width / max(1, len(values) - 1)
    line = "".join(
        _path(run) + (f"h{dash if run[0][0] < dash else -dash:.3g}" if len(run) == 1 else "") for run in runs
    )
    area = "".join(f"{_path(run)}L{run[-1][0]:g} {height}L{run[0][0]:g} {height}Z" for run in runs if len(run) > 1)
    return Chart(width, height, line, area, most, known[-1] if known else None)


def _runs(values: Values, *, width: int, height: int, most: float) -> Iterator[list[Point]]:
    """Yield the points of each stretch without a gap; a line of one unit stays inside of the box."""
    step, run = width / max(1, len(values) - 1), list[Point]()
    for place, value in enumerate(values):
        if value is None:
            if run:
                yield run
            run = []
        else:
            share = value / most if most else 0.0
            run.append((round(place * step, 1), round(height - 1 - share * (height - 2), 1)))
    if run:
        yield run


def _path(run: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in run)
