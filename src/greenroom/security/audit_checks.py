"""Whether an audit log is the one that was written: what was done to it, and from which entry on. Pure.

Without an *anchor* (what was exported, out of the database owner's reach) only what was signed is certain: an owner of
the database who has no signing key can neither change, remove nor add an entry that a checkpoint covers, but can cut
the end off. With an anchor nothing that was exported can be changed, removed or cut off.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from greenroom.security import audit
from greenroom.security.audit import BEGIN, Checkpoint, Entry

MOST_FINDINGS = 20
MOST_UNSIGNED = 4_096
"""Entries that may be newer than the last checkpoint: there is one each minute, and each few hundred entries."""


class Kind(enum.StrEnum):
    CHANGED = "changed"  # an entry is not what its hash says
    UNCHAINED = "unchained"  # it does not follow the one before it: something was put in, taken out or moved
    MISSING = "missing"
    TRUNCATED = "truncated"  # the end was cut off, or an older state was restored
    REWRITTEN = "rewritten"  # entries are others than those that were signed or exported
    ERASED = "erased"  # and no entry says so
    FORGED = "forged"  # a checkpoint that nobody signed who may
    UNSIGNED = "unsigned"  # checkpoints are missing


class Finding(msgspec.Struct, frozen=True):
    """*index* is the first entry that it is about; of `FORGED` and missing checkpoints, the checkpoint's first one."""

    index: int
    kind: Kind
    what: str


class Head(msgspec.Struct, frozen=True):
    """What the store says of its log: the last entry, and the last checkpoint."""

    seq: int = 0
    hash: str = BEGIN
    sealed: int = 0  # the last entry that a checkpoint covers
    checkpoint: int = 0
    checkpoint_hash: str = BEGIN


class Anchor(msgspec.Struct, frozen=True):
    """What was exported: the hashes of entries, and checkpoints by their number."""

    hashes: Mapping[int, str] = {}
    checkpoints: Mapping[int, Checkpoint] = {}
    unread: int = 0
    """Lines that are none of ours: torn by a power cut, or something else."""

    @property
    def last(self) -> int:
        """The last entry that is known of."""
        return max([0, *self.hashes, *(checkpoint.last for checkpoint in self.checkpoints.values())])


def anchor_of(lines: Iterable[bytes]) -> Anchor:
    """Read an export: JSON lines of entries and checkpoints, possibly some of them twice. The first of a number counts:
    what was exported earlier is the better witness.
    """
    hashes: dict[int, str] = {}
    checkpoints: dict[int, Checkpoint] = {}
    unread = 0
    for line in lines:
        match audit.parse(line) if line.strip() else False:
            case Entry() as entry:
                hashes.setdefault(entry.seq, entry.hash)
            case Checkpoint() as checkpoint:
                checkpoints.setdefault(checkpoint.number, checkpoint)
            case None:
                unread += 1
    return Anchor(hashes, checkpoints, unread)


class Check:
    """Looks at a log entry by entry: `add` each in the order of its number, then `end`. Of bounded size, but for
    *anchor* and *checkpoints*.
    """

    def __init__(
        self, keys: Iterable[bytes], *, checkpoints: Sequence[Checkpoint] = (), anchor: Anchor | None = None
    ) -> None:
        self._keys = {audit.key_id(key): key for key in keys}
        self._anchor = anchor or Anchor()
        self.findings: list[Finding] = []
        self.entries = 0
        self.sealed = 0  # the last entry that a good checkpoint covers
        self._seq, self._hash = 0, BEGIN
        self._named: set[int] = set()  # entries whose erasure another one says
        self._gone: set[int] = set()
        self._leaves: list[str] = []
        self._is_broken = False  # this range of a checkpoint has a finding of its own already
        self._newest = 0  # checkpoint
        self._checkpoints = self._chained(checkpoints)
        self._next = 0  # of those

    def _find(self, index: int, kind: Kind, what: str) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(index, kind, what))

    def _chained(self, stored: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Return the checkpoints to go by: those of the anchor before those of the store."""
        of_store = {checkpoint.number: checkpoint for checkpoint in stored}
        exported = self._exported(of_store)
        good: list[Checkpoint] = []
        previous, last = BEGIN, 0
        for place, (number, checkpoint) in enumerate(sorted((of_store | exported).items()), 1):
            if number != place or checkpoint.first != last + 1 or checkpoint.previous != previous:
                self._find(last + 1, Kind.UNSIGNED, f"checkpoint {number} does not follow the one before it")
            if number in exported or audit.is_signed(checkpoint, self._keys):
                good.append(checkpoint)
            else:
                known = "" if checkpoint.key in self._keys else f", but by another, {checkpoint.key}"
                self._find(checkpoint.first, Kind.FORGED, f"checkpoint {number} is not signed by the key{known}")
            previous, last, self._newest = _hash_of(checkpoint), checkpoint.last, number
        return good

    def _exported(self, of_store: Mapping[int, Checkpoint]) -> dict[int, Checkpoint]:
        """Return the anchor's checkpoints that are signed, and find where the store has others."""
        good = {}
        for number, exported in sorted(self._anchor.checkpoints.items()):
            if not audit.is_signed(exported, self._keys):
                what = f"checkpoint {number} of the anchor is not signed by the key"
                self._find(exported.first, Kind.FORGED, what)
                continue
            good[number] = exported
            if number in of_store and of_store[number] != exported:
                self._find(exported.first, Kind.REWRITTEN, f"checkpoint {number} is another one than was exported")
            elif number not in of_store and number < max(of_store, default=0):
                self._find(exported.first, Kind.UNSIGNED, f"checkpoint {number} is missing")
        return good

    def go_on(self, seq: int, hash: str) -> None:
        """Begin behind entry *seq*, which was looked at before."""
        self._seq, self._hash = seq, hash

    def add(self, entry: Entry) -> None:
        seq = entry.seq
        if seq <= self._seq:  # no number, or in no order: it stands nowhere in the chain
            self._break(self._seq + 1, Kind.UNCHAINED, f"a row that is no entry stands behind entry {self._seq}")
            return
        if seq != self._seq + 1:
            until = f" to {seq - 1}" if seq > self._seq + 2 else ""
            self._break(self._seq + 1, Kind.MISSING, f"entry {self._seq + 1}{until} is missing")
            self._skip(seq - 1)
        elif entry.prev != self._hash:
            what = f"entry {seq} does not follow entry {seq - 1}: something was put in, taken out or moved"
            self._break(seq, Kind.UNCHAINED, what)
        is_sound = _is_sound(entry)
        if not is_sound:
            self._break(seq, Kind.CHANGED, f"entry {seq} is not what was written: it does not have its hash")
        elif (exported := self._anchor.hashes.get(seq)) is not None and exported != entry.hash:
            self._break(seq, Kind.REWRITTEN, f"entry {seq} is another one than was exported")
        if entry.erased:
            self._gone.add(seq)
        if entry.action == audit.ERASE and entry.detail is not None:
            self._named.update(_seqs(entry.detail))
        self.entries += 1
        self._seq, self._hash = seq, entry.hash
        self._leaves.append(entry.hash if is_sound or is_hash(entry.hash) else BEGIN)
        self._at_checkpoint()

    def _break(self, index: int, kind: Kind, what: str) -> None:
        self._is_broken = True
        self._find(index, kind, what)

    def _skip(self, seq: int) -> None:
        """Leave the entries until *seq* out, and the checkpoints that end there."""
        while self._next < len(self._checkpoints) and self._checkpoints[self._next].last <= seq:
            self._next += 1
            self._leaves.clear()

    def _at_checkpoint(self) -> None:
        if self._next >= len(self._checkpoints) or self._checkpoints[self._next].last > self._seq:
            return
        checkpoint = self._checkpoints[self._next]
        count = checkpoint.last - checkpoint.first + 1
        is_whole = audit.root_of(self._leaves[-count:]) == checkpoint.root and checkpoint.head == self._hash
        if is_whole:
            self.sealed = checkpoint.last
        elif not self._is_broken:
            which = f"entries {checkpoint.first} to {checkpoint.last}"
            what = f"{which} are not those that checkpoint {checkpoint.number} signed"
            self._find(checkpoint.first, Kind.REWRITTEN, what)
        self._next += 1
        self._leaves.clear()
        self._is_broken = False

    def unreadable(self) -> None:
        """The row behind the last one that was added cannot be read, nor what comes behind it."""
        self._break(self._seq + 1, Kind.CHANGED, f"entry {self._seq + 1} is not what was written: it cannot be read")

    def missing(self, table: str) -> None:
        """The store has no *table*, or not as a whole."""
        self._find(1, Kind.TRUNCATED, f"the table {table} is missing: somebody has dropped or changed it")

    def end(self, head: Head) -> Sequence[Finding]:
        """Return all findings, the first entry's first; *head* is what the store says that its end is."""
        known = max([head.seq, self._anchor.last, *(each.last for each in self._checkpoints[self._next :])])
        if self._seq < known:
            who = "the anchor" if self._anchor.last == known else "a checkpoint" if head.seq < known else "the store"
            what = f"the log ends at entry {self._seq}, and {who} knows {known}"
            what += ": the end was cut off, or an older state was restored"
            self._find(self._seq + 1, Kind.TRUNCATED, what)
        elif (self._seq, self._hash) != (head.seq, head.hash):
            what = f"the store knows of entry {head.seq} as the last, and not as it is"
            self._find(head.seq, Kind.UNCHAINED, what)
        if head.checkpoint > self._newest:
            self._find(self.sealed + 1, Kind.UNSIGNED, f"checkpoint {head.checkpoint} is missing")
        if self._seq - self.sealed > MOST_UNSIGNED and not self.findings:
            self._find(self.sealed + 1, Kind.UNSIGNED, f"no checkpoint signs the entries from {self.sealed + 1} on")
        for seq in sorted(self._gone - self._named):
            self._find(seq, Kind.ERASED, f"entry {seq} was erased, and no entry says by whom")
        self.findings.sort(key=lambda finding: finding.index)
        return self.findings


def following(entries: Sequence[Entry], *, seq: int, hash: str) -> Finding | None:
    """Return what is wrong first with *entries*, which have to follow entry *seq* of that hash."""
    check = Check(())
    check.go_on(seq, hash)
    for entry in entries:
        check.add(entry)
        if check.findings:
            return check.findings[0]
    return None


def _is_sound(entry: Entry) -> bool:
    try:
        return audit.hash_of(entry) == entry.hash
    except (ValueError, TypeError, AttributeError, msgspec.MsgspecError):  # what should be hex or JSON is not
        return False


def is_hash(text: str) -> bool:
    return len(text) == len(BEGIN) and not set(text) - set("0123456789abcdef")


def _hash_of(checkpoint: Checkpoint) -> str:
    try:
        return checkpoint.hash
    except ValueError:  # its signature is none
        return ""


def _seqs(detail: str) -> Sequence[int]:
    try:
        return msgspec.json.decode(detail, type=_Erasure).seqs
    except msgspec.MsgspecError:
        return ()


class _Erasure(msgspec.Struct):
    seqs: list[int]
