"""Snapshots of the key-value store: frozen, in steps of bounded time; and its table."""

from __future__ import annotations

import msgpack
import pytest

from tests.kv_store import Store
from zraft.errors import DecodeError, VersionError
from zraft.machine.kv import KV
from zraft.machine.kv_codec import Range
from zraft.machine.kv_snapshot import CHUNK_BYTES, KEYS_AT_ONCE, FrozenView
from zraft.machine.table import PARTS, Table


@pytest.fixture
def store() -> Store:
    return Store()


def test_a_snapshot_restores_state_revision_and_digest(store: Store) -> None:
    """What was restored answers and goes on like the original."""
    for number in range(3000):
        store.put(b"key%d" % (number % 700), b"v%d" % number)
    store.delete(b"key3")
    copy = Store()
    copy.put(b"leftover", b"")
    copy.kv.restore(store.kv.snapshot())
    copy.index = store.index
    assert copy.kv.digest() == store.kv.digest()
    assert copy.range(Range(b"", b"")) == store.range(Range(b"", b""))
    assert copy.put(b"key3", b"again") == store.put(b"key3", b"again")
    assert copy.kv.digest() == store.kv.digest()


def test_a_snapshot_comes_in_bounded_chunks_also_of_one_large_value(store: Store) -> None:
    """A value larger than a chunk is cut, and put together again."""
    store.put(b"large", bytes(range(256)) * 3000)
    store.put(b"small", b"1")
    chunks = list(store.kv.snapshot())
    assert len(chunks) == 12
    assert all(len(chunk) == CHUNK_BYTES for chunk in chunks[:-1])
    copy = KV()
    copy.restore([b"".join(chunks)])
    assert copy.digest() == store.kv.digest()


def test_a_snapshot_is_frozen_while_the_store_goes_on(store: Store) -> None:
    """Puts, deletes, new keys and re-created ones between two chunks are not in it."""
    for number in range(2000):
        store.put(b"key%05d" % number, b"v" * 100)
    before = store.kv.digest()
    view = store.kv.snapshot()
    assert isinstance(view, FrozenView)
    chunks = []
    for turn, chunk in enumerate(view):
        chunks.append(chunk)
        store.put(b"key%05d" % (1999 - turn), b"changed")
        store.delete(b"key%05d" % (1500 - turn))
        store.put(b"key%05d" % (1500 - turn), b"again")
        store.delete(b"key%05d" % (600 + turn))
        store.put(b"key%05d!" % (turn * 300), b"new")
        store.put(b"key%05d" % turn, b"already written")
    assert len(chunks) > 3
    assert not view._kept, "what was written out already is kept for nothing"
    assert store.kv.digest() != before
    copy = KV()
    copy.restore(chunks)
    assert copy.digest() == before


def test_a_snapshots_bytes_do_not_tell_what_was_written_meanwhile(store: Store) -> None:
    """Chunks are cut at the same places: equal states give equal files on all nodes."""
    for number in range(5000):
        store.put(b"key%05d" % number, b"v" * 50)
    undisturbed = [chunk for chunk in store.kv.snapshot() if chunk]
    assert len(undisturbed) > 3
    chunks = []
    for turn, chunk in enumerate(store.kv.snapshot()):
        if chunk:
            chunks.append(chunk)
        for number in range(turn * 100, turn * 100 + 50):
            store.delete(b"key%05d" % (4999 - number))
            store.put(b"key%05d!" % (2000 + number), b"new")
    assert chunks == undisturbed


def test_a_step_of_a_snapshot_looks_at_a_bounded_number_of_keys(store: Store) -> None:
    """Many keys that are newer than the view stand between two old ones: empty chunks meanwhile."""
    store.put(b"a", b"1")
    store.put(b"z", b"2")
    digest = store.kv.digest()
    view = store.kv.snapshot()
    new_keys = 5 * KEYS_AT_ONCE
    for number in range(new_keys):
        store.put(b"m%05d" % number, b"new")
    chunks = [*view]
    assert [bool(chunk) for chunk in chunks] == [False] * 5 + [True]
    copy = KV()
    copy.restore(chunks)
    assert copy.digest() == digest


def test_a_table_grows_part_by_part() -> None:
    """No part is much larger than another, and each has its own share of low bits of the hash."""
    table: Table[int] = Table()
    for number in range(50_000):
        table[b"key%d" % number] = number
    assert len(table) == 50_000
    assert table.get(b"key49999") == table[b"key49999"] == 49_999
    assert table.get(b"key50000") is None
    sizes = [len(part) for part in table._parts]
    assert max(sizes) < 2 * 50_000 / PARTS
    assert min(sizes) > 0.5 * 50_000 / PARTS
    slots = {hash(key) & 0xFF for key in table._parts[0]}
    assert len(slots) > 50
    del table[b"key7"]
    assert b"key7" not in table
    assert len(table) == 49_999


def test_two_views_are_frozen_at_their_own_times(store: Store) -> None:
    """Views do not share what they keep."""
    store.put(b"x", b"1")
    first, first_digest = store.kv.snapshot(), store.kv.digest()
    store.put(b"x", b"2")
    second, second_digest = store.kv.snapshot(), store.kv.digest()
    store.delete(b"x")
    for view, digest in ((second, second_digest), (first, first_digest)):
        copy = KV()
        copy.restore(view)
        assert copy.digest() == digest


def test_a_dropped_view_costs_nothing_more(store: Store) -> None:
    """The store holds a view weakly: nobody has to close it."""
    store.put(b"x", b"1")
    view = store.kv.snapshot()
    assert len(store.kv._views) == 1
    del view
    assert store.kv._views == []
    store.put(b"x", b"2")


def test_a_view_outlives_a_restore(store: Store) -> None:
    """Restoring replaces the state; a view of the old one stays whole."""
    store.put(b"x", b"1")
    view, digest = store.kv.snapshot(), store.kv.digest()
    store.kv.restore(KV().snapshot())
    store.put(b"x", b"2")
    copy = KV()
    copy.restore(view)
    assert copy.digest() == digest


def test_a_damaged_snapshot_changes_nothing(store: Store) -> None:
    """Cut anywhere, or with a flipped bit: DecodeError, and the state is as before."""
    other = Store()
    for number in range(20):
        other.put(b"key%d" % number, b"value")
    whole = b"".join(other.kv.snapshot())
    store.put(b"x", b"1")
    digest = store.kv.digest()
    for cut in range(len(whole)):
        with pytest.raises(DecodeError):
            store.kv.restore([whole[:cut]])
    for offset in range(40, len(whole)):
        flipped = bytearray(whole)
        flipped[offset] ^= 1
        try:
            store.kv.restore([bytes(flipped)])
        except DecodeError:
            assert store.kv.digest() == digest
            continue
        # Only create_revision, version and lease are outside the hash of an item.
        assert store.kv.digest() == other.kv.digest()
        store = Store()
        store.put(b"x", b"1")


def test_a_snapshot_of_a_newer_format_is_refused() -> None:
    """A newer program wrote it: VersionError, not a guess."""
    with pytest.raises(VersionError):
        KV().restore([msgpack.packb([2, 1, 0, 0, 0])])
