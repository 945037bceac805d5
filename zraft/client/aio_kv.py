"""`client.kv` of the asyncio client: the calls of `KvClient`, to be awaited.

A test compares the two classes, so that a call that one of them has is not forgotten in the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from zraft.api import Consistency, Reply
from zraft.client.kv import (
    PutResult,
    ReadConsistency,
    ReadLevel,
    Text,
    as_bytes,
    decoded,
    no_key,
    read_level,
)
from zraft.machine.kv_codec import (
    Range,
    RangeFlag,
    Txn,
    encode_cas,
    encode_delete,
    encode_get,
    encode_put,
    encode_range,
    encode_txn,
    prefix_end,
)
from zraft.machine.kv_results import (
    CasResult,
    KeyValue,
    TxnResult,
    decode_cas_result,
    decode_delete_result,
    decode_get_result,
    decode_put_result,
    decode_range_result,
    decode_txn_result,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from zraft.client.sync import Info

    Result = TypeVar("Result")


class AsyncCaller(Protocol):
    """What sends requests: a client, or one of its sessions."""

    info: Info | None

    async def call(
        self,
        body: bytes,
        consistency: Consistency,
        *,
        timeout_s: float | None = None,
        at: str | None = None,
        max_staleness_ms: int = 0,
    ) -> Reply:
        """Send a request, wait for its end, and return the reply that says "ok"."""


class AsyncKvClient:
    """The key-value store of a cluster.

    Every call raises Unavailable or Busy when it certainly had no effect, OutcomeUnknown when a
    write may have had one, InvalidCommand and TooLargeError when it can never have one.
    """

    def __init__(self, client: AsyncCaller) -> None:
        self._client = client

    async def put(
        self, key: Text, value: Text, *, timeout: float | None = None, at: str | None = None
    ) -> PutResult:
        """Set a key; durable on a majority when this returns."""
        body = encode_put(as_bytes(key), as_bytes(value))
        revision = await self._write(body, decode_put_result, timeout, at)
        self._note_revision(revision)
        return PutResult(revision)

    async def get(
        self,
        key: Text,
        *,
        consistency: ReadConsistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
        at: str | None = None,
    ) -> bytes | None:
        """Return a key's value, None when there is no such key; see `KvClient.get`."""
        item = await self.entry(
            key, consistency=consistency, max_staleness=max_staleness, timeout=timeout, at=at
        )
        return None if item is None else item.value

    def __getitem__(self, key: Text) -> Awaitable[bytes]:
        """Return a key's value: `await client.kv["x"]`; NotFound when there is no such key."""
        return self._value(key)

    async def _value(self, key: Text) -> bytes:
        value = await self.get(key)
        if value is None:
            raise no_key(key)
        return value

    async def entry(
        self,
        key: Text,
        *,
        consistency: ReadConsistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
        at: str | None = None,
    ) -> KeyValue | None:
        """Return a key with its revisions and version, None when there is no such key."""
        body = encode_get(as_bytes(key))
        level = read_level(consistency, max_staleness)
        result = await self._read(body, decode_get_result, level, timeout, at)
        self._note_revision(result.revision)
        return result.item

    async def delete(
        self, key: Text, *, timeout: float | None = None, at: str | None = None
    ) -> bool:
        """Delete a key; return whether there was one."""
        body = encode_delete(as_bytes(key))
        result = await self._write(body, decode_delete_result, timeout, at)
        self._note_revision(result.revision)
        return result.deleted > 0

    async def cas(
        self,
        key: Text,
        *,
        expect: Text | None,
        set: Text,  # the name says what happens
        timeout: float | None = None,
        at: str | None = None,
    ) -> bool:
        """Set a key if its value is `expect` (None: if there is no such key); return if it was."""
        result = await self.compare_and_set(key, expect=expect, set=set, timeout=timeout, at=at)
        return result.succeeded

    async def compare_and_set(
        self,
        key: Text,
        *,
        expect: Text | None,
        set: Text,  # the name says what happens
        timeout: float | None = None,
        at: str | None = None,
    ) -> CasResult:
        """Do what `cas` does; return also what stood in the way."""
        expected = None if expect is None else as_bytes(expect)
        body = encode_cas(as_bytes(key), expected, as_bytes(set))
        result = await self._write(body, decode_cas_result, timeout, at)
        self._note_revision(result.revision)
        return result

    async def scan(
        self,
        prefix: Text = b"",
        *,
        limit: int | None = None,
        keys_only: bool = False,
        consistency: ReadConsistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
        at: str | None = None,
    ) -> list[KeyValue]:
        """Return the keys that start with `prefix`, in order, at most `limit` of them.

        More than fits into one answer (1,000 keys, 512 KiB) is read page by page, each as
        consistent as was asked; a write between two pages may be seen by the later one.
        """
        level = read_level(consistency, max_staleness)
        start = as_bytes(prefix)
        end = prefix_end(start)
        flags = RangeFlag.KEYS_ONLY if keys_only else RangeFlag.NONE
        found: list[KeyValue] = []
        while limit is None or len(found) < limit:
            left = 0 if limit is None else limit - len(found)
            body = encode_range(Range(start, end, left, flags))
            page = await self._read(body, decode_range_result, level, timeout, at)
            self._note_revision(page.revision)
            found += page.items
            if not page.more or not page.items:
                break
            start = page.items[-1].key + b"\x00"
        return found

    async def count(
        self,
        prefix: Text = b"",
        *,
        consistency: ReadConsistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
        at: str | None = None,
    ) -> int:
        """Return how many keys start with `prefix`."""
        start = as_bytes(prefix)
        body = encode_range(Range(start, prefix_end(start), 0, RangeFlag.COUNT_ONLY))
        level = read_level(consistency, max_staleness)
        page = await self._read(body, decode_range_result, level, timeout, at)
        self._note_revision(page.revision)
        return page.total

    async def transact(
        self, txn: Txn, *, timeout: float | None = None, at: str | None = None
    ) -> TxnResult:
        """Run a transaction: compares, then one of two branches, all at one revision."""
        result = await self._write(encode_txn(txn), decode_txn_result, timeout, at)
        self._note_revision(result.revision)
        return result

    async def _write(
        self,
        body: bytes,
        decode: Callable[[bytes], Result],
        timeout: float | None,
        at: str | None,
    ) -> Result:
        reply = await self._client.call(body, Consistency.WRITE, timeout_s=timeout, at=at)
        return decoded(decode, reply.body)

    async def _read(
        self,
        body: bytes,
        decode: Callable[[bytes], Result],
        level: ReadLevel,
        timeout: float | None,
        at: str | None,
    ) -> Result:
        reply = await self._client.call(
            body,
            level.consistency,
            timeout_s=timeout,
            at=at,
            max_staleness_ms=level.max_staleness_ms,
        )
        return decoded(decode, reply.body)

    def _note_revision(self, revision: int) -> None:
        info = self._client.info
        assert info is not None
        self._client.info = info._replace(revision=revision)
