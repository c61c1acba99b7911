"""The cryptography of the vault: what opens where, and nowhere else."""

from __future__ import annotations

import os

import hypothesis
import pytest
from hypothesis import strategies as st

from greenroom.security import vault
from greenroom.security.vault import DataKey, IndexKey, KeyEncryptionKey, Unopened

ID, SECRET = bytes(range(8)), bytes(range(32))
Place = tuple[str, str, str, tuple[str, ...]]  # tenant, table, column and row
PLACES = st.tuples(st.text(), st.text(), st.text(), st.lists(st.text(), max_size=3).map(tuple))


def key(tenant: str = "acme", *, id: bytes = ID, secret: bytes = SECRET) -> DataKey:
    return DataKey(id, tenant, secret)


def test_what_was_sealed_opens_in_its_place() -> None:
    sealed = key().seal(b'"hello"', "task", "input", ("t-1",))
    assert vault.is_sealed(sealed)
    assert vault.key_id(sealed) == ID
    assert len(sealed) == len(b'"hello"') + vault.OVERHEAD_BYTES
    assert key().open(sealed, "task", "input", ("t-1",)) == b'"hello"'


@pytest.mark.parametrize(
    ("tenant", "table", "column", "row", "id"),
    [
        ("other", "task", "input", ("t-1",), ID),
        ("acme", "session", "input", ("t-1",), ID),
        ("acme", "task", "output", ("t-1",), ID),
        ("acme", "task", "input", ("t-2",), ID),
        ("acme", "task", "input", ("t", "-1"), ID),
        ("acme", "task", "input", (), ID),
        ("acme", "task", "input", ("t-1",), bytes(8)),
    ],
)
def test_in_another_place_it_does_not(tenant: str, table: str, column: str, row: tuple[str, ...], id: bytes) -> None:
    sealed = key().seal(b'"hello"', "task", "input", ("t-1",))
    with pytest.raises(Unopened):
        key(tenant, id=id).open(sealed, table, column, row)


def test_each_bit_of_it_counts() -> None:
    sealed = key().seal(b"1", "task", "input", ("t-1",))
    for bit in range(8 * vault.HEAD_BYTES, 8 * len(sealed)):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Unopened):
            key().open(bytes(changed), "task", "input", ("t-1",))


@pytest.mark.parametrize("length", range(vault.OVERHEAD_BYTES))
def test_what_is_cut_off_does_not_open(length: int) -> None:
    with pytest.raises(Unopened):
        key().open(key().seal(b"", "task", "input", ("t-1",))[:length], "task", "input", ("t-1",))


def test_the_same_is_never_sealed_to_the_same() -> None:
    assert len({key().seal(b"1", "task", "input", ("t-1",)) for _ in range(1000)}) == 1000


@hypothesis.given(PLACES, PLACES)
def test_no_two_places_have_the_same_associated_data(one: Place, other: Place) -> None:
    assert (_associated(*one) == _associated(*other)) == (one == other)


@hypothesis.given(st.lists(st.binary(), max_size=4), st.lists(st.binary(), max_size=4))
def test_joined_parts_are_those_parts_and_no_others(one: list[bytes], other: list[bytes]) -> None:
    assert (vault.joined(one) == vault.joined(other)) == (one == other)


@hypothesis.given(st.text(max_size=6), st.integers(0, 6), st.integers(0, 6))
def test_where_a_text_is_split_counts(text: str, one: int, other: int) -> None:
    first, second = (text[:one], text[one:]), (text[:other], text[other:])
    assert (_associated("", "", "", first) == _associated("", "", "", second)) == (first == second)
    assert (_associated(*first, "", ()) == _associated(*second, "", ())) == (first == second)


def _associated(tenant: str, table: str, column: str, row: tuple[str, ...]) -> bytes:
    # Lone surrogates are no text that a store takes.
    tenant, table, column = (each.encode(errors="replace").decode() for each in (tenant, table, column))
    place = vault.DataKey(ID, tenant, bytes(vault.KEY_BYTES)).place(table, column, row)
    parts = (tenant.encode(), table.encode(), vault.joined([part.encode() for part in row]), column.encode())
    assert place == vault.joined((vault.VERSION, *parts, ID))  # what was stored by another release opens, too
    return place


def test_a_wrapped_key_opens_for_its_tenant_purpose_and_id_with_its_key_alone() -> None:
    kek = KeyEncryptionKey(SECRET)
    wrapped = kek.wrap(SECRET[::-1], ID, "acme", vault.SEAL)
    assert kek.unwrap(wrapped, ID, "acme", vault.SEAL) == SECRET[::-1]
    assert SECRET[::-1] not in wrapped
    for id, tenant, purpose in ((bytes(8), "acme", vault.SEAL), (ID, "b", vault.SEAL), (ID, "acme", vault.INDEX)):
        with pytest.raises(Unopened):
            kek.unwrap(wrapped, id, tenant, purpose)
    with pytest.raises(Unopened):
        KeyEncryptionKey(os.urandom(32)).unwrap(wrapped, ID, "acme", vault.SEAL)


def test_a_record_is_no_wrapped_key_and_a_wrapped_key_is_no_record() -> None:
    kek = KeyEncryptionKey(SECRET)
    assert kek.verify(kek.sign(b"sealed")) == b"sealed"
    with pytest.raises(Unopened):
        kek.verify(kek.wrap(SECRET, ID, "acme", vault.SEAL))
    with pytest.raises(Unopened):
        kek.unwrap(kek.sign(SECRET), ID, "acme", vault.SEAL)
    for changed in (b"", b"sealed", kek.sign(b"sealed")[:-1]):
        with pytest.raises(Unopened):
            kek.verify(changed)


def test_the_id_of_a_key_tells_it_from_others_and_is_no_part_of_it() -> None:
    kek = KeyEncryptionKey(SECRET)
    assert kek.id == KeyEncryptionKey(bytearray(SECRET)).id
    assert kek.id != KeyEncryptionKey(SECRET[::-1]).id
    assert kek.id not in SECRET.hex()


def test_hashes_are_keyed_by_tenant_and_purpose() -> None:
    index = IndexKey(ID, "acme", SECRET)
    assert index.digest(b"cache", b"1") == IndexKey(ID, "acme", SECRET).digest(b"cache", b"1")
    others = (
        index.digest(b"fingerprint", b"1"),
        index.digest(b"cache", b"2"),
        index.digest(b"cach", b"e1"),
        IndexKey(ID, "acme", SECRET[::-1]).digest(b"cache", b"1"),
    )
    assert index.digest(b"cache", b"1") not in others


def test_a_wiped_secret_is_zero() -> None:
    secret = vault.new_secret()
    assert len(secret) == vault.KEY_BYTES
    assert any(secret)
    vault.wipe(secret)
    assert secret == bytes(vault.KEY_BYTES)
