"""Checks given tables against the schema and builds its values, collecting every problem.

msgspec judges each single value; this walks the fields, so that one mistake hides no other. Called by
`loading`; it knows no rule that concerns two keys (`rules`) and no source of values (`sources`).
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec
from msgspec import inspect, structs

from greenroom.core.spelling import nearest, suggestion
from greenroom.settings.problems import KeyPath, shown

Table = TypeVar("Table", bound=msgspec.Struct)

MAX_PROBLEMS = 1000  # more help nobody, and a megabyte of nonsense should not cost more work
ARGUMENTS_BYTES = 256 * 1024
VALUE_BYTES = 64 * 1024  # of any other JSON value
JSON_DEPTH = 32
JSON_INTEGERS = range(-(2**63), 2**63)


class Checker:
    """Collects the problems of one validation, in the order of the schema."""

    def __init__(self) -> None:
        self.found: list[tuple[KeyPath, str]] = []

    @property
    def is_full(self) -> bool:
        return len(self.found) >= MAX_PROBLEMS

    def report(self, path: KeyPath, message: str) -> None:
        if not self.is_full:
            self.found.append((path, message))

    def is_sound(self, path: KeyPath) -> bool:
        """Whether it is certain that there is no problem at *path*, under it or above it."""
        return not self.is_full and all(path[: len(bad)] != bad and bad[: len(path)] != path for bad, _ in self.found)

    def table(self, kind: type[Table], given: object, path: KeyPath, *, defaults: Table | None = None) -> Table:
        """*given* as a *kind*; what is absent comes from *defaults*, else from the schema.

        Where problems were reported under *path* the answer has defaults or None in their place: good enough
        to check the rules that concern other keys, never to be handed out.
        """
        fields = fields_of(kind)
        json_values = {field.name for field in fields if field.type is Any}
        known = self.mapping(given, path, known=[field.name for field in fields], nullable=json_values)
        values = {}
        for field in fields:
            here = (*path, field.name)
            default = default_of(field) if defaults is None else getattr(defaults, field.name)
            if field.name in json_values and field.name in known:
                values[field.name] = self._json(known[field.name], here, most_bytes=VALUE_BYTES)
            else:
                values[field.name] = self._field(field, known.get(field.name), here, default=default)
        return kind(**values)

    def mapping(
        self, given: object, path: KeyPath, *, known: list[str] | None = None, nullable: Container[str] = ()
    ) -> dict[str, Any]:
        """*given* with text keys, without nulls but for those of *nullable* and, where *known* is told, without
        unknown keys.
        """
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            self.report(path, f"expected a table, got {shown(given)}")
            return {}
        present = {str(key): value for key, value in given.items() if value is not None or key in nullable}
        unknown = [key for key in present if known is not None and key not in known]
        for key in unknown[:MAX_PROBLEMS]:
            self.report((*path, key), f"unknown key; {suggestion(key, known or ())}")
        return present

    def _field(self, field: structs.FieldInfo, given: object, path: KeyPath, *, default: Any) -> Any:
        if isinstance(default, msgspec.Struct):
            return self.table(type(default), given, path, defaults=default)
        if given is None:
            if default is not msgspec.NODEFAULT:
                return default
            if self.is_sound(path):  # else the whole table is no table, which says enough
                self.report(path, f"is missing; expected {expectation(inspect.type_info(field.type))}")
            return None
        before = len(self.found)
        value = self._value(field.type, given, path)
        if _holds_tables(field.type):
            return value  # so that the sound ones meet their rules
        if len(self.found) > before:
            return default
        return value

    def _value(self, kind: Any, given: object, path: KeyPath) -> Any:
        inner = _plain(kind)
        if get_origin(inner) is tuple:
            return self._items(kind, get_args(inner)[0], given, path=path)
        if get_origin(inner) is dict:
            return self._json_table(given, path)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            return self.table(inner, {} if given is None else given, path)
        return self.scalar(kind, given, path)

    def scalar(self, kind: Any, given: object, path: KeyPath) -> Any:
        """*given* as the annotated type *kind*; None after a problem."""
        try:
            return msgspec.convert(given, kind)
        except (msgspec.ValidationError, UnicodeEncodeError):  # the latter: a lone surrogate for a choice
            info = inspect.type_info(kind)
            message = f"expected {expectation(info)}, got {shown(given)}"
            near = nearest(given, _choices(info)) if isinstance(given, str) else None
            self.report(path, message + (f'; did you mean "{near}"?' if near else ""))
            return None

    def _items(self, kind: Any, item: Any, given: object, *, path: KeyPath) -> tuple[Any, ...]:
        info = inspect.type_info(kind)
        bounds = info.type if isinstance(info, inspect.Metadata) else info
        assert isinstance(bounds, inspect.VarTupleType)
        if isinstance(given, str) and _takes_one(info):
            return (self.scalar(item, given, path),)
        least, most = bounds.min_length or 0, bounds.max_length or math.inf
        if not isinstance(given, list | tuple) or not least <= len(given) <= most:
            self.report(path, f"expected {expectation(info)}, got {shown(given)}")
            return ()
        return tuple(self._value(item, value, (*path, index)) for index, value in enumerate(given))

    def _json_table(self, given: object, path: KeyPath) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            self.report(path, f"expected a table, got {shown(given)}")
            return {}
        return self._json(dict(given), path, most_bytes=ARGUMENTS_BYTES) or {}

    def _json(self, given: object, path: KeyPath, *, most_bytes: int) -> Any:
        mistakes = list(itertools.islice(_not_json(given, path, depth=0), MAX_PROBLEMS))
        for where, message in mistakes:
            self.report(where, message)
        if mistakes:
            return None
        encoded = json.dumps(given, ensure_ascii=False, separators=(",", ":")).encode()
        if len(encoded) > most_bytes:
            self.report(path, f"expected at most {most_bytes} bytes as JSON, got {len(encoded)}")
            return None
        # A copy: nobody else holds it, and it is what JSON gives back (plain types, lists for tuples).
        return msgspec.json.decode(encoded)


def _plain(kind: Any) -> Any:
    """*kind* without its annotations."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _holds_tables(kind: Any) -> bool:
    inner = _plain(kind)
    item = _plain(get_args(inner)[0]) if get_origin(inner) is tuple else None
    return isinstance(item, type) and issubclass(item, msgspec.Struct)


def _takes_one(kind: inspect.Type) -> bool:
    """Whether a text stands for the list of it alone."""
    schema = kind.extra_json_schema if isinstance(kind, inspect.Metadata) else None
    return "string" in (schema or {}).get("type", ())


def _not_json(value: object, path: KeyPath, *, depth: int) -> Iterator[tuple[KeyPath, str]]:
    if depth > JSON_DEPTH:
        yield path, f"expected at most {JSON_DEPTH} levels of nesting"
        return
    match value:
        case None | bool():
            return
        case str():
            if any("\ud800" <= character <= "\udfff" for character in value):
                yield path, f"expected text in Unicode, got {shown(value)}"
        case int():
            if value not in JSON_INTEGERS:
                yield path, f"expected a whole number of at most 64 bits, got {shown(value)}"
        case float():
            if not math.isfinite(value):
                yield path, f"expected a finite number, got {shown(value)}"
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _not_json(item, (*path, index), depth=depth + 1)
        case dict():
            for key, item in value.items():
                here = (*path, str(key))
                if not isinstance(key, str) or any("\ud800" <= character <= "\udfff" for character in key):
                    yield here, "expected a key that is text in Unicode"
                yield from _not_json(item, here, depth=depth + 1)
        case _:
            yield path, f"expected a JSON value, got {shown(value)}"


@functools.cache
def fields_of(kind: type[msgspec.Struct]) -> tuple[structs.FieldInfo, ...]:
    """The fields of *kind* (msgspec resolves the annotations each time that it is asked)."""
    return structs.fields(kind)


def default_of(field: structs.FieldInfo) -> Any:
    """The schema's default of *field*; ``msgspec.NODEFAULT`` where the key is required."""
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def expectation(kind: inspect.Type, title: str | None = None) -> str:
    """What a value must be, in words, made from the bounds of its type."""
    match kind:
        case inspect.Metadata():
            return expectation(kind.type, (kind.extra_json_schema or {}).get("title"))
        case inspect.UnionType():
            return " or ".join(expectation(each) for each in kind.types if not isinstance(each, inspect.NoneType))
        case inspect.LiteralType():
            return _one_of(kind.values)
        case inspect.EnumType():
            return _one_of(kind.cls)
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"{title or 'a whole number'}{_bounds(kind)}"
        case inspect.FloatType():
            return f"{title or 'a number'}{_bounds(kind)}"
        case inspect.VarTupleType():
            return f"{title or 'a list'}{_how_many(kind)}"
        case inspect.StrType() if title in (None, "text"):
            return "text" + (f" of at most {kind.max_length} characters" if kind.max_length else "")
        case inspect.StrType():
            return str(title)
        case inspect.AnyType():
            return "a JSON value"
        case _:
            return "a table"


def _one_of(values: Iterable[object]) -> str:
    choices = [json.dumps(value) for value in values]
    return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"


def _how_many(kind: inspect.VarTupleType) -> str:
    if kind.max_length is None:
        return ""
    return f" of {kind.min_length} to {kind.max_length}" if kind.min_length else f" of at most {kind.max_length}"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.gt is not None:
        return f" > {kind.gt:g} and at most {kind.le:.12g}"
    return f" from {kind.ge} to {kind.le}"


def _choices(kind: inspect.Type) -> list[str]:
    match kind:
        case inspect.UnionType():
            return [choice for each in kind.types for choice in _choices(each)]
        case inspect.LiteralType():
            return [str(value) for value in kind.values]
        case inspect.EnumType():
            return [str(value) for value in kind.cls]
        case _:
            return []
