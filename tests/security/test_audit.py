"""The audit log's chain: whatever is done to it is found, at its entry, by name."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import pytest

from greenroom import errors
from greenroom.security import audit, audit_checks
from greenroom.security.audit import BEGIN, Checkpoint, Entry
from greenroom.security.audit_checks import Anchor, Check, Head, Kind

SIGNER = audit.Signer(b"s" * 32)
STRANGER = audit.Signer(b"x" * 32)
SEALED_EACH = 16
COUNT = 100

replace = msgspec.structs.replace


@dataclass
class Log:
    """What a store holds, and what somebody with the database can do to it."""

    entries: list[Entry] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    head: Head = field(default_factory=Head)

    def append(self, action: str = "key.create", actor: str = "ann") -> None:
        seq, prev = self.head.seq + 1, self.head.hash
        detail = audit.canonical({"n": seq}).decode()
        entry = audit.chained(
            Entry(
                seq, seq, "t", actor, "::1", action, f"key:{seq}", "done", "r", detail, audit.new_salts(), "", prev, ""
            )
        )
        self.entries.append(entry)
        self.head = replace(self.head, seq=seq, hash=entry.hash)

    def seal(self, signer: audit.Signer = SIGNER) -> None:
        head = self.head
        new = [entry for entry in self.entries if entry.seq > head.sealed]
        made = signer.checkpoint(new, number=head.checkpoint + 1, previous=head.checkpoint_hash, now_us=head.seq)
        self.checkpoints.append(made)
        self.head = replace(head, sealed=made.last, checkpoint=made.number, checkpoint_hash=made.hash)

    def export(self) -> Anchor:
        lines = [audit.line_of(entry) for entry in self.entries]
        return audit_checks.anchor_of([*lines, *(audit.line_of_checkpoint(each) for each in self.checkpoints)])

    def findings(self, anchor: Anchor | None = None) -> Sequence[audit_checks.Finding]:
        check = Check([SIGNER.public], checkpoints=self.checkpoints, anchor=anchor)
        for entry in sorted(self.entries, key=lambda entry: entry.seq):
            check.add(entry)
        return check.end(self.head)

    def rechain(self, index: int) -> None:
        """Make the chain whole again from place *index* on, as one who knows the format does; no signature, though."""
        prev = self.entries[index - 1].hash if index else BEGIN
        for place in range(index, len(self.entries)):
            entry = audit.chained(replace(self.entries[place], seq=place + 1, prev=prev))
            self.entries[place], prev = entry, entry.hash
        self.head = replace(self.head, seq=len(self.entries), hash=prev)


def written(count: int = COUNT, *, sealed_each: int = SEALED_EACH) -> Log:
    log = Log()
    for number in range(1, count + 1):
        log.append()
        if number % sealed_each == 0:
            log.seal()
    return log


def test_what_was_written_has_nothing_to_find() -> None:
    log = written()
    assert log.findings() == []
    assert log.findings(log.export()) == []


def _edit(log: Log, at: int) -> int:
    log.entries[at] = replace(log.entries[at], actor="mallory")
    return at + 1


def _edit_hidden(log: Log, at: int) -> int:
    """The outcome, with the hash made anew; the next one does not follow it."""
    log.entries[at] = audit.chained(replace(log.entries[at], outcome="refused"))
    return at + 2


def _insert(log: Log, at: int) -> int:
    log.entries.insert(at, replace(log.entries[at], actor="mallory"))
    log.entries[at + 1 :] = [replace(entry, seq=entry.seq + 1) for entry in log.entries[at + 1 :]]
    log.head = replace(log.head, seq=log.head.seq + 1)
    return at + 1


def _delete(log: Log, at: int) -> int:
    del log.entries[at]
    return at + 1


def _swap(log: Log, at: int) -> int:
    """Two neighbours change their numbers."""
    one, other = log.entries[at], log.entries[at + 1]
    log.entries[at], log.entries[at + 1] = replace(other, seq=one.seq), replace(one, seq=other.seq)
    return at + 1


def _reorder(log: Log, at: int) -> int:
    """The contents of two entries that are far apart, each with the other's hash."""
    other = (at + 40) % (COUNT - 1)
    first, second = sorted((at, other))
    one, two = log.entries[first], log.entries[second]
    log.entries[first], log.entries[second] = replace(two, seq=one.seq), replace(one, seq=two.seq)
    return first + 1


def _truncate(log: Log, at: int) -> int:
    """With all that tells of it: the end of the chain, and the checkpoints."""
    del log.entries[at:]
    log.checkpoints = [each for each in log.checkpoints if each.last <= at]
    last = log.checkpoints[-1] if log.checkpoints else None
    log.head = Head(at, log.entries[-1].hash if at else BEGIN, *_sealed(last))
    return at + 1


def _rewrite(log: Log, at: int) -> int:
    """Everything from there on, with a whole chain and checkpoints of its own."""
    log.entries[at] = replace(log.entries[at], actor="mallory")
    log.rechain(at)
    log.checkpoints = [each for each in log.checkpoints if each.last <= at]
    last = log.checkpoints[-1] if log.checkpoints else None
    log.head = Head(log.head.seq, log.head.hash, *_sealed(last))
    return at + 1


def _sealed(last: Checkpoint | None) -> tuple[int, int, str]:
    return (0, 0, BEGIN) if last is None else (last.last, last.number, last.hash)


PLACES = sorted(random.Random(55).sample(range(COUNT - 1), 20))
SEEN_WITHOUT_ANCHOR = {_edit: Kind.CHANGED, _delete: Kind.MISSING, _swap: Kind.UNCHAINED, _reorder: Kind.UNCHAINED}


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("tamper", [_edit, _edit_hidden, _insert, _delete, _swap, _reorder, _truncate, _rewrite])
def test_each_way_to_tamper_is_found_at_its_entry(tamper: Callable[[Log, int], int], at: int) -> None:
    log = written()
    anchor = log.export()
    index = tamper(log, at)
    findings = log.findings(anchor)
    assert findings
    # One who makes hashes anew is found by what was exported, at the very entry; else where the chain breaks.
    assert findings[0].index == (index - 1 if tamper is _edit_hidden else index)
    if tamper not in (_truncate, _rewrite):
        # The last entry of a checkpoint, with its hash made anew, is one of those that the checkpoint signed.
        is_last = tamper is _edit_hidden and (at + 1) % SEALED_EACH == 0
        assert log.findings()[0].index in ((at + 2 - SEALED_EACH,) if is_last else (index, at + 1))
    if tamper in SEEN_WITHOUT_ANCHOR:
        assert SEEN_WITHOUT_ANCHOR[tamper] in {each.kind for each in log.findings()}


@pytest.mark.parametrize("at", PLACES)
def test_a_whole_chain_written_anew_is_found_by_the_signatures_alone(at: int) -> None:
    log = written()
    log.entries[at] = replace(log.entries[at], actor="mallory")
    log.rechain(at)
    findings = log.findings()
    if at < COUNT // SEALED_EACH * SEALED_EACH:
        assert findings[0].kind is Kind.REWRITTEN
        assert findings[0].index <= at + 1 < findings[0].index + SEALED_EACH
    else:  # newer than the last signature
        assert findings == []


def test_checkpoints_of_another_key_are_forged() -> None:
    log = written(40)
    log.checkpoints.clear()
    log.head = Head(log.head.seq, log.head.hash)
    log.seal(STRANGER)
    assert [(each.index, each.kind) for each in log.findings()] == [(1, Kind.FORGED)]


def test_a_signature_is_of_the_whole_checkpoint() -> None:
    log = written(20)
    (checkpoint,) = log.checkpoints
    for name in ("number", "time", "first", "last", "root", "head", "previous"):
        value = getattr(checkpoint, name)
        other = value + 1 if isinstance(value, int) else "f" * 64
        assert not audit.is_signed(replace(checkpoint, **{name: other}), {SIGNER.id: SIGNER.public}), name
    assert audit.is_signed(checkpoint, {SIGNER.id: SIGNER.public})


def test_a_checkpoint_taken_out_of_the_middle_is_found() -> None:
    log = written()
    del log.checkpoints[2]
    assert Kind.UNSIGNED in {each.kind for each in log.findings()}


def test_a_checkpoint_taken_off_the_end_is_found() -> None:
    log = written()
    del log.checkpoints[-1]
    assert [each.kind for each in log.findings()] == [Kind.UNSIGNED]


def test_thousands_of_entries_that_nothing_signs_are_found() -> None:
    log = Log()
    for _ in range(audit_checks.MOST_UNSIGNED + 1):
        log.append()
    assert [(each.index, each.kind) for each in log.findings()] == [(1, Kind.UNSIGNED)]


def test_an_older_state_is_told_by_the_anchor_alone() -> None:
    log = written(40)
    older = Log(list(log.entries), list(log.checkpoints), log.head)
    for _ in range(5):
        log.append()
    anchor = log.export()
    assert older.findings() == []
    assert [(each.index, each.kind) for each in older.findings(anchor)] == [(41, Kind.TRUNCATED)]
    older.append("backup.restore")  # and the log goes on from there
    older.append()
    assert older.findings(anchor)[0].index == 41


def test_an_anchor_of_checkpoints_alone_does_for_what_they_sign() -> None:
    log = written(64)
    anchor = Anchor(checkpoints={each.number: each for each in log.checkpoints})
    _rewrite(log, 20)
    assert [(each.index, each.kind) for each in log.findings(anchor)] == [
        (17, Kind.REWRITTEN),
        (33, Kind.REWRITTEN),
        (49, Kind.REWRITTEN),
    ]


def test_an_anchor_that_nobody_signed_is_no_witness() -> None:
    log = written(64)
    forged = [replace(each, root=BEGIN) for each in log.checkpoints]
    findings = log.findings(Anchor(checkpoints={each.number: each for each in forged}))
    assert {each.kind for each in findings} == {Kind.FORGED}


def test_torn_and_repeated_lines_of_an_export_do_no_harm() -> None:
    log = written(20)
    lines = [audit.line_of(entry) for entry in log.entries] * 2
    anchor = audit_checks.anchor_of([*lines, b"", lines[3][:40], b"{}", b"\xff"])
    assert (len(anchor.hashes), anchor.unread) == (20, 3)
    assert log.findings(anchor) == []


def test_an_exported_entry_is_one_line_to_every_reader() -> None:
    entry = audit.chained(replace(written(1).entries[0], detail='{"name":"a\\nb\x85c\u2028d\u2029e"}'))
    line = audit.line_of(entry)
    assert len(line.decode().splitlines()) == 1
    assert audit.parse(line) == entry


def test_an_exported_entry_is_the_entry() -> None:
    for entry in written(3).entries:
        assert audit.parse(audit.line_of(entry)) == entry
        gone = audit.erased(entry)
        assert audit.parse(audit.line_of(gone)) == gone


def _erasing(log: Log, seqs: list[int]) -> None:
    log.append(audit.ERASE)
    detail = audit.canonical({"seqs": seqs}).decode()
    log.entries[-1] = audit.chained(replace(log.entries[-1], detail=detail))
    log.head = replace(log.head, hash=log.entries[-1].hash)


def test_what_is_erased_keeps_the_chain_and_the_signatures() -> None:
    log = written(20)
    anchor = log.export()
    log.entries[4] = audit.erased(log.entries[4])
    _erasing(log, [5])
    assert log.findings(anchor) == []
    assert not any(part in str(log.entries[4]) for part in ("ann", "::1", "key:5", '{"n":5}'))


def test_what_is_erased_without_an_entry_is_found() -> None:
    log = written(20)
    log.entries[4] = audit.erased(log.entries[4])
    assert [(each.index, each.kind) for each in log.findings()] == [(5, Kind.ERASED)]


@pytest.mark.parametrize("name", audit.ERASABLE)
def test_a_field_that_is_only_emptied_is_a_change(name: str) -> None:
    log = written(20)
    log.entries[4] = replace(log.entries[4], **{name: None})
    assert [(each.index, each.kind) for each in log.findings()] == [(5, Kind.CHANGED)]


def test_what_was_erased_cannot_be_filled_in_with_something_else() -> None:
    log = written(20)
    gone = audit.erased(log.entries[4])
    log.entries[4] = replace(gone, actor="mallory")
    assert log.findings()[0] == audit_checks.Finding(5, Kind.CHANGED, log.findings()[0].what)


def test_the_hash_is_over_the_kind_the_length_the_one_before_and_canonical_json() -> None:
    entry = written(2).entries[1]
    body = msgspec.json.encode(
        {
            **audit.commitments(entry),
            "action": "key.create",
            "outcome": "done",
            "prev": entry.prev,
            "request_id": "r",
            "seq": 2,
            "tenant": "t",
            "time": 2,
            "v": 1,
        },
        order="sorted",
    )
    whole = b"\0" + len(body).to_bytes(8, "big") + bytes.fromhex(entry.prev) + body
    assert hashlib.sha256(whole).hexdigest() == entry.hash
    actor = hashlib.sha256(f"{entry.salts[:32]}actor\0ann".encode()).hexdigest()
    assert audit.commitments(entry)["actor"] == actor


def test_the_root_is_that_of_rfc_9162() -> None:
    leaves = [hashlib.sha256(bytes([0, number])).digest() for number in range(7)]

    def root(part: Sequence[bytes]) -> bytes:
        if len(part) == 1:
            return part[0]
        split = 1 << (len(part) - 1).bit_length() - 1
        return hashlib.sha256(b"\1" + root(part[:split]) + root(part[split:])).digest()

    for count in range(1, 8):
        assert audit.root_of([leaf.hex() for leaf in leaves[:count]]) == root(leaves[:count]).hex()


def test_canonical_json_is_that_of_rfc_8785() -> None:
    value = audit.plain({"z": '\0\x1f"\\/\n\u2028é😀', "a": [None, True, 2**53, 2**60], "\x7f": {"b": 1, "a": ""}})
    assert audit.canonical(value) == (
        b'{"\x7f":{"a":"","b":1},"a":[null,true,9007199254740992,"1152921504606846976"],'
        b'"z":"\xef\xbf\xbd\\u001f\\"\\\\/\\n\xe2\x80\xa8\xc3\xa9\xf0\x9f\x98\x80"}'
    ).replace(b'{"\x7f":{"a":"","b":1},"a"', b'{"a"').replace(b'],"z"', b'],"z"').replace(
        b'\x80"}', b'\x80","\x7f":{"a":"","b":1}}'
    )
    assert audit.text("\ud800a") == "?a"
    with pytest.raises(TypeError, match="float"):
        audit.plain({"a": 1.5})


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(errors.AuditBroken, match="64 hex digits"):
        audit.public_key(text)
    assert audit.public_key(f" {SIGNER.public.hex()}\n") == SIGNER.public
