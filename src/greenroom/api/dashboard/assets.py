"""What pages load beside themselves: a style sheet, a script and an icon, each under a name that its content makes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from greenroom import errors
from greenroom.api.request import Answer, Call

PATH = "/ui/assets/{name}"
_FOLDER = Path(__file__).parent / "assets"
_MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@functools.cache
def _names() -> Mapping[str, Path]:
    found = {}
    for path in sorted(_FOLDER.iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        found[f"{path.stem}-{digest}{path.suffix}"] = path
    return found


@functools.cache
def path_of(name: str) -> str:
    """Return where the asset *name* is, for the pages of this release."""
    (found,) = (hashed for hashed, path in _names().items() if path.name == name)
    return PATH.format(name=found)


async def show(call: Call) -> Answer:
    """Show an asset; it is good for ever, as another content has another name."""
    path = _names().get(call.path("name"))
    if path is None:
        raise errors.NotFound("cannot find this asset: the page is of another release; reload it")
    headers = ((b"cache-control", b"private, max-age=31536000, immutable"), (b"x-content-type-options", b"nosniff"))
    return Answer(path.read_bytes(), media_type=_MEDIA_TYPES[path.suffix], headers=headers)
