"""The store's codec: everything that fits is kept, everything else is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from zraft.errors import DecodeError, InvalidCommand, TooLargeError
from zraft.machine.base import CommandError, Ctx
from zraft.machine.kv import KV
from zraft.machine.kv_codec import (
    MAX_COMPARES,
    MAX_KEY_BYTES,
    MAX_OPERATIONS,
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
    encode_cas,
    encode_delete,
    encode_get,
    encode_put,
    encode_range,
    encode_txn,
)
from zraft.machine.kv_results import (
    decode_cas_result,
    decode_delete_result,
    decode_get_result,
    decode_put_result,
    decode_range_result,
    decode_txn_result,
)
from zraft.wire import MAX_REQUEST_BYTES

OPERATIONS: list[Operation] = [
    Put(b"a", b"\x00"),
    Delete(b"b"),
    Get(b"c"),
    DeleteRange(b"d", b"e"),
    DeleteRange(b"f", None),
    Range(b"", b"", 10, RangeFlag.KEYS_ONLY | RangeFlag.COUNT_ONLY),
    Range(b"g", None),
]
TXN = Txn(
    [
        Compare(Target.VALUE, Relation.EQUAL, b"k", b"v"),
        Compare(Target.VERSION, Relation.GREATER, b"k", 1 << 63),
    ],
    OPERATIONS,
    list(reversed(OPERATIONS)),
)


def test_commands_survive_the_codec() -> None:
    """What is decoded is what was encoded."""
    assert decode_command(encode_put(b"k", b"")) == Put(b"k", b"")
    assert decode_command(encode_delete(b"k")) == Delete(b"k")
    assert decode_command(encode_cas(b"k", None, b"v")) == Cas(b"k", None, b"v")
    assert decode_command(encode_cas(b"k", b"", b"v")) == Cas(b"k", b"", b"v")
    assert decode_command(encode_txn(TXN)) == TXN


def test_queries_survive_the_codec() -> None:
    """The revision they ask for is 0: the newest."""
    assert decode_query(encode_get(b"k")) == (Get(b"k"), 0)
    query = Range(b"a", b"b", 7, RangeFlag.KEYS_ONLY)
    assert decode_query(encode_range(query)) == (query, 0)


def test_the_formats_of_version_one_stay() -> None:
    """Published bytes: a change of these is a change of the format."""
    assert msgpack.unpackb(encode_put(b"k", b"v")) == [1, b"k", b"v"]
    assert msgpack.unpackb(encode_delete(b"k")) == [2, b"k"]
    assert msgpack.unpackb(encode_cas(b"k", None, b"v")) == [3, b"k", None, b"v"]
    assert msgpack.unpackb(encode_get(b"k")) == [5, b"k", 0]
    assert msgpack.unpackb(encode_range(Range(b"a", b"b", 3))) == [7, b"a", b"b", 3, 0, 0]
    txn = Txn([Compare(Target.VERSION, Relation.EQUAL, b"k", 0)], [Put(b"k", b"v")], [Get(b"k")])
    assert msgpack.unpackb(encode_txn(txn)) == [
        4,
        [[2, 1, b"k", 0]],
        [[1, b"k", b"v"]],
        [[5, b"k"]],
    ]


def longer(fields: Any) -> Any:
    """Return the array with two more fields, as a newer program may write it."""
    return [*fields, b"later", 7]


def test_longer_arrays_are_read_and_the_rest_is_ignored() -> None:
    """That is how the format grows."""
    assert decode_command(msgpack.packb(longer([1, b"k", b"v"]))) == Put(b"k", b"v")
    assert decode_command(msgpack.packb(longer([2, b"k"]))) == Delete(b"k")
    compare, operation = longer([2, 1, b"k", 0]), longer([7, b"a", None, 0, 0])
    command = longer([4, [compare], [operation], []])
    assert decode_command(msgpack.packb(command)) == Txn(
        [Compare(Target.VERSION, Relation.EQUAL, b"k", 0)], [Range(b"a", None)], []
    )
    assert decode_query(msgpack.packb(longer([5, b"k", 3]))) == (Get(b"k"), 3)


def test_the_example_in_the_protocol_is_what_is_sent() -> None:
    """docs/PROTOCOL.md: a put, its answer, a get, its answer, in hexadecimal."""
    kv, ctx = KV(), Ctx(1, 1, 0)
    put, get = encode_put(b"x", b"1"), encode_get(b"x")
    lines = [put, kv.apply(ctx, put), get, kv.query(ctx, get)]
    text = "".join(f"    {line.hex(' ')}\n" for line in lines)
    assert text in (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text()


LONG = bytes(MAX_KEY_BYTES + 1)
PUT_FIELDS = [1, b"k", b"v"]
BAD_COMMANDS: list[Any] = [
    None, 7, b"put", {}, {"put": 1}, [], [None], ["put", b"k", b"v"], [True, b"k", b"v"],
    [1.0, b"k", b"v"], [0, b"k"], [99, b"k"], [-1, b"k", b"v"], [5, b"k", 0],
    [1], [1, b"k"], [1, "k", b"v"], [1, b"", b"v"], [1, LONG, b"v"], [1, b"k", None],
    [1, b"k", "v"], [1, b"k", 7], [1, b"k", [b"v"]],
    [2], [2, None], [2, b""], [2, LONG],
    [3, b"k", b"v"], [3, b"k", 0, b"v"], [3, b"k", None, None], [3, b"", None, b"v"],
    [4], [4, [], []], [4, None, [], []], [4, [], {}, []],
    [4, [[1, 1, b"k"]], [], []], [4, [[0, 1, b"k", b"v"]], [], []],
    [4, [[5, 1, b"k", b"v"]], [], []], [4, [[1, 0, b"k", b"v"]], [], []],
    [4, [[1, 5, b"k", b"v"]], [], []], [4, [[1, 1, b"k", 7]], [], []],
    [4, [[2, 1, b"k", b"v"]], [], []], [4, [[2, 1, b"k", -1]], [], []],
    [4, [[2, 1, b"k", True]], [], []], [4, [[2, 1, b"k", 1.5]], [], []],
    [4, [[2, 1, b"", 0]], [], []], [4, [7], [], []],
    [4, [], [[]], []], [4, [], [[1]], []], [4, [], [[True, b"k", b"v"]], []],
    [4, [], [[1, b"k"]], []], [4, [], [[3, b"k", None, b"v"]], []], [4, [], [], [[99, b"k"]]],
    [4, [], [[6, b"a"]], []], [4, [], [[6, None, b"b"]], []], [4, [], [[6, b"a", LONG]], []],
    [4, [], [[7, b"a", b"b", 0]], []], [4, [], [[7, b"a", b"b", 0, 4]], []],
    [4, [], [[7, b"a", b"b", -1, 0]], []], [4, [], [[4, [], [], []]], []],
    [4, [], [PUT_FIELDS, PUT_FIELDS], []], [4, [], [], [PUT_FIELDS, [2, b"k"]]],
    [4, [], [[2, b"k"], PUT_FIELDS], []], [4, [], [PUT_FIELDS, [6, b"a", b"z"]], []],
    [4, [], [[6, b"k", None], PUT_FIELDS], []], [4, [], [[6, b"", b""], PUT_FIELDS], []],
    [4, [[2, 1, b"k", 0]] * (MAX_COMPARES + 1), [], []],
    [4, [], [[5, b"k"]] * (MAX_OPERATIONS + 1), []],
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD_COMMANDS, ids=repr)
def test_a_malformed_command_is_refused_and_changes_nothing(fields: Any) -> None:
    """CommandError with a text; the store is as it was."""
    kv = KV()
    kv.apply(Ctx(1, 1, 0), encode_put(b"k", b"v"))
    before = [*kv.snapshot()]
    with pytest.raises(CommandError, match=r"\w"):
        kv.apply(Ctx(2, 1, 0), msgpack.packb(fields))
    assert [*kv.snapshot()] == before
    assert kv.revision == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x93\x01",
        msgpack.packb(PUT_FIELDS)[:-1],
        msgpack.packb(PUT_FIELDS) + b"\x00",
        b"\x91" * 500,
        b"\x91" * 100_000 + b"\x01",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xd6\x01abcd",
        bytes(MAX_REQUEST_BYTES + 1),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    """Truncated, followed by more, nested 100,000 deep, with lengths of gigabytes, too large."""
    with pytest.raises(CommandError):
        decode_command(data)
    with pytest.raises(CommandError):
        decode_query(data)


@pytest.mark.parametrize(
    "fields",
    [
        [5], [5, b"k"], [5, b"", 0], [5, b"k", -1], [5, b"k", None], [1, b"k", b"v"],
        [7, b"a", b"b", 0, 0], [7, b"a", b"b", 0, 4, 0], [7, "a", b"b", 0, 0, 0], [99],
    ],
    ids=repr,
)  # fmt: skip
def test_a_malformed_query_is_refused(fields: Any) -> None:
    """CommandError, as for commands."""
    with pytest.raises(CommandError):
        KV().query(Ctx(1, 1, 0), msgpack.packb(fields))


def test_the_client_refuses_what_is_too_large_before_sending() -> None:
    """Keys up to 8 KiB and requests up to 1 MiB − 4 KiB pass, a byte more is TooLargeError."""
    encode_get(bytes(MAX_KEY_BYTES))
    overhead = len(encode_put(b"k", bytes(70_000))) - 70_000
    body = encode_put(b"k", bytes(MAX_REQUEST_BYTES - overhead))
    assert len(body) == MAX_REQUEST_BYTES
    assert isinstance(decode_command(body), Put)
    attempts: list[Callable[[], bytes]] = [
        lambda: encode_put(b"k", bytes(MAX_REQUEST_BYTES - overhead + 1)),
        lambda: encode_put(LONG, b""),
        lambda: encode_get(LONG),
        lambda: encode_delete(LONG),
        lambda: encode_cas(LONG, None, b""),
        lambda: encode_range(Range(LONG, None)),
        lambda: encode_range(Range(b"a", LONG)),
        lambda: encode_txn(Txn([], [Put(b"a", bytes(600_000)), Put(b"b", bytes(600_000))])),
    ]
    for refused in attempts:
        with pytest.raises(TooLargeError) as caught:
            refused()
        assert caught.value.why
        assert caught.value.try_


def test_the_client_refuses_what_makes_no_sense_before_sending() -> None:
    """Empty keys, too many parts, a key that changes twice: InvalidCommand with why and try."""
    compare = Compare(Target.VERSION, Relation.EQUAL, b"k", 0)
    attempts: list[Callable[[], bytes]] = [
        lambda: encode_put(b"", b"v"),
        lambda: encode_txn(Txn([compare] * (MAX_COMPARES + 1), [])),
        lambda: encode_txn(Txn([], [Get(b"k")] * (MAX_OPERATIONS + 1))),
        lambda: encode_txn(Txn([], [], [Get(b"k")] * (MAX_OPERATIONS + 1))),
        lambda: encode_txn(Txn([], [Put(b"k", b"1"), Put(b"k", b"2")])),
        lambda: encode_txn(Txn([], [], [DeleteRange(b"a", b"z"), Put(b"k", b"2")])),
    ]
    for refused in attempts:
        with pytest.raises(InvalidCommand) as caught:
            refused()
        assert caught.value.why
        assert caught.value.try_


def test_encoding_goes_on_after_a_value_that_can_not_be_packed() -> None:
    """The reused packer keeps nothing of a failed attempt."""
    with pytest.raises(TypeError):
        encode_put(b"k", object())  # type: ignore[arg-type]  # that is the point
    assert decode_command(encode_put(b"k", b"v")) == Put(b"k", b"v")


@pytest.mark.parametrize(
    "decode",
    [
        decode_put_result,
        decode_delete_result,
        decode_cas_result,
        decode_get_result,
        decode_range_result,
        decode_txn_result,
    ],
)
@pytest.mark.parametrize(
    "fields",
    [
        None, [], ["1"], [-1, 0, 0, 0], [True, True, None, None], {},
        [2, [b"k"], [7], 5], [2, True, [[99, 1]], True], [2, True, [[]], 1], [2, "x", "y", "z"],
        [2, [[b"k", "v", 1, 1, 1, 0]], 1, True], [2, True, [[5, [b"k"]]], None], [2, -1],
        [2, True, [[7, None, 0, False]]], [2, True, [[2]]],
    ],
    ids=repr,
)  # fmt: skip
def test_a_client_does_not_trust_the_bytes_of_a_result(decode: Any, fields: Any) -> None:
    """DecodeError, or a value; never anything else."""
    try:
        decode(msgpack.packb(fields))
    except DecodeError:
        return
    assert decode is decode_put_result
    assert type(fields[0]) is int
