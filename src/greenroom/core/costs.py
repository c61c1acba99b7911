"""What tasks cost in money, by the prices that an agent's manifest gives: nobody else knows them. Pure.

Amounts are integers of nano-dollars, so that sums are exact and in any order the same. What has no price costs nobody
knows how much: None, which is not 0. Called by `control.history` and the API.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

NANO = 1_000_000_000  # nano-dollars of a dollar
_MILLION = 1_000_000  # tokens
_Amount = TypeVar("_Amount", int, float)


class Prices(NamedTuple):
    """In nano-dollars: of a million tokens, and of each task that an attempt has ended."""

    input: int = 0
    output: int = 0
    task: int = 0

    def of(self, *, input_tokens: int, output_tokens: int, tasks: int) -> int:
        """Return what so much costs, to the nearest nano-dollar.

        >>> prices = Prices(input=150_000_000, output=600_000_000, task=1_000_000)
        >>> usd(prices.of(input_tokens=2_000, output_tokens=500, tasks=3))
        0.0036
        """
        tokens = self.input * input_tokens + self.output * output_tokens
        return (tokens + _MILLION // 2) // _MILLION + self.task * tasks


def nano_usd(usd: float) -> int:
    """Return dollars as they were written as nano-dollars.

    >>> nano_usd(0.15)
    150000000
    """
    return round(usd * NANO)


def usd(nano: int) -> float:
    return nano / NANO


def added(one: _Amount | None, other: _Amount | None) -> _Amount | None:
    """Return the sum of what is known.

    >>> added(None, None), added(2, None), added(2, 3)
    (None, 2, 5)
    """
    if one is None or other is None:
        return other if one is None else one
    return one + other


def told(usd: float | None) -> str:
    """Return an amount as people read it; nothing, where it is not known.

    >>> [told(usd) for usd in (None, 0, 0.0000004, 0.00321, 0.5, 12.345, 98_765.4)]
    ['', '$0', '<$0.0001', '$0.0032', '$0.50', '$12.35', '$98,765']
    """
    if usd is None:
        return ""
    if not usd:
        return "$0"
    if usd < 0.0001:
        return "<$0.0001"
    if usd < 0.1:
        return f"${usd:.4f}"
    return f"${usd:,.2f}" if usd < 10_000 else f"${usd:,.0f}"
