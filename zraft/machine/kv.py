"""The built-in state machine: an ordered key-value store with revisions.

`revision` is the store's own counter: 1 when empty, one more per command that changes something,
never the log index. All changes of one transaction share one revision; a cas that fails and a
delete of a missing key change nothing. Commands are decoded and checked in full before anything
changes.

The digest is a sum over the present state, in any order, so it is kept up to date at the cost of
the changed keys alone. Its terms are made of CRC-32s, mixed into 64 bits: a hash against mistakes,
not against malice, and equal for every Python and every PYTHONHASHSEED. That answers were the same
is watched by `Replica`, for every machine.

State lives in memory. A `FrozenView` (kv_snapshot) gets the old value of a key the first time it
changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from zlib import crc32

from sortedcontainers import SortedList

from zraft.errors import DecodeError
from zraft.machine.base import CommandError, Ctx
from zraft.machine.kv_codec import (
    DELETE,
    DELETE_RANGE,
    GET,
    ITEM_OVERHEAD_BYTES,
    MAX_GETS_BYTES,
    MAX_PAGE_BYTES,
    MAX_PAGE_ITEMS,
    PUT,
    RANGE,
    Cas,
    Compare,
    Delete,
    DeleteRange,
    Get,
    Operation,
    Put,
    Range,
    RangeFlag,
    Relation,
    Target,
    Txn,
    decode_command,
    decode_query,
)
from zraft.machine.kv_results import encode_result
from zraft.machine.kv_snapshot import FORMAT, FrozenView, Header, Item, read_snapshot
from zraft.machine.table import Table

_MASK = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads small numbers over 64 bits


def item_hash(key: bytes, value: bytes, mod_revision: int) -> int:
    """Return the 64-bit summand of one key.

    The CRC of the value starts from that of the key: two keys that swap their values differ.
    """
    high = crc32(key)
    return (high << 32 | crc32(value, high)) ^ (mod_revision * _ODD & _MASK)


class KV:
    """The store. Implements `StateMachine`."""

    def __init__(self) -> None:
        self._items: Table[Item] = Table()
        self._keys = SortedList()
        self._revision = 1
        self._sum = 0
        self._views: list[weakref.ref[FrozenView]] = []

    @property
    def revision(self) -> int:
        """The number of commands that changed something, plus one."""
        return self._revision

    def __len__(self) -> int:
        return len(self._items)

    # The contract of a state machine

    def apply(self, ctx: Ctx, command: bytes) -> bytes:
        """Run one command; see `StateMachine.apply`."""
        del ctx  # nothing in this store depends on where in the log a command stands
        decoded = decode_command(command)
        if isinstance(decoded, Put):
            self._put(decoded.key, decoded.value, self._revision + 1)
            self._revision += 1
            return encode_result((self._revision,))
        return self._run(decoded)

    def query(self, ctx: Ctx, request: bytes) -> bytes:
        """Answer one query; see `StateMachine.query`."""
        query, revision = decode_query(request)
        if revision not in {0, self._revision}:
            raise CommandError(f"revision {revision} is not kept; the newest is {self._revision}")
        if isinstance(query, Get):
            return encode_result((self._revision, self._item(query.key)))
        page, _ = self._page(query, MAX_PAGE_BYTES)
        return encode_result((self._revision, *page))

    def snapshot(self) -> Iterable[bytes]:
        """Return the state as it is now, in chunks; apply may run between two of them."""
        header = Header(FORMAT, self._revision, self._sum, len(self._items))
        view = FrozenView(header, self._items, self._keys)
        self._views.append(weakref.ref(view, self._views.remove))
        return view

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace the state by a snapshot's; DecodeError leaves the old one as it was."""
        values = read_snapshot(chunks)
        header: Header = next(values)
        items: Table[Item] = Table()
        keys: list[bytes] = []
        total = 0
        for key, value, create, mod, version, lease in values:
            hashed = item_hash(key, value, mod)
            items[key] = (value, create, mod, version, lease, hashed)
            keys.append(key)
            total += hashed
        if total & _MASK != header.state_sum:
            raise DecodeError("a snapshot's items do not have the hash of its header")
        # Views hold on to the old containers, which change no more.
        self._items, self._keys, self._views = items, SortedList(keys), []
        self._revision, self._sum = header.revision, header.state_sum

    def digest(self) -> int:
        """Return the hash of the present state."""
        return (self._revision * _ODD + self._sum) & _MASK

    # Commands

    def _run(self, command: Delete | Cas | Txn) -> bytes:
        """Run a command that is not a put; all it changes gets the next revision."""
        following = self._revision + 1
        match command:
            case Delete():
                deleted = self._delete(command.key)
                self._revision += deleted
                return encode_result((self._revision, deleted))
            case Cas():
                old = self._items.get(command.key)
                succeeded = (None if old is None else old[0]) == command.expect
                if succeeded:
                    self._put(command.key, command.value, following)
                    self._revision = following
                found = None if succeeded else self._item(command.key)
                return encode_result((self._revision, succeeded, found))
            case Txn():
                succeeded = all(self._holds(compare) for compare in command.compares)
                branch = command.then if succeeded else command.otherwise
                self._check_answer(branch)
                changed, responses = self._operate(branch, following)
                self._revision += changed
                return encode_result((self._revision, succeeded, responses))

    def _operate(
        self, branch: Sequence[Operation], revision: int
    ) -> tuple[bool, list[tuple[object, ...]]]:
        """Run a branch in its order; return whether it changed anything, and its responses."""
        changed = False
        left_bytes = MAX_PAGE_BYTES
        responses: list[tuple[object, ...]] = []
        for operation in branch:
            match operation:
                case Put():
                    self._put(operation.key, operation.value, revision)
                    changed = True
                    responses.append((PUT,))
                case Delete():
                    deleted = self._delete(operation.key)
                    changed |= deleted > 0
                    responses.append((DELETE, deleted))
                case DeleteRange():
                    keys = list(self._range(operation.start, operation.end))
                    for key in keys:
                        self._delete(key)
                    changed |= bool(keys)
                    responses.append((DELETE_RANGE, len(keys)))
                case Get():
                    responses.append((GET, self._item(operation.key)))
                case Range():
                    page, used_bytes = self._page(operation, left_bytes)
                    left_bytes -= used_bytes
                    responses.append((RANGE, *page))
        return changed, responses

    def _holds(self, compare: Compare) -> bool:
        item = self._items.get(compare.key)
        found: bytes | int
        match compare.target:
            case Target.VALUE:
                if item is None:
                    return False
                found = item[0]
            case Target.VERSION:
                found = item[3] if item else 0
            case Target.CREATE_REVISION:
                found = item[1] if item else 0
            case Target.MOD_REVISION:
                found = item[2] if item else 0
        operand = compare.operand
        match compare.relation:
            case Relation.EQUAL:
                return found == operand
            case Relation.NOT_EQUAL:
                return found != operand
            case Relation.LESS:
                return found < operand  # type: ignore[operator]  # decoding paired the types
            case Relation.GREATER:
                return found > operand  # type: ignore[operator]  # decoding paired the types

    # Keys

    def _put(self, key: bytes, value: bytes, revision: int) -> None:
        items = self._items.part(key)
        old = items.get(key)
        if self._views:
            self._keep(key, old)
        hashed = item_hash(key, value, revision)
        if old is None:
            self._keys.add(key)
            items[key] = (value, revision, revision, 1, 0, hashed)
            self._sum = (self._sum + hashed) & _MASK
        else:
            items[key] = (value, old[1], revision, old[3] + 1, 0, hashed)
            self._sum = (self._sum + hashed - old[5]) & _MASK

    def _delete(self, key: bytes) -> int:
        """Delete a key; return the number of keys that were deleted."""
        items = self._items.part(key)
        old = items.get(key)
        if old is None:
            return 0
        if self._views:
            self._keep(key, old)
        del items[key]
        self._keys.remove(key)
        self._sum = (self._sum - old[5]) & _MASK
        return 1

    def _keep(self, key: bytes, old: Item | None) -> None:
        for reference in self._views:
            view = reference()
            if view is not None:
                view.keep(key, old)

    def _item(self, key: bytes) -> tuple[object, ...] | None:
        item = self._items.get(key)
        return None if item is None else (key, *item[:5])

    def _range(self, start: bytes, end: bytes | None) -> Iterator[bytes]:
        """Return the keys of a range, in order; the store must not change meanwhile."""
        if end is None:
            return iter((start,) if start in self._items else ())
        keys: Iterator[bytes] = self._keys.irange(start, end or None, (True, False))
        return keys

    def _count(self, start: bytes, end: bytes | None) -> int:
        if end is None:
            return int(start in self._items)
        first: int = self._keys.bisect_left(start)
        stop: int = self._keys.bisect_left(end) if end else len(self._keys)
        return max(0, stop - first)

    def _page(
        self, query: Range, left_bytes: int
    ) -> tuple[tuple[list[tuple[object, ...]], int, bool], int]:
        """Return (items, count, more) of a range, and the bytes that the items take.

        A page holds at least one item while any bytes are left: a reader makes progress.
        """
        count = self._count(query.start, query.end)
        items: list[tuple[object, ...]] = []
        used_bytes = 0
        if not query.flags & RangeFlag.COUNT_ONLY:
            most = min(query.limit or MAX_PAGE_ITEMS, MAX_PAGE_ITEMS)
            keys_only = bool(query.flags & RangeFlag.KEYS_ONLY)
            for key in self._range(query.start, query.end):
                if len(items) >= most or used_bytes >= left_bytes:
                    break
                item = self._items[key]
                value = b"" if keys_only else item[0]
                items.append((key, value, *item[1:5]))
                used_bytes += len(key) + len(value) + ITEM_OVERHEAD_BYTES
        return (items, count, count > len(items)), used_bytes

    def _check_answer(self, branch: Sequence[Operation]) -> None:
        """Refuse a branch whose gets would not fit into an answer, before anything changes."""
        puts = {part.key: len(part.value) for part in branch if isinstance(part, Put)}
        total_bytes = 0
        for part in branch:
            if isinstance(part, Get):
                item = self._items.get(part.key)
                total_bytes += max(puts.get(part.key, 0), 0 if item is None else len(item[0]))
        if total_bytes > MAX_GETS_BYTES:
            raise CommandError(f"the gets of a transaction have more than {MAX_GETS_BYTES} bytes")
