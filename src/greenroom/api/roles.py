"""The roles there are: the built-in ones and those of the policy file, as it was when it was right last."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from greenroom import errors, settings
from greenroom.core import permissions
from greenroom.core.permissions import Grant, Rights

Stamp = tuple[int, int, int]  # when the file was written, its size and its inode


class Roles:
    """*on_change* is called when rights that were given out may be others now."""

    def __init__(self, path: Path | None = None) -> None:
        """Read *path*, the policy file; raises `settings.SettingsInvalid`."""
        self._path, self._stamp = path, _stamp(path)
        self._read = None if path is None else settings.read_roles(path)
        self._on_change: list[Callable[[], None]] = []

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.all)

    @property
    def all(self) -> permissions.Roles:
        return permissions.ROLES if self._read is None else self._read

    def on_change(self, do: Callable[[], None]) -> None:
        self._on_change.append(do)

    def rights(self, role: str, *, tenant: str, scopes: Iterable[Grant] | None = None) -> Rights:
        """Return what a principal of *tenant* may do; with a role that is not there (any more) nothing."""
        return permissions.rights(role, tenant=tenant, scopes=scopes, roles=self.all)

    def reload(self) -> bool:
        """Read the file again if it has changed; tell whether it had.

        Raises `settings.SettingsInvalid` where it is wrong: the roles stay what they were, and it is not read again
        before it changes once more.
        """
        stamp = _stamp(self._path)
        if self._path is None or stamp == self._stamp:
            return False
        self._stamp = stamp
        self._read = settings.read_roles(self._path)
        for do in self._on_change:
            do()
        return True


def _stamp(path: Path | None) -> Stamp | None:
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def require_known(roles: Roles, name: str, *, cannot: str) -> None:
    if name not in roles.names:
        raise errors.BodyInvalid(f"{cannot}: role is one of {', '.join(roles.names)}")
