"""Every value that comes from outside, spoiled at every place: a refusal, never another error.

An example of each kind of bytes is taken apart, and each value in it is replaced by one of another
type or size, left out, or doubled. Whoever reads the result says what it is, or raises the error
that its docstring names; anything else would end the node, or the client, that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from tests.server_bench import ServerBench
from zraft import wire
from zraft.api import Code, Consistency, Flag, Reply, Request
from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    DigestPurpose,
    InstallSnapshot,
    InstallSnapshotResponse,
    Message,
    ReadIndex,
    ReadIndexResponse,
    RequestVote,
    RequestVoteResponse,
    StateDigest,
    TimeoutNow,
)
from zraft.core.model import Command, Configuration, Entries, MemberInfo
from zraft.errors import DecodeError, VersionError
from zraft.machine import kv_codec, kv_results
from zraft.machine.base import CommandError, Ctx
from zraft.machine.kv import KV
from zraft.machine.session_ops import (
    Fate,
    Resolution,
    SessionOp,
    Terms,
    decode_op,
    decode_opened,
    decode_resolution,
    encode_op,
    encode_open,
    encode_resolution,
)
from zraft.machine.sessions import Kept, Session, Sessions
from zraft.wire_entry import EntryCodec, decode_configuration, decode_entry, pack, unpack

STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    7,
    (1 << 64) - 1,
    1.0,
    "text",
    b"",
    b"\xff" * 9,
    [],
    [[]],
    [1, b"x"],
    {},
]


def spoiled(value: Any) -> Iterator[Any]:
    """Yield the value with something else at one place, for every place and every strange value."""
    yield from STRANGE
    if type(value) is not list:
        return
    for at, part in enumerate(value):
        yield value[:at] + value[at + 1 :]
        yield [*value[:at], part, *value[at:]]
        for other in spoiled(part):
            yield [*value[:at], other, *value[at + 1 :]]


ITEM = [b"k", b"v", 1, 2, 3, 0]
CONFIGURATION = EntryCodec().encode_configuration(
    Configuration(
        (1, 2),
        5,
        outgoing=(2,),
        learners=(3,),
        joining=(3,),
        members=(MemberInfo(1, "n1", "ipc:a"), MemberInfo(2, "n2", "ipc:b")),
    )
)
TXN = kv_codec.Txn(
    [kv_codec.Compare(kv_codec.Target.VALUE, kv_codec.Relation.EQUAL, b"k", b"v")],
    [kv_codec.Put(b"k", b"w"), kv_codec.Get(b"k"), kv_codec.Range(b"a", b"z")],
    [kv_codec.Delete(b"k"), kv_codec.DeleteRange(b"a", b"z")],
)
COMMANDS = [
    kv_codec.encode_put(b"k", b"v"),
    kv_codec.encode_delete(b"k"),
    kv_codec.encode_cas(b"k", b"v", b"w"),
    kv_codec.encode_txn(TXN),
]
QUERIES = [kv_codec.encode_get(b"k"), kv_codec.encode_range(kv_codec.Range(b"a", b"z"))]
SESSION_OPS = [encode_op(op) for op in SessionOp] + [encode_open(Terms())]


def entry(body: bytes = b"body") -> bytes:
    """Return an entry as the log and messages hold it."""
    return EntryCodec().encode(Command(body), term=2, log_time_ms=5)


def frame(message: Message) -> bytes:
    """Return the frame of a message."""
    return wire.encode_message(
        message, lane=0, cluster=b"cluster8", incarnation=1, epoch=1, seq=1, heard=0
    )


MESSAGES: list[Message] = [
    AppendEntries(1, 2, 3, 4, 2, 4, 1, Entries(5, [2], [entry()])),
    AppendEntriesResponse(1, 2, 3, True, 5, 0, 0, 1),
    RequestVote(1, 2, 3, True, 4, 5, 2, False),
    RequestVoteResponse(1, 2, 3, True, 4, True),
    InstallSnapshot(1, 2, 3, 5, 2, 100, 7, 0, 8, b"chunk"),
    InstallSnapshotResponse(1, 2, 3, 5, 2, 9, False),
    TimeoutNow(1, 2, 3),
    ReadIndex(1, 2, 3, 4),
    ReadIndexResponse(1, 2, 3, 4, 5),
    StateDigest(1, 2, 3, DigestPurpose.PAGE, 5, 6, 4, [9, 6]),
]


def read_message(data: bytes) -> object:
    """Return the message in a frame."""
    return wire.decode_message(*wire.decode_header(data))


def frozen_sessions() -> list[bytes]:
    """Return the chunks of a table with one session, in which one result is kept."""
    table = Sessions()
    table.run(3, 0, (0, 0, encode_open(Terms())))
    begun = table.begin(3, 1, 1, 0)
    assert isinstance(begun, Session)
    table.keep(begun, 1, Kept(4, Code.OK, b"result"))
    return list(table.freeze())


HEAD, RECORDS = frozen_sessions()


def restored(data: bytes) -> object:
    """Return a store that was restored from the values in an array, which follow each other."""
    values = unpack(data)
    parts = values if type(values) is list else [values]
    store = KV()
    store.restore([b"".join(map(pack, parts))])
    return store


def frozen_store() -> bytes:
    """Return the values of a snapshot of two keys, as an array."""
    store = KV()
    for index, key in enumerate((b"a", b"b"), 1):
        store.apply(Ctx(index, 1, 0), kv_codec.encode_put(key, b"v"))
    unpacker = msgpack.Unpacker()
    for chunk in store.snapshot():
        unpacker.feed(chunk)
    return pack(list(unpacker))


Read = Callable[[bytes], object]
READERS: dict[str, tuple[Read, list[bytes]]] = {
    "message": (read_message, [frame(message) for message in MESSAGES]),
    "requests": (
        wire.decode_requests,
        [wire.encode_requests(b"cluster8", [Request(1, 2, 3, 1, 5000, 0, 0, b"body", 9)])],
    ),
    "replies": (
        wire.decode_replies,
        [wire.encode_replies(b"cluster8", [Reply(1, 0, 2, 3, 4, 5, b"body", 6, 7)])],
    ),
    "entry": (decode_entry, [entry()]),
    "configuration": (decode_configuration, [CONFIGURATION]),
    "head of sessions": (lambda data: Sessions.thaw([data, RECORDS]), [HEAD]),
    "sessions": (lambda data: Sessions.thaw([HEAD, data]), [RECORDS]),
    "store": (restored, [frozen_store()]),
    "session op": (decode_op, SESSION_OPS),
    "resolution": (decode_resolution, [encode_resolution(Resolution(Fate.APPLIED, 3, 0, b"r"))]),
    "opened": (decode_opened, [pack([1000])]),
    "command": (kv_codec.decode_command, COMMANDS),
    "query": (kv_codec.decode_query, QUERIES),
    "put result": (kv_results.decode_put_result, [pack([5])]),
    "delete result": (kv_results.decode_delete_result, [pack([5, 1])]),
    "cas result": (kv_results.decode_cas_result, [pack([5, False, ITEM]), pack([5, True, None])]),
    "get result": (kv_results.decode_get_result, [pack([5, ITEM])]),
    "range result": (kv_results.decode_range_result, [pack([5, [ITEM], 1, False])]),
    "txn result": (
        kv_results.decode_txn_result,
        [pack([5, True, [[kv_codec.PUT], [kv_codec.DELETE, 1], [kv_codec.GET, ITEM]]])],
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_a_spoiled_value_is_refused_or_read_and_nothing_else(name: str) -> None:
    """Whatever stands at whatever place, only the errors that are documented come."""
    read, examples = READERS[name]
    refused = 0
    for example in examples:
        read(example)  # it is sound, or spoiling it would prove nothing
        for value in spoiled(msgpack.unpackb(example, strict_map_key=False)):
            try:
                read(pack(value))
            except (DecodeError, VersionError, CommandError):
                refused += 1
    assert refused > 10 * len(examples)


# What a server is sent, whole: its answer says what is wrong with it, and it serves on.

NUMBERS = (0, 1, 3, (1 << 63) + 1, (1 << 64) - 1)
BODIES = [*COMMANDS, *QUERIES, *SESSION_OPS, b"", b"\xc1"]
FLAGS = (Flag.NONE, Flag.SESSION, Flag.BARRIER, Flag.SESSION | Flag.BARRIER, 1 << 63)
CONSISTENCIES = (*Consistency, 4, (1 << 64) - 1)


def odd_requests(session: int) -> Iterator[Request]:
    """Yield requests that no client of ours would send, with the ids 1000, 1001, …"""
    bodies = [pack(value) for body in SESSION_OPS for value in spoiled(unpack(body))]
    bodies += [pack(value) for body in (COMMANDS[0], QUERIES[0]) for value in spoiled(unpack(body))]
    plain = Request(0, 0, 0, 0, 5000, Consistency.WRITE, Flag.NONE, b"")
    rows = [
        plain._replace(flags=flags, consistency=consistency, body=body)
        for body in BODIES
        for flags in FLAGS
        for consistency in CONSISTENCIES
    ]
    rows += [plain._replace(flags=flags, body=body) for body in bodies for flags in FLAGS]
    rows += [
        plain._replace(
            session=named, sequence=sequence, ack_below=ack_below, flags=flags, body=body
        )
        for named in (*NUMBERS, session)
        for sequence in NUMBERS
        for ack_below in NUMBERS
        for flags, body in ((Flag.NONE, COMMANDS[0]), *((Flag.SESSION, b) for b in SESSION_OPS))
    ]
    for number, row in enumerate(rows, 1000):
        yield row._replace(request_id=number)


@pytest.mark.parametrize("asks_leader", [True, False])
def test_a_server_answers_whatever_request_there_is_and_serves_on(asks_leader: bool) -> None:
    """Each has one answer, from the leader and through a follower, and the states stay equal."""
    bench = ServerBench(3)
    bench.run_for(1000)
    opened = bench.request(bench.leader(), encode_op(SessionOp.OPEN), flags=Flag.SESSION)
    bench.settle()
    requests = list(odd_requests(bench.only_answer(opened).index))
    for request in requests:
        node = bench.leader() if asks_leader else bench.follower()
        bench.servers[node].on_requests(b"client", [request], now_ms=bench.now_ms)
        bench.settle()
    bench.run_for(6000)
    codes = {bench.only_answer(request.request_id).code for request in requests}
    assert {Code.OK, Code.INVALID, Code.SESSION_EXPIRED} <= codes
    last = bench.request(bench.leader(), kv_codec.encode_put(b"k", b"last"))
    bench.run_for(1000)
    assert bench.only_answer(last).code == Code.OK
    assert len({server.replica.digest() for server in bench.servers.values()}) == 1
