"""Refusals: whether a model declined its task, by how its answer begins. Pure; whoever counts tasks for a rollout asks.

A heuristic for English that rather says no: it serves to compare two revisions of one agent, so what it misses it misses
on both, while an answer that it takes for a refusal by mistake is held against one. A tool that failed or an order that
was not found is no refusal, however sorry the answer is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

MAX_BYTES: Final = 64 * 1024  # a longer output is not read at all: nobody declines at such length
MAX_CHARS: Final = 300  # of its text: who declines says so at once

_FILTER: Final = re.compile(r"content_?(filter|policy)|responsible_?ai", re.IGNORECASE)

# Where models and frameworks put their text; the first that there is counts.
_KEYS: Final = ("content", "output", "text", "message", "messages", "choices", "answer", "response", "result")
_STOPS: Final = ("finish_reason", "stop_reason")
_DEPTH: Final = 6

_SORRY: Final = r"""
    (?: (?: (?:i'm|i\ am|we're|we\ are)\ )? (?:(?:very|so|really|truly)\ )? (?:sorry|afraid)
      | (?:my\ |i\ |we\ )? (?:sincerely\ )? apologi(?:es|[sz]e) | unfortunately | regrettably | no
      | (?:i|we)\ (?:understand|appreciate|know) [^.!?]{0,100}? | thank(?:s|\ you)\ for [^.!?]{0,60}?
    )
    [ ,.:;!-]* (?: for\ (?:the|any)\ (?:inconvenience|confusion) [ ,.:;!-]* )? (?: (?:but|however|that)[ ,]* )?
"""
_AI: Final = (
    r"as\ an?\ (?:responsible\ |helpful\ )? (?:ai|artificial\ intelligence|large\ language\ model|language\ model)\b"
)
_CANNOT: Final = r"""
    (?: can(?:not|\ not|'t) | could(?:\ not|n't) | will\ not | won't | do\ not\ feel\ comfortable | don't\ feel\ comfortable
      | (?:(?:i|we)\ )? (?:am|are|'m|'re)? \ ? (?: not\ able\ to | unable\ to | not\ allowed\ to | not\ permitted\ to
          | not\ going\ to | not\ comfortable | not\ programmed\ to | not\ designed\ to )
    )
"""
_DO: Final = r"""
    \ (?: (?:directly|be\ able\ to|in\ good\ conscience|ethically|legally|really)[ ,]+ )*
    (?: help (?:ing)? (?: \ (?:you|with|users?|anyone|people|in)\b | [ ]*[.,;:!] | $ ) (?! \ (?:but|feeling|thinking)\b )
      | assist | comply | fulfil | facilitate | participat | engag (?:e|ing)\ (?:in|with) | satisfy\ (?:this|that|your)
      | do\ (?:this|that|so)\b (?!\ (?:until|before|because\ the)) | discuss | answer\ (?:this|that|your|the|questions|any)
      | (?:writ|creat|generat|produc|provid|giv|shar|offer|continu|respond|complete\ (?:this|that|your)\ request) (?:e|ing)?\b
        (?! \ (?:you\ )?(?:with\ )?(?:a\ |an\ |the\ |any\ )?(?:more|exact|precise|better|file|column|table|index|up)\b )
    )
"""
_DECLINES: Final = re.compile(
    rf"""
    (?: {_SORRY} )*
    (?: (?:i|we|it)\ (?:must|have\ to|need\ to|am\ going\ to\ have\ to|will\ have\ to|respectfully|'ll\ have\ to)?
          \ ? (?: respectfully\ )? (?:decline|refuse)\b (?!d)
      | (?: {_AI} [^.!?]{{0,80}}? [ ,]+ )? (?:i\ |we\ |i|we)? {_CANNOT} {_DO}
      | {_AI} [^.!?]{{0,80}}? (?:do\ not|don't)\ (?:have|hold|form|express|engage|provide)\b
      | (?: it \ (?:is|would\ be)|it's) \ (?:not\ (?:appropriate|possible)|inappropriate|against\ my) [^.!?]{{0,20}}? \ (?:me|guidelines|programming)\b
      | (?: this|that|your|the ) \ (?:request|prompt|content|message) \ (?: violates | was\ (?:flagged|rejected|blocked)
          | (?:goes|is)\ against ) \b [^.!?]{{0,60}} (?: polic | guideline | filter | rule )
      | that's\ (?:not\ )? something\ i\ (?:can't|cannot|won't|can)\ (?:help|assist)
    )
    """,
    re.VERBOSE,
)
_BARE: Final = re.compile(rf"(?: {_SORRY} )+ (?:i\ )?(?:can(?:not|'t)|won't)(?:\ do\ (?:that|it))?[ .!]*$", re.VERBOSE)


def is_refusal(output: bytes | None, error_type: str | None) -> bool:
    """Say whether a task that ended with *output*, in JSON, or with an error of *error_type* was declined by its model.

    >>> is_refusal(b'"I\\'m sorry, but I can\\'t help with that."', None)
    True
    >>> is_refusal(b'"I\\'m sorry to hear that. Your refund is on its way."', None)
    False
    """
    if error_type is not None and _FILTER.search(error_type):
        return True
    if not output or len(output) > MAX_BYTES:
        return False
    try:
        value = msgspec.json.decode(output)
    except (msgspec.DecodeError, RecursionError):
        return False
    text = _text(value, _DEPTH)
    return text is None or _declines(text)


def _declines(text: str) -> bool:
    begin = " ".join(text[:MAX_CHARS].replace("\u2019", "'").replace("\u2014", " - ").lower().split()).lstrip(
        "*#>\"'_ "
    )
    return bool(_DECLINES.match(begin) or _BARE.match(begin))


def _text(value: object, depth: int) -> str | None:
    """Return the text of an answer, empty if it has none; None if the model's service says itself that it declined."""
    if isinstance(value, str):
        return value
    if not depth:
        return ""
    if isinstance(value, list):
        return _of_list(value, depth)
    if isinstance(value, Mapping):
        return _of_object(value, depth)
    return ""


def _of_list(values: list[object], depth: int) -> str | None:
    """The last message that says something; parts of one message are told by their type, and begin with the first."""
    parts = [each for each in values if isinstance(each, Mapping) and each.get("type") in ("text", "output_text")]
    for each in parts[:1] or reversed(values[-3:]):
        if (text := _text(each, depth - 1)) != "":
            return text
    return ""


def _of_object(value: Mapping[str, object], depth: int) -> str | None:
    refusal = value.get("refusal")
    if isinstance(refusal, str) and refusal.strip():
        return None
    if any(value.get(stop) in ("content_filter", "refusal") for stop in _STOPS):
        return None
    for key in _KEYS:
        if key in value and (text := _text(value[key], depth - 1)) != "":
            return text
    return ""
