"""The key-value store's snapshots: a frozen view that the store writes past, and how one is read.

A snapshot is one stream of MessagePack values, cut into chunks of `CHUNK_BYTES` without regard to
where a value ends: first the header, then the items in key order. A reader may be given any other
chunks.

    header   [format, revision, state_sum, keys]
    item     [key, value, create_revision, mod_revision, version, lease]

The view is frozen when it is made, at no cost. Between two chunks the store changes as it likes: it
hands the view the old value of a key the first time that key changes (`keep`), unless the key was
written out already. So a view costs memory only for what changes while it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgpack
from sortedcontainers import SortedList

from zraft.errors import DecodeError, VersionError
from zraft.machine.table import Table
from zraft.wire_entry import MAX_FRAME_BYTES, MAX_U64

FORMAT = 1
CHUNK_BYTES = 64 << 10
KEYS_AT_ONCE = 128  # looked at in one step; at most 65,535 (see `_pack_rows`)

Item = tuple[bytes, int, int, int, int, int]
"""What the store keeps of a key: value, create_revision, mod_revision, version, lease, hash."""

Row = tuple[bytes, bytes, int, int, int, int]
"""What is written of a key: itself and all of its item but the hash."""

_UNCHANGED: Item = (b"", 0, 0, 0, 0, 0)  # what no view keeps

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)


class Header(NamedTuple):
    """What a snapshot says of the whole store."""

    format: int
    revision: int
    state_sum: int
    keys: int


class FrozenView:
    """An iterator over a snapshot's chunks. Dropping it, or reading it to its end, frees it.

    Each step takes a bounded time, whatever the store did meanwhile. Where many keys had to be
    passed over, a chunk is empty: the next one is not ready yet.
    """

    def __init__(self, header: Header, items: Table[Item], keys: SortedList) -> None:
        self._items = items
        self._keys = keys
        self._kept: Table[Item | None] = Table()  # as they were; None: did not exist
        self._kept_keys = SortedList()  # of all of them: they may be gone from `keys`
        self._written = b""  # every key up to here is in a chunk; the empty key does not exist
        self._done = False
        self._buffer = bytearray(_packer.pack(header))

    def keep(self, key: bytes, old: Item | None) -> None:
        """Take note of a key's value before it changes; only the first time counts."""
        if key <= self._written or self._done:
            return
        kept = self._kept.part(key)
        if key in kept:
            return
        kept[key] = old
        self._kept_keys.add(key)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._done and len(self._buffer) < CHUNK_BYTES:
            self._fill()
        if len(self._buffer) < CHUNK_BYTES and not self._done:
            return b""  # chunks are cut at the same bytes everywhere: no shorter one instead
        if not self._buffer:
            raise StopIteration
        chunk = bytes(self._buffer[:CHUNK_BYTES])
        del self._buffer[:CHUNK_BYTES]
        return chunk

    def _fill(self) -> None:
        """Pack the next items: enough for a chunk, or those of as many keys as one step may see."""
        keys, kept = self._next_keys()
        items = self._items
        rows: list[Row] = []
        missing_bytes = CHUNK_BYTES - len(self._buffer)
        for key in keys:
            self._written = key
            item = kept.get(key, _UNCHANGED)
            if item is _UNCHANGED:
                item = items[key]
            if item is not None:
                value, created, modified, version, lease, _ = item
                rows.append((key, value, created, modified, version, lease))
                missing_bytes -= len(key) + len(value)
                if missing_bytes <= 0:
                    break
        else:
            self._done = len(keys) < KEYS_AT_ONCE
        self._buffer += _pack_rows(rows)
        for key in kept:
            if key <= self._written:
                del self._kept[key]
                self._kept_keys.remove(key)

    def _next_keys(self) -> tuple[list[bytes], dict[bytes, Item | None]]:
        """Return the next keys in order, and what was kept of them.

        They are fewer than `KEYS_AT_ONCE` only if no more are left.
        """
        after = self._written or None, None, (False, True)
        keys = list(islice(self._keys.irange(*after), KEYS_AT_ONCE))
        if not self._kept_keys:
            return keys, {}
        changed = list(islice(self._kept_keys.irange(*after), KEYS_AT_ONCE))
        keys = sorted({*keys, *changed})[:KEYS_AT_ONCE]
        last = keys[-1]
        return keys, {key: self._kept[key] for key in changed if key <= last}


def _pack_rows(rows: list[Row]) -> memoryview:
    """Return the bytes of rows one after the other: one call packs all, as an array of them."""
    array_head = 1 if len(rows) < 16 else 3
    return memoryview(_packer.pack(rows))[array_head:]


def read_snapshot(chunks: Iterable[bytes]) -> Iterator[Any]:
    """Yield the header and then every item, as checked tuples; memory stays bounded.

    Raises:
        DecodeError: the bytes are not a snapshot, or one with too few or too many items.
        VersionError: a newer program wrote it.
    """
    values = _values(chunks)
    header = _header(next(values, None))
    yield header
    count, last = 0, b""
    for fields in values:
        if type(fields) is not list or len(fields) < 6:
            raise DecodeError("a snapshot's item is an array of six or more")
        key, value = fields[0], fields[1]
        if type(key) is not bytes or type(value) is not bytes or key <= last:
            raise DecodeError("a snapshot's keys are not in order, or not bytes")
        _naturals(fields[2:6])
        yield key, value, fields[2], fields[3], fields[4], fields[5]
        count, last = count + 1, key
    if count != header.keys:
        raise DecodeError(f"a snapshot of {header.keys} keys holds {count}")


def _values(chunks: Iterable[bytes]) -> Iterator[Any]:
    unpacker = msgpack.Unpacker(
        max_buffer_size=MAX_FRAME_BYTES, max_str_len=0, max_map_len=0, max_ext_len=0
    )
    fed = 0
    try:
        for chunk in chunks:
            for offset in range(0, len(chunk), CHUNK_BYTES):
                piece = chunk[offset : offset + CHUNK_BYTES]
                fed += len(piece)
                unpacker.feed(piece)
                yield from unpacker
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise DecodeError("a snapshot is damaged", why=type(error).__name__) from None
    if unpacker.tell() != fed:
        raise DecodeError("a snapshot ends in the middle of an item")


def _header(fields: object) -> Header:
    if type(fields) is not list or len(fields) < len(Header._fields):
        raise DecodeError("a snapshot has no header")
    _naturals(fields[: len(Header._fields)])
    if fields[0] > FORMAT:
        raise VersionError(
            f"a snapshot of format {fields[0]}", why=f"this zraft reads formats up to {FORMAT}"
        )
    return Header(*fields[: len(Header._fields)])


def _naturals(values: list[Any]) -> None:
    for value in values:
        if type(value) is not int or not 0 <= value <= MAX_U64:
            raise DecodeError("a snapshot holds something that is not a natural number")
