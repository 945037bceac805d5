"""The key-value store: revisions, transactions, pages, digest."""

from __future__ import annotations

import subprocess
import sys

import msgpack
import pytest

from tests.kv_store import Store
from zraft.machine.base import CommandError, Ctx
from zraft.machine.kv import KV
from zraft.machine.kv_codec import (
    MAX_GETS_BYTES,
    MAX_PAGE_BYTES,
    MAX_PAGE_ITEMS,
    Compare,
    Delete,
    DeleteRange,
    Get,
    Put,
    Range,
    RangeFlag,
    Relation,
    Target,
    Txn,
    encode_txn,
    prefix_end,
)
from zraft.machine.kv_results import (
    CasResult,
    DeleteResult,
    KeyValue,
    RangeResult,
    TxnResult,
)


@pytest.fixture
def store() -> Store:
    return Store()


def test_an_empty_store_has_revision_one(store: Store) -> None:
    """Revision 1 means empty; a read of it changes nothing."""
    assert store.kv.revision == 1
    assert store.get(b"x") is None
    assert store.kv.revision == 1


def test_every_put_takes_the_next_revision_and_the_log_index_plays_no_part(store: Store) -> None:
    """The revision counts changes; entries that are no commands leave gaps in the index only."""
    store.index = 1000
    assert store.put(b"x", b"1") == 2
    store.index = 5000
    assert store.put(b"x", b"2") == 3


def test_a_key_tells_when_it_was_created_and_changed_and_how_often(store: Store) -> None:
    """create_revision stays, mod_revision and version follow every put; lease is 0."""
    store.put(b"other", b"0")
    store.put(b"x", b"1")
    store.put(b"x", b"2")
    assert store.get(b"x") == KeyValue(b"x", b"2", 3, 4, 2, 0)


def test_a_put_of_the_same_value_is_a_change(store: Store) -> None:
    """It was written, so revision and version rise."""
    store.put(b"x", b"1")
    assert store.put(b"x", b"1") == 3
    item = store.get(b"x")
    assert item is not None
    assert item.version == 2


def test_a_deleted_key_starts_again_at_version_one(store: Store) -> None:
    """Versions count since the creation."""
    store.put(b"x", b"1")
    store.put(b"x", b"2")
    assert store.delete(b"x") == DeleteResult(4, 1)
    store.put(b"x", b"3")
    assert store.get(b"x") == KeyValue(b"x", b"3", 5, 5, 1, 0)


def test_a_delete_of_a_missing_key_changes_nothing(store: Store) -> None:
    """The revision stays."""
    store.put(b"x", b"1")
    assert store.delete(b"y") == DeleteResult(2, 0)


def test_cas_sets_only_what_it_expects(store: Store) -> None:
    """A failed cas changes nothing and returns what stands in its way."""
    assert store.cas(b"x", None, b"1") == CasResult(2, True, None)
    failed = store.cas(b"x", None, b"2")
    assert failed == CasResult(2, False, KeyValue(b"x", b"1", 2, 2, 1, 0))
    assert store.cas(b"x", b"0", b"2").succeeded is False
    assert store.cas(b"x", b"1", b"2") == CasResult(3, True, None)
    assert store.cas(b"gone", b"1", b"2") == CasResult(3, False, None)


def test_all_changes_of_a_transaction_share_one_revision(store: Store) -> None:
    """Two puts and a delete are one step of the store."""
    store.put(b"old", b"0")
    result = store.txn(
        Txn([], [Put(b"a", b"1"), Put(b"b", b"2"), Delete(b"old"), Get(b"a"), Get(b"old")])
    )
    a = KeyValue(b"a", b"1", 3, 3, 1, 0)
    assert result == TxnResult(3, True, [None, None, 1, a, None])


def test_a_transaction_that_only_reads_or_deletes_nothing_changes_nothing(store: Store) -> None:
    """The revision counts commands that changed something."""
    store.put(b"a", b"1")
    result = store.txn(Txn([], [Get(b"a"), Delete(b"z"), DeleteRange(b"m", b"n"), Range(b"", b"")]))
    a = KeyValue(b"a", b"1", 2, 2, 1, 0)
    assert result == TxnResult(2, True, [a, 0, 0, RangeResult(2, [a], 1, False)])


@pytest.mark.parametrize(
    ("compare", "holds"),
    [
        (Compare(Target.VALUE, Relation.EQUAL, b"x", b"m"), True),
        (Compare(Target.VALUE, Relation.NOT_EQUAL, b"x", b"m"), False),
        (Compare(Target.VALUE, Relation.LESS, b"x", b"n"), True),
        (Compare(Target.VALUE, Relation.GREATER, b"x", b"l"), True),
        (Compare(Target.VALUE, Relation.NOT_EQUAL, b"gone", b"m"), False),
        (Compare(Target.VALUE, Relation.EQUAL, b"gone", b""), False),
        (Compare(Target.VERSION, Relation.EQUAL, b"x", 2), True),
        (Compare(Target.VERSION, Relation.EQUAL, b"gone", 0), True),
        (Compare(Target.VERSION, Relation.GREATER, b"gone", 0), False),
        (Compare(Target.CREATE_REVISION, Relation.EQUAL, b"x", 2), True),
        (Compare(Target.CREATE_REVISION, Relation.LESS, b"x", 2), False),
        (Compare(Target.MOD_REVISION, Relation.EQUAL, b"x", 3), True),
        (Compare(Target.MOD_REVISION, Relation.NOT_EQUAL, b"gone", 0), False),
    ],
)
def test_compares_choose_the_branch(store: Store, compare: Compare, holds: bool) -> None:
    """Existence is version 0; of a key that does not exist no compare of the value holds."""
    store.put(b"x", b"a")
    store.put(b"x", b"m")
    result = store.txn(Txn([compare], [Put(b"yes", b"")], [Put(b"no", b"")]))
    assert result.succeeded is holds
    assert (store.get(b"yes") is not None) is holds
    assert (store.get(b"no") is not None) is not holds


def test_one_false_compare_of_several_is_enough(store: Store) -> None:
    """All compares must hold."""
    store.put(b"x", b"1")
    true = Compare(Target.VALUE, Relation.EQUAL, b"x", b"1")
    false = Compare(Target.VERSION, Relation.EQUAL, b"x", 9)
    assert store.txn(Txn([true, false], [], [])).succeeded is False
    assert store.txn(Txn([true, true], [], [])).succeeded is True


def test_a_range_of_a_prefix_is_in_order_and_has_no_more_than_its_limit(store: Store) -> None:
    """`more` and `total` tell what the limit cut off."""
    for key in (b"b/2", b"a", b"b/1", b"b/3", b"c", b"b\xff"):
        store.put(key, key)
    result = store.range(Range(b"b/", prefix_end(b"b/"), 2))
    assert [item.key for item in result.items] == [b"b/1", b"b/2"]
    assert (result.total, result.more) == (3, True)
    rest = store.range(Range(b"b/2\x00", prefix_end(b"b/"), 2))
    assert [item.key for item in rest.items] == [b"b/3"]
    assert (rest.total, rest.more) == (1, False)


def test_a_range_can_be_all_keys_one_key_or_empty(store: Store) -> None:
    """An empty end is no end, nil is the one key, and a reversed range holds nothing."""
    for key in (b"a", b"\xff\xff", b"c"):
        store.put(key, b"")
    assert [item.key for item in store.range(Range(b"", b"")).items] == [b"a", b"c", b"\xff\xff"]
    assert [item.key for item in store.range(Range(b"c", None)).items] == [b"c"]
    assert store.range(Range(b"d", None)).items == []
    assert store.range(Range(b"z", b"a")) == RangeResult(4, [], 0, False)


def test_keys_only_and_count_only(store: Store) -> None:
    """Keys come without values, counts without items."""
    store.put(b"a", b"1")
    store.put(b"b", b"2")
    keys = store.range(Range(b"", b"", 0, RangeFlag.KEYS_ONLY))
    assert [(item.key, item.value) for item in keys.items] == [(b"a", b""), (b"b", b"")]
    count = store.range(Range(b"", b"", 0, RangeFlag.COUNT_ONLY))
    assert (count.items, count.total) == ([], 2)


def test_the_end_of_a_prefix_of_last_bytes_is_open() -> None:
    """0xff has no successor: the byte before it counts up, and if there is none, no end."""
    assert prefix_end(b"a") == b"b"
    assert prefix_end(b"a\xff\xff") == b"b"
    assert prefix_end(b"\xff") == b""
    assert prefix_end(b"") == b""


def test_a_page_is_bounded_and_always_moves_on(store: Store) -> None:
    """A page ends after so many items or bytes, but holds at least one item."""
    for number in range(MAX_PAGE_ITEMS + 5):
        store.put(b"k%05d" % number, b"")
    page = store.range(Range(b"", b"", 1 << 60))
    assert len(page.items) == MAX_PAGE_ITEMS
    assert page.more
    store.put(b"a1", bytes(MAX_PAGE_BYTES))
    store.put(b"a2", bytes(MAX_PAGE_BYTES))
    page = store.range(Range(b"", b""))
    assert [item.key for item in page.items] == [b"a1"]
    assert page.more


def test_the_answer_of_a_transaction_is_bounded(store: Store) -> None:
    """Pages of one transaction share the bytes; too many bytes to get are refused up front."""
    for number in range(4):
        store.put(b"k%d" % number, bytes(MAX_PAGE_BYTES))
    result = store.txn(Txn([], [Range(b"", b"")] * 3))
    pages = [page for page in result.responses if isinstance(page, RangeResult)]
    assert [len(page.items) for page in pages] == [1, 0, 0]
    assert all(page.more for page in pages)
    gets = MAX_GETS_BYTES // MAX_PAGE_BYTES + 1
    with pytest.raises(CommandError, match="gets of a transaction"):
        store.txn(Txn([], [Put(b"new", b""), *[Get(b"k1")] * gets]))
    assert store.get(b"new") is None


def test_a_query_names_a_revision_and_only_the_newest_is_kept(store: Store) -> None:
    """0 and the present revision are answered, any other is refused until there is a history."""
    store.put(b"x", b"1")
    assert store.query(msgpack.packb([5, b"x", 2])) == store.query(msgpack.packb([5, b"x", 0]))
    with pytest.raises(CommandError, match="revision 1 is not kept"):
        store.query(msgpack.packb([5, b"x", 1]))


# Digest


def test_the_digest_is_one_of_the_state(store: Store) -> None:
    """Every change moves it; a command without effect and a refused one do not."""
    store.put(b"x", b"1")
    first = store.kv.digest()
    store.delete(b"y")
    store.cas(b"x", b"9", b"2")
    with pytest.raises(CommandError):
        store.apply(b"garbage")
    assert store.kv.digest() == first
    store.put(b"x", b"1")
    second = store.kv.digest()
    store.delete(b"x")
    assert len({first, second, store.kv.digest(), KV().digest()}) == 4


def test_two_keys_that_swap_their_values_have_another_sum() -> None:
    """The sum is free of order, not of the pairing of keys and values."""
    digests = set()
    for first, second in ((b"1", b"2"), (b"2", b"1")):
        kv = KV()
        kv.apply(Ctx(1, 1, 0), encode_txn(Txn([], [Put(b"a", first), Put(b"b", second)])))
        digests.add(kv.digest())
    assert len(digests) == 2


SCRIPT = """
import random
from zraft.machine.base import CommandError, Ctx
from zraft.machine.kv import KV
from zraft.machine.kv_codec import *
kv, rng = KV(), random.Random(7)
for index in range(1, 2000):
    key, value = b"k%d" % rng.randrange(50), b"v%d" % rng.randrange(9)
    commands = [encode_put(key, value), encode_delete(key), encode_cas(key, value, b"c"),
                encode_txn(Txn([], [DeleteRange(key, b""), Range(b"", b"")])), b"poison"]
    try:
        kv.apply(Ctx(index, 1, index), rng.choice(commands))
    except CommandError:
        pass
print(kv.revision, kv.digest(), b"".join(kv.snapshot()).hex())
"""


def test_the_digest_is_the_same_in_every_process() -> None:
    """Nothing in the store depends on PYTHONHASHSEED."""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(outputs) == 1
    assert int(next(iter(outputs)).split()[0]) > 100
