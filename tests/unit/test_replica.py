"""The replica: what becomes of entries, the running digest, snapshots in sections."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from zraft.api import Code
from zraft.core.model import Command, EntryType
from zraft.errors import DecodeError, VersionError
from zraft.machine.base import Ctx
from zraft.machine.kv import KV
from zraft.machine.kv_codec import encode_delete, encode_get, encode_put
from zraft.machine.replica import FORMAT, MACHINE, SESSIONS, Outcome, Replica
from zraft.wire_entry import EntryCodec, pack

CODEC = EntryCodec()
HEAD = (SESSIONS, pack([FORMAT, 0]))
TABLE = (SESSIONS, pack([0, 1, 0]))  # of no sessions


class Log:
    """A replica and the entries that it is given, one after the other, in one term."""

    def __init__(self, term: int = 1) -> None:
        self.replica = Replica(KV())
        self.term = term

    def entry(self, body: bytes, kind: EntryType = EntryType.COMMAND) -> Outcome:
        """Apply the next entry, a second of log time after the last one."""
        index, _, log_time_ms = self.replica.applied
        payload = CODEC.encode(Command(body, kind), term=self.term, log_time_ms=log_time_ms + 1000)
        return self.replica.apply(index + 1, payload)

    def put(self, key: bytes, value: bytes) -> Outcome:
        """Apply a put."""
        return self.entry(encode_put(key, value))


def test_an_entry_has_an_outcome_and_moves_the_place() -> None:
    """Results and refusals alike; the place is that of the entry."""
    log = Log(term=3)
    assert log.put(b"x", b"1") == Outcome(EntryType.COMMAND, 3, Code.OK, b"\x91\x02", 1)
    refused = log.entry(b"poison")
    assert refused.code == Code.INVALID
    assert b"not a command" in refused.result
    assert log.replica.applied == Ctx(2, 3, 2000)
    code, answer = log.replica.query(encode_get(b"x"))
    assert (code, b"1" in answer) == (Code.OK, True)
    assert log.replica.query(b"poison")[0] == Code.INVALID


def test_entries_that_are_not_for_the_machine_do_not_reach_it() -> None:
    """Of the replica only the place and the digest move."""
    log = Log()
    state, seen = log.replica.machine.digest(), {log.replica.digest()}
    for index, kind in enumerate((EntryType.NOOP, EntryType.BARRIER), 1):
        assert log.entry(b"", kind) == Outcome(kind, 1, Code.OK, b"", index)
        seen.add(log.replica.digest())
    assert log.replica.machine.digest() == state
    assert log.replica.applied.index == 2
    assert len(seen) == 3


def test_the_digest_covers_the_state_and_every_result() -> None:
    """It moves with every command, also with one that changes nothing and one that is refused."""
    log = Log()
    seen = {log.replica.digest()}
    for body in (
        encode_put(b"x", b"1"),
        encode_put(b"x", b"1"),
        encode_delete(b"y"),
        encode_delete(b"x"),
        b"garbage",
    ):
        log.entry(body)
        seen.add(log.replica.digest())
    assert len(seen) == 6


class Counter:
    """A machine without a hash; what it answers depends on more than it keeps."""

    def __init__(self, offset: int = 0) -> None:
        self.count = offset

    def apply(self, ctx: Ctx, command: bytes) -> bytes:
        del ctx, command
        self.count += 1
        return b"%d" % self.count

    def query(self, ctx: Ctx, request: bytes) -> bytes:
        del ctx, request
        return b"%d" % self.count

    def snapshot(self) -> list[bytes]:
        return [b"%d" % self.count]

    def restore(self, chunks: object) -> None:
        assert isinstance(chunks, Iterable)
        self.count = int(b"".join(chunks))

    def digest(self) -> None:
        return None


def test_replicas_that_answered_differently_differ_for_good() -> None:
    """Also with a machine that has no hash, and whatever comes later."""
    first, second = Replica(Counter()), Replica(Counter(1))
    assert first.digest() == second.digest(), "nothing was answered yet"
    for index in range(1, 50):
        payload = CODEC.encode(Command(b""), term=1, log_time_ms=0)
        first.apply(index, payload)
        second.apply(index, payload)
        if index == 1:
            second.machine = Counter(1)  # from now on both answer the same
        assert first.digest() != second.digest(), index


def test_a_snapshot_restores_place_digest_and_state() -> None:
    """What was restored goes on like the original; its sections come in their order."""
    log, copy = Log(), Log()
    for number in range(100):
        log.put(b"key%d" % (number % 7), b"v%d" % number)
    copy.put(b"leftover", b"")
    at, digest = log.replica.applied, log.replica.digest()
    sections = log.replica.snapshot()
    log.put(b"later", b"1")
    parts = list(sections)
    assert [name for name, _ in parts] == [SESSIONS, SESSIONS, MACHINE]
    copy.replica.restore(at, parts)
    assert (copy.replica.applied, copy.replica.digest()) == (at, digest)
    assert copy.put(b"later", b"1").code == Code.OK
    assert copy.replica.digest() == log.replica.digest()


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([], DecodeError),
        ([(MACHINE, b"")], DecodeError),
        ([(SESSIONS, b"")], DecodeError),
        ([(SESSIONS, pack([FORMAT]))], DecodeError),
        ([(SESSIONS, pack([FORMAT, -1]))], DecodeError),
        ([(SESSIONS, pack([FORMAT + 1, 0]))], VersionError),
        ([HEAD], DecodeError),
        ([HEAD, (SESSIONS, pack([1, 1, 0]))], DecodeError),
        ([HEAD, (SESSIONS, pack([0, 1, 0])), (SESSIONS, pack([[1, 1, 1, 1]]))], DecodeError),
        ([HEAD, TABLE, (SESSIONS, pack([[1, 1, 1, 1, []]]))], DecodeError),
        ([HEAD, TABLE, (SESSIONS, pack([[1, 1, 1, 1, [[1, 1, 99, b""]]]]))], DecodeError),
        ([HEAD, TABLE], DecodeError),
        ([HEAD, ("strange", b"")], DecodeError),
        ([HEAD, TABLE, (MACHINE, b"damaged")], DecodeError),
    ],
)
def test_what_is_no_snapshot_changes_nothing(
    parts: list[tuple[str, bytes]], error: type[Exception]
) -> None:
    """Cut, damaged, of a newer program: refused, and the replica is as before."""
    log = Log()
    log.put(b"x", b"1")
    before = log.replica.applied, log.replica.digest()
    with pytest.raises(error):
        log.replica.restore(Ctx(9, 1, 0), parts)
    assert (log.replica.applied, log.replica.digest()) == before
