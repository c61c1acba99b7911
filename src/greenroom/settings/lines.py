"""On which line of a TOML text each key stands, which `tomllib` does not tell: so that a mistake is found at once.

Called with texts that are TOML: what it does not understand it passes over, and it raises nothing. A key that is given
in parts (``[a.b]``, ``a.b = 1``) stands where its first part was given first.
"""

from __future__ import annotations

import re
import tomllib

from greenroom.settings.problems import KeyPath

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_TEXT = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_PLAIN = re.compile(r"[^,\]}#\n]*")  # numbers, truths, dates


def lines_of(text: str) -> dict[KeyPath, int]:
    r"""Return the line, from 1 on, of each key and each item of a list.

    >>> lines_of('[a]\nb = [\n  1,\n  {c = 2}]')
    {('a',): 1, ('a', 'b'): 2, ('a', 'b', 0): 3, ('a', 'b', 1): 4, ('a', 'b', 1, 'c'): 4}
    """
    scan = _Scan(text)
    scan.document()
    return scan.lines


class _Scan:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._line, self._counted = 1, 0  # up to there
        self.lines: dict[KeyPath, int] = {}
        self._tables: dict[KeyPath, int] = {}  # how many an array of tables has

    def document(self) -> None:
        table: KeyPath = ()
        while self._skip(_BLANK):
            if self._is_next("["):
                table = self._header()
            elif not self._pair(table):
                self._at = (
                    end if (end := self._text.find("\n", self._at)) >= 0 else len(self._text)
                )  # on with the next line

    def _header(self) -> KeyPath:
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        keys = self._keys()
        for place, key in enumerate(keys):
            path = (*path, key)
            self._note(path)
            if place < len(keys) - 1 and path in self._tables:  # of its last table
                path = (*path, self._tables[path] - 1)
        if is_array:
            count = self._tables.get(path, 0)
            self._tables[path] = count + 1
            path = (*path, count)
            self._note(path)
        self._at += 2 if is_array else 1
        return path

    def _pair(self, table: KeyPath) -> bool:
        """Pass over ``key = value`` of *table*; False where there is none."""
        path = table
        for key in self._keys():
            path = (*path, key)
            self._note(path)
        if path == table or not self._is_next("="):
            return False
        self._at += 1
        self._value(path)
        return True

    def _keys(self) -> list[str]:
        keys: list[str] = []
        while True:
            self._skip(_SPACE)
            found = _KEY.match(self._text, self._at)
            if found is None:
                return keys
            keys.append(_unquoted(found[0]))
            self._at = found.end()
            self._skip(_SPACE)
            if not self._is_next("."):
                return keys
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        self._skip(_SPACE)
        if self._is_next("["):
            self._items(path)
        elif self._is_next("{"):
            self._inline_table(path)
        else:
            self._skip(_TEXT if _TEXT.match(self._text, self._at) else _PLAIN)

    def _items(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._skip(_BLANK) and not self._is_next("]"):
            if self._is_next(","):
                self._at += 1
                continue
            self._note((*path, index))
            before = self._at
            self._value((*path, index))
            index += 1
            if self._at == before:
                return
        self._at += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._skip(_BLANK) and not self._is_next("}"):
            if self._is_next(","):
                self._at += 1
            elif not self._pair(path):
                return
        self._at += 1

    def _note(self, path: KeyPath) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        self.lines.setdefault(path, self._line)

    def _skip(self, what: re.Pattern[str]) -> bool:
        """Pass over *what*; return whether there is more."""
        found = what.match(self._text, self._at)
        self._at = self._at if found is None else found.end()
        return self._at < len(self._text)

    def _is_next(self, text: str) -> bool:
        return self._text.startswith(text, self._at)


def _unquoted(key: str) -> str:
    if key[0] == "'":
        return key[1:-1]
    if key[0] == '"':
        return str(next(iter(tomllib.loads(f"{key} = 0"))))
    return key
