"""The audit log's chain: what an entry's hash covers, what a checkpoint signs, what erasure leaves. Pure but for salts.

An entry is hashed as ``SHA-256(0x00 || len || prev || body)``: *prev* is the hash of the entry before, *body* its
fields as canonical JSON (RFC 8785). The fields that may hold personal data (`ERASABLE`) are in the body as hashes of
their own, each with a salt, so that they can be erased and the chain stays whole. Each hash is the leaf of a Merkle
tree as in RFC 9162, of which a checkpoint signs the root with Ed25519; checkpoints are a chain, too.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from greenroom import errors

VERSION = 1
BEGIN = "0" * 64
"""What the first entry, and the first checkpoint, have before them."""
ERASABLE = ("actor", "source", "object", "detail")
ERASE = "audit.erase"
"""The action of the entry without which nothing is erased; it names the entries, and is never erased itself."""
SALT_BYTES = 16
_CONTEXT = b"greenroom audit checkpoint 1\n"

_encode = msgspec.json.Encoder(order="sorted").encode
# What JSON lets stand in text, and some readers of lines end a line at.
_LINE_ENDS = [(each.encode(), b"\\u%04x" % ord(each)) for each in "\x85\u2028\u2029"]


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return *value* as canonical JSON. Its keys are ASCII, its numbers whole and at most 2**53: checked by `plain`."""
    return _encode(value)


def plain(value: Any) -> Any:
    """Return *value* as what canonical JSON has one form of; raises `TypeError` for fractions and other objects."""
    match value:
        case None | bool():
            return value
        case int():
            return value if abs(value) <= 2**53 else str(value)
        case str():
            return text(value)
        case Mapping():
            return {str(key).encode("ascii", "replace").decode(): plain(item) for key, item in value.items()}
        case Sequence():
            return [plain(item) for item in value]
        case _:
            raise TypeError(f"cannot write a {type(value).__name__} to the audit log")


def text(value: str, most: int = 2_000) -> str:
    """Return *value* as both databases take it: no lone surrogates, no NUL, at most *most* characters."""
    return value[:most].encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A row of the log. *time* in microseconds since 1970, *detail* is canonical JSON, hashes and *salts* are hex.

    *erased* is a JSON object of the hashes that stand for fields that were erased; "" while none is.
    """

    seq: int
    time: int
    tenant: str
    actor: str | None
    source: str | None
    action: str
    object: str | None
    outcome: str
    request_id: str
    detail: str | None
    salts: str
    erased: str
    prev: str
    hash: str


ODD_TEXT, ODD_NUMBER = '"(not text)"', 0  # the text is JSON, too
Row = TypeVar("Row", bound=msgspec.Struct)


def read(kind: type[Row], values: Sequence[Any]) -> Row:
    """Make a *kind* of a stored row, whatever somebody has put there: text of another type becomes one that is in no
    entry, a number of another type 0, which is no entry's and no checkpoint's.
    """
    return kind(
        *(
            value if isinstance(value, wanted) else ODD_NUMBER if int in wanted else ODD_TEXT
            for value, wanted in zip(values, _types(kind), strict=True)
        )
    )


@functools.cache
def _types(kind: type[msgspec.Struct]) -> tuple[tuple[type, ...], ...]:
    types = (field.type for field in msgspec.structs.fields(kind))
    return tuple((each,) if isinstance(each, type) else typing.get_args(each) for each in types)


def new_salts() -> str:
    return secrets.token_hex(SALT_BYTES * len(ERASABLE))


def commitments(entry: Entry) -> dict[str, str]:
    """Return the hashes that stand for the erasable fields of *entry*."""
    salts, sha256 = entry.salts, hashlib.sha256
    if not entry.erased:  # each entry comes by here
        if entry.actor is None or entry.source is None or entry.object is None or entry.detail is None:
            raise ValueError("a field is missing that was not erased")
        return {
            "actor": sha256(f"{salts[:32]}actor\0{entry.actor}".encode()).hexdigest(),
            "source": sha256(f"{salts[32:64]}source\0{entry.source}".encode()).hexdigest(),
            "object": sha256(f"{salts[64:96]}object\0{entry.object}".encode()).hexdigest(),
            "detail": sha256(f"{salts[96:128]}detail\0{entry.detail}".encode()).hexdigest(),
        }
    kept: dict[str, str] = msgspec.json.decode(entry.erased, type=dict[str, str])
    there = {name: getattr(entry, name) for name in ERASABLE}
    if any((value is None) != (name in kept) for name, value in there.items()):
        raise ValueError("a field is missing that was not erased, or was erased and is there")
    found = commitments(msgspec.structs.replace(entry, erased="", **dict.fromkeys(kept, "")))
    return found | kept


def hash_of(entry: Entry) -> str:
    """Return what the hash of *entry* has to be."""
    body = _encode(
        {
            **commitments(entry),
            "action": entry.action,
            "outcome": entry.outcome,
            "prev": entry.prev,
            "request_id": entry.request_id,
            "seq": entry.seq,
            "tenant": entry.tenant,
            "time": entry.time,
            "v": VERSION,
        }
    )
    return hashlib.sha256(b"\0" + len(body).to_bytes(8, "big") + bytes.fromhex(entry.prev) + body).hexdigest()


def chained(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, hash=hash_of(entry))


def erased(entry: Entry) -> Entry:
    """Return *entry* without what may be personal in it; its hash stays what it is."""
    return msgspec.structs.replace(
        entry,
        **dict.fromkeys(ERASABLE),
        salts="0" * 2 * SALT_BYTES * len(ERASABLE),
        erased=_encode(commitments(entry)).decode(),
    )


def root_of(hashes: Sequence[str]) -> str:
    """Return the root of the Merkle tree (RFC 9162) whose leaves have these hashes.

    >>> root_of([BEGIN]) == BEGIN, root_of([]) == hashlib.sha256(b"").hexdigest()
    (True, True)
    """
    level = [bytes.fromhex(leaf) for leaf in hashes]
    if not level:
        return hashlib.sha256(b"").hexdigest()
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2])]  # noqa: B905 - an odd one goes up as it is
        level = pairs + level[len(pairs) * 2 :]
    return level[0].hex()


class Checkpoint(msgspec.Struct, frozen=True):
    """What is signed: the entries *first* to *last* have *root*, the last of them *head*; *previous* is the hash of the
    checkpoint before, *key* says whose signature it is.
    """

    number: int
    time: int
    first: int
    last: int
    root: str
    head: str
    previous: str
    key: str
    signature: str = ""

    @property
    def signed(self) -> bytes:
        document = msgspec.structs.asdict(self)
        del document["signature"]
        return _CONTEXT + _encode(document)

    @property
    def hash(self) -> str:
        """Raises `ValueError` where the signature is not hex."""
        return hashlib.sha256(self.signed + bytes.fromhex(self.signature)).hexdigest()


class Signer:
    """The key that signs checkpoints, from its 32 bytes."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()
        self.id = key_id(self.public)

    def sign(self, content: bytes) -> bytes:
        return self._key.sign(content)

    def checkpoint(self, entries: Sequence[Entry], *, number: int, previous: str, now_us: int) -> Checkpoint:
        """Sign *entries*, which follow one another."""
        unsigned = Checkpoint(
            number,
            now_us,
            entries[0].seq,
            entries[-1].seq,
            root_of([entry.hash for entry in entries]),
            entries[-1].hash,
            previous,
            self.id,
        )
        return msgspec.structs.replace(unsigned, signature=self.sign(unsigned.signed).hex())


def key_id(public: bytes) -> str:
    return hashlib.sha256(public).hexdigest()[:16]


def public_key(text: str) -> bytes:
    """Read a public key as `greenroom audit key` prints it (64 hex digits); raises `errors.AuditBroken`."""
    try:
        key = bytes.fromhex(text.strip())
        Ed25519PublicKey.from_public_bytes(key)
    except ValueError:
        raise errors.AuditBroken(
            f"cannot read the public key {text.strip()[:80]!r}: give the 64 hex digits that greenroom audit key prints"
        ) from None
    return key


def is_signed(checkpoint: Checkpoint, keys: Mapping[str, bytes]) -> bool:
    """Tell whether one of *keys*, by their ids, has signed *checkpoint*."""
    public = keys.get(checkpoint.key)
    if public is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(checkpoint.signature), checkpoint.signed)
    except (InvalidSignature, ValueError):
        return False
    return True


# --- as they are exported: one JSON object a line


def line_of(entry: Entry) -> bytes:
    """Return *entry* as it is exported: enough to check the chain without the store."""
    document = {"kind": "entry", **shown(entry)}
    document |= {"time": entry.time, "salts": entry.salts, "prev": entry.prev, "hash": entry.hash}
    if entry.erased:
        document["erased"] = msgspec.Raw(entry.erased.encode())
    line = _encode(document)
    for end, escaped in _LINE_ENDS:
        line = line.replace(end, escaped)
    return line


def shown(entry: Entry) -> dict[str, Any]:
    """Return what people see of *entry*."""
    return {
        "seq": entry.seq,
        "tenant": entry.tenant,
        "actor": entry.actor,
        "source": entry.source,
        "action": entry.action,
        "object": entry.object,
        "outcome": entry.outcome,
        "request_id": entry.request_id,
        "detail": None if entry.detail is None else msgspec.Raw(entry.detail.encode()),
    }


def line_of_checkpoint(checkpoint: Checkpoint) -> bytes:
    return _encode({"kind": "checkpoint", **msgspec.structs.asdict(checkpoint)})


def parse(line: bytes) -> Entry | Checkpoint | None:
    """Read a line of an export; None where it is none: a line may be torn where the power was cut."""
    try:
        document = msgspec.json.decode(line, type=dict[str, Any])
        if document.pop("kind", None) == "checkpoint":
            return msgspec.convert(document, Checkpoint, strict=True)
        for name in ("detail", "erased"):
            value = document.get(name)
            document[name] = None if value is None else _encode(value).decode()
        document["erased"] = document["erased"] or ""
        return msgspec.convert(document, Entry, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
