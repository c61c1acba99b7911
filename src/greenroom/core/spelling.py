"""What an unknown name was probably meant to be. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The name in *known* that *word* was probably meant to be: one that it begins, else the most alike."""
    names = sorted(known)
    lowered = word.lower()
    if len(word) >= 3 and (longer := [name for name in names if name.lower().startswith(lowered)]):
        return longer[0]
    by_lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(lowered[:100], by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def suggestion(word: str, known: Iterable[str]) -> str:
    """What follows an unknown name in a message: the nearest one, or all of them."""
    names = sorted(known)
    if match := nearest(word, names):
        return f'did you mean "{match}"?'
    return f"known here: {', '.join(names)}" if names else "nothing is known here"
