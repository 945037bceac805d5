"""`client.kv`: the key-value store as Python calls. It turns calls into requests, and back.

Texts are encoded as UTF-8; answers are bytes. `timeout` is in seconds and covers all retries; None
takes the client's. `at` names the only node to ask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from zraft.api import Consistency, Reply
from zraft.errors import ControlError, DecodeError, NotFound
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
    from collections.abc import Callable
    from typing import TypeVar

    from zraft.client.sync import Info

    Result = TypeVar("Result")

Text = str | bytes
ReadConsistency = Literal["linearizable", "lease", "stale"]
LEVELS = {
    "linearizable": Consistency.LINEARIZABLE,
    "lease": Consistency.LEASE,
    "stale": Consistency.STALE,
}
MAX_STALENESS_S = 86_400


class Caller(Protocol):
    """What sends requests: a client, or one of its sessions."""

    info: Info | None

    def call(
        self,
        body: bytes,
        consistency: Consistency,
        *,
        timeout_s: float | None = None,
        at: str | None = None,
        max_staleness_ms: int = 0,
    ) -> Reply:
        """Send a request, wait for its end, and return the reply that says "ok"."""


class PutResult(NamedTuple):
    """A put is applied; `revision` is the store's, and the key's mod_revision."""

    revision: int


def as_bytes(text: Text) -> bytes:
    """Return bytes as they are and a str in UTF-8; TypeError for anything else."""
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise TypeError(f"keys and values are str or bytes, not {type(text).__name__}")


class ReadLevel(NamedTuple):
    """What a read may see: see `KvClient.get`."""

    consistency: Consistency
    max_staleness_ms: int = 0


def read_level(name: str, max_staleness: float | None = None) -> ReadLevel:
    """Return what a read may see; ControlError for an unknown name or an impossible bound."""
    if name not in LEVELS:
        raise ControlError(
            f'no consistency "{name}"',
            why=f"a read is {', '.join(LEVELS)}",
            try_="consistency='linearizable'",
        )
    if max_staleness is None:
        return ReadLevel(LEVELS[name])
    if name != "stale" or not 0 < max_staleness <= MAX_STALENESS_S:
        raise ControlError(
            f"max_staleness={max_staleness:g} is impossible",
            why=f"it bounds a stale read, in seconds, above 0 and up to {MAX_STALENESS_S}",
            try_="consistency='stale', max_staleness=2.0",
        )
    return ReadLevel(LEVELS[name], max(1, round(1000 * max_staleness)))


def decoded(decode: Callable[[bytes], Result], body: bytes) -> Result:
    """Return an answer's value; DecodeError with a hint when it is not one of a store."""
    try:
        return decode(body)
    except DecodeError as error:
        raise DecodeError(
            "the answer is not one of a key-value store",
            why=error.what,
            try_="does the cluster run the built-in state machine?  zraft cluster status",
        ) from error


def no_key(key: Text) -> NotFound:
    """Return the error for a key that does not exist."""
    name = key if isinstance(key, str) else key.decode(errors="backslashreplace")
    return NotFound(f'no key "{name}"', why="it was never put, or was deleted")


class KvClient:
    """The key-value store of a cluster.

    Every call raises Unavailable or Busy when it certainly had no effect, OutcomeUnknown when a
    write may have had one, InvalidCommand and TooLargeError when it can never have one.
    """

    def __init__(self, client: Caller) -> None:
        self._client = client

    def put(
        self, key: Text, value: Text, *, timeout: float | None = None, at: str | None = None
    ) -> PutResult:
        """Set a key; durable on a majority when this returns."""
        body = encode_put(as_bytes(key), as_bytes(value))
        revision = self._write(body, decode_put_result, timeout, at)
        self._note_revision(revision)
        return PutResult(revision)

    def get(
        self,
        key: Text,
        *,
        consistency: ReadConsistency = "linearizable",
        max_staleness: float | None = None,
        timeout: float | None = None,
        at: str | None = None,
    ) -> bytes | None:
        """Return a key's value, None when there is no such key.

        Args:
            consistency: `linearizable` sees every write that was acknowledged before the call;
                `lease` does, too, and is faster, as long as the nodes' clocks are sound (the
                cluster must allow it: `reads.lease`); `stale` is what one node has now.
            max_staleness: of a stale read, in seconds: refuse what may be older (Unavailable).
                `client.info` tells how old it was.
        """
        item = self.entry(
            key, consistency=consistency, max_staleness=max_staleness, timeout=timeout, at=at
        )
        return None if item is None else item.value

    def __getitem__(self, key: Text) -> bytes:
        value = self.get(key)
        if value is None:
            raise no_key(key)
        return value

    def entry(
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
        result = self._read(body, decode_get_result, level, timeout, at)
        self._note_revision(result.revision)
        return result.item

    def delete(self, key: Text, *, timeout: float | None = None, at: str | None = None) -> bool:
        """Delete a key; return whether there was one."""
        body = encode_delete(as_bytes(key))
        result = self._write(body, decode_delete_result, timeout, at)
        self._note_revision(result.revision)
        return result.deleted > 0

    def cas(
        self,
        key: Text,
        *,
        expect: Text | None,
        set: Text,  # the name says what happens
        timeout: float | None = None,
        at: str | None = None,
    ) -> bool:
        """Set a key if its value is `expect` (None: if there is no such key); return if it was."""
        return self.compare_and_set(key, expect=expect, set=set, timeout=timeout, at=at).succeeded

    def compare_and_set(
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
        result = self._write(body, decode_cas_result, timeout, at)
        self._note_revision(result.revision)
        return result

    def scan(
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
            page = self._read(body, decode_range_result, level, timeout, at)
            self._note_revision(page.revision)
            found += page.items
            if not page.more or not page.items:
                break
            start = page.items[-1].key + b"\x00"
        return found

    def count(
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
        page = self._read(body, decode_range_result, level, timeout, at)
        self._note_revision(page.revision)
        return page.total

    def transact(
        self, txn: Txn, *, timeout: float | None = None, at: str | None = None
    ) -> TxnResult:
        """Run a transaction: compares, then one of two branches, all at one revision."""
        result = self._write(encode_txn(txn), decode_txn_result, timeout, at)
        self._note_revision(result.revision)
        return result

    def _write(
        self,
        body: bytes,
        decode: Callable[[bytes], Result],
        timeout: float | None,
        at: str | None,
    ) -> Result:
        reply = self._client.call(body, Consistency.WRITE, timeout_s=timeout, at=at)
        return decoded(decode, reply.body)

    def _read(
        self,
        body: bytes,
        decode: Callable[[bytes], Result],
        level: ReadLevel,
        timeout: float | None,
        at: str | None,
    ) -> Result:
        reply = self._client.call(
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
