"""The key-value store's commands, queries and results: bytes to typed values and back.

One command is a transaction: compares, then one of two lists of operations. The frequent ones have
short forms, which mean nothing that a transaction could not say. Everything is a MessagePack array
with fixed places, and its first field says what it is:

    commands    [PUT, key, value]   [DELETE, key]   [CAS, key, expect | nil, value]
                [TXN, [compare, …], [operation, …], [operation, …]]
    compare     [target, relation, key, operand]
    operations  [PUT, key, value]   [DELETE, key]   [GET, key]
                [DELETE_RANGE, start, end | nil]   [RANGE, start, end | nil, limit, flags]
    queries     [GET, key, revision]   [RANGE, start, end | nil, limit, flags, revision]

A range is the keys from `start` (included) to `end` (excluded); `end` nil means the one key
`start`, and empty means every key from `start` on. The revision of a query is 0, "the newest"; an
older one is reserved for the history that comes later. Results are in `kv_results`.

Arrays grow at the end only: a decoder takes a longer one and ignores the rest, and a field that is
added later has a default. Commands come from outside and reach every node: whatever does not fit
raises CommandError, with a text that is the same everywhere, before anything has changed. Limits
are checked here twice: before a client sends (TooLargeError, InvalidCommand), and on decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

import msgpack

from zraft.errors import InvalidCommand, TooLargeError
from zraft.machine.base import CommandError
from zraft.wire import MAX_REQUEST_BYTES
from zraft.wire_entry import MAX_U64

MAX_KEY_BYTES = 8 << 10
MAX_COMPARES = 128
MAX_OPERATIONS = 128  # of each of the two branches
MAX_PAGE_ITEMS = 1000  # of one range in an answer: the loop must go on
MAX_PAGE_BYTES = 512 << 10  # of keys and values of all ranges in one answer, plus one item
MAX_GETS_BYTES = 2 << 20  # of the values of all gets of one transaction
ITEM_OVERHEAD_BYTES = 32  # counted for each item of a page beside its key and value

PUT = 1
DELETE = 2
CAS = 3
TXN = 4
GET = 5
DELETE_RANGE = 6
RANGE = 7

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
_pack = _packer.pack
_new = tuple.__new__  # without a NamedTuple's Python-level constructor: a third of the time


class Target(IntEnum):
    """What of a key a compare looks at. A key that does not exist has 0 for all but its value."""

    VALUE = 1  # of a key that does not exist: every compare is false
    VERSION = 2
    CREATE_REVISION = 3
    MOD_REVISION = 4


class Relation(IntEnum):
    """How a compare relates what is found to its operand."""

    EQUAL = 1
    NOT_EQUAL = 2
    LESS = 3
    GREATER = 4


class RangeFlag(IntFlag):
    """Bits of a range."""

    NONE = 0
    KEYS_ONLY = 1  # values are empty in the answer
    COUNT_ONLY = 2  # no items in the answer


class Compare(NamedTuple):
    """A condition of a transaction; `operand` is bytes for VALUE, a number otherwise."""

    target: Target
    relation: Relation
    key: bytes
    operand: bytes | int


class Put(NamedTuple):
    """Set a key."""

    key: bytes
    value: bytes


class Delete(NamedTuple):
    """Delete a key; a missing one is no error."""

    key: bytes


class Get(NamedTuple):
    """Read a key."""

    key: bytes


class DeleteRange(NamedTuple):
    """Delete all keys of a range."""

    start: bytes
    end: bytes | None


class Range(NamedTuple):
    """Read a range in key order: at most `limit` items (0: as many as an answer may hold)."""

    start: bytes
    end: bytes | None
    limit: int = 0
    flags: RangeFlag = RangeFlag.NONE


class Cas(NamedTuple):
    """Set a key if its value is `expect`; None expects that there is no such key."""

    key: bytes
    expect: bytes | None
    value: bytes


Operation = Put | Delete | Get | DeleteRange | Range


class Txn(NamedTuple):
    """If all compares are true then `then`, else `otherwise`; all of it at one revision."""

    compares: Sequence[Compare]
    then: Sequence[Operation]
    otherwise: Sequence[Operation] = ()


Command = Put | Delete | Cas | Txn
Query = Get | Range


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that start with `prefix`; empty means no end."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b""


# Encoding, in the client: what is too large or makes no sense is refused before it is sent.


def _checked_key(key: bytes) -> bytes:
    if len(key) > MAX_KEY_BYTES:
        raise TooLargeError(
            f"a key of {len(key)} bytes is too large; nothing was sent",
            why=f"a key has at most {MAX_KEY_BYTES} bytes",
            try_="use a shorter key, for instance a hash of this one",
        )
    if not key:
        raise InvalidCommand(
            "an empty key is not a key; nothing was sent",
            why=f"a key has 1 to {MAX_KEY_BYTES} bytes",
            try_="name the key",
        )
    return key


def _checked_body(packed: bytes) -> bytes:
    if len(packed) > MAX_REQUEST_BYTES:
        raise TooLargeError(
            f"a request of {len(packed)} bytes is too large; nothing was sent",
            why=f"a request has at most {MAX_REQUEST_BYTES} bytes",
            try_="split the value over several keys",
        )
    return packed


def _checked_bound(bound: bytes | None) -> bytes | None:
    if bound is not None and len(bound) > MAX_KEY_BYTES:
        _checked_key(bound)
    return bound


def encode_put(key: bytes, value: bytes) -> bytes:
    """Return the command that sets a key; TooLargeError, InvalidCommand."""
    return _checked_body(_pack((PUT, _checked_key(key), value)))


def encode_delete(key: bytes) -> bytes:
    """Return the command that deletes a key; TooLargeError, InvalidCommand."""
    return _checked_body(_pack((DELETE, _checked_key(key))))


def encode_cas(key: bytes, expect: bytes | None, value: bytes) -> bytes:
    """Return the command that sets a key if its value is `expect` (None: if it is absent)."""
    return _checked_body(_pack((CAS, _checked_key(key), expect, value)))


def encode_get(key: bytes) -> bytes:
    """Return the query for one key; TooLargeError, InvalidCommand."""
    return _checked_body(_pack((GET, _checked_key(key), 0)))


def encode_range(query: Range) -> bytes:
    """Return the query for a range; TooLargeError."""
    return _checked_body(_pack((*_operation_fields(query), 0)))


def encode_txn(txn: Txn) -> bytes:
    """Return the command of a transaction.

    Raises:
        TooLargeError: a key or the whole is too large.
        InvalidCommand: an empty key, too many parts, or a key that would change twice.
    """
    for parts, most in ((txn.compares, MAX_COMPARES), (txn.then, MAX_OPERATIONS)):
        _check_count(parts, most)
    _check_count(txn.otherwise, MAX_OPERATIONS)
    for branch in (txn.then, txn.otherwise):
        if not changes_once(branch):
            raise InvalidCommand(
                "a transaction changes a key twice; nothing was sent",
                why="all of a transaction happens at one revision, so a key changes at most once",
                try_="put each key once, and do not delete what the same branch puts",
            )
    compares = [(c.target, c.relation, _checked_key(c.key), c.operand) for c in txn.compares]
    then = [_operation_fields(operation) for operation in txn.then]
    otherwise = [_operation_fields(operation) for operation in txn.otherwise]
    return _checked_body(_pack((TXN, compares, then, otherwise)))


def _check_count(parts: Sequence[object], most: int) -> None:
    if len(parts) > most:
        raise InvalidCommand(
            f"a transaction has {len(parts)} parts of a kind; nothing was sent",
            why=f"at most {most} are allowed",
            try_="split it",
        )


def _operation_fields(operation: Operation) -> tuple[object, ...]:
    match operation:
        case Put():
            return PUT, _checked_key(operation.key), operation.value
        case Delete():
            return DELETE, _checked_key(operation.key)
        case Get():
            return GET, _checked_key(operation.key)
        case DeleteRange():
            return DELETE_RANGE, _checked_bound(operation.start), _checked_bound(operation.end)
        case Range():
            start, end = _checked_bound(operation.start), _checked_bound(operation.end)
            return RANGE, start, end, operation.limit, int(operation.flags)


def changes_once(operations: Sequence[Operation]) -> bool:
    """Return whether no key is put twice, or put and deleted, by one branch.

    A (key, revision) pair then names one change, which a history of revisions relies on.
    """
    puts: set[bytes] = set()
    for operation in operations:
        if isinstance(operation, Put):
            if operation.key in puts:
                return False
            puts.add(operation.key)
    for operation in operations:
        if isinstance(operation, Delete) and operation.key in puts:
            return False
        if isinstance(operation, DeleteRange) and any(
            in_range(key, operation.start, operation.end) for key in puts
        ):
            return False
    return True


def in_range(key: bytes, start: bytes, end: bytes | None) -> bool:
    """Return whether a key is in a range."""
    if end is None:
        return key == start
    return start <= key and (not end or key < end)


# Decoding, in the state machine: CommandError with a text that is the same on every node.


def _unpack_command(data: bytes) -> list[Any]:
    if len(data) > MAX_REQUEST_BYTES:
        raise CommandError(f"a command has at most {MAX_REQUEST_BYTES} bytes")
    try:
        fields = msgpack.unpackb(data, max_str_len=0, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError):
        raise CommandError("not a command of the key-value store") from None
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise CommandError("not a command of the key-value store")
    return fields


def _need(fields: list[Any], count: int) -> None:
    if len(fields) < count:
        raise CommandError("a command of the key-value store is too short")


def _key(value: object) -> bytes:
    if type(value) is not bytes or not 0 < len(value) <= MAX_KEY_BYTES:
        raise CommandError(f"a key is 1 to {MAX_KEY_BYTES} bytes")
    return value


def _value(value: object) -> bytes:
    if type(value) is not bytes:
        raise CommandError("a value is bytes")
    return value


def _bound(value: object) -> bytes:
    if type(value) is not bytes or len(value) > MAX_KEY_BYTES:
        raise CommandError(f"an end of a range is at most {MAX_KEY_BYTES} bytes")
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_U64:
        raise CommandError("a number is out of range")
    return value


def _array(value: object, most: int) -> list[Any]:
    if type(value) is not list or len(value) > most:
        raise CommandError(f"a list of at most {most} parts is expected")
    return value


def _range(fields: list[Any]) -> Range:
    _need(fields, 5)
    end = None if fields[2] is None else _bound(fields[2])
    flags = _number(fields[4])
    if flags > 3:  # an unknown flag would change the meaning of the answer
        raise CommandError("a range has a flag that this version does not know")
    return Range(_bound(fields[1]), end, _number(fields[3]), RangeFlag(flags))


def _compare(fields: object) -> Compare:
    parts = _array(fields, MAX_COMPARES)
    _need(parts, 4)
    target, relation = _number(parts[0]), _number(parts[1])
    if not (1 <= target <= 4 and 1 <= relation <= 4):
        raise CommandError("a compare that this version does not know")
    operand = _value(parts[3]) if target == Target.VALUE else _number(parts[3])
    return Compare(Target(target), Relation(relation), _key(parts[2]), operand)


def _operation(fields: object) -> Operation:
    parts = _array(fields, MAX_OPERATIONS)
    _need(parts, 2)
    kind = _number(parts[0])
    if kind == PUT:
        _need(parts, 3)
        return Put(_key(parts[1]), _value(parts[2]))
    if kind == DELETE:
        return Delete(_key(parts[1]))
    if kind == GET:
        return Get(_key(parts[1]))
    if kind == DELETE_RANGE:
        _need(parts, 3)
        return DeleteRange(_bound(parts[1]), None if parts[2] is None else _bound(parts[2]))
    if kind == RANGE:
        return _range(parts)
    raise CommandError("an operation that this version does not know")


def _txn(fields: list[Any]) -> Txn:
    _need(fields, 4)
    compares = [_compare(part) for part in _array(fields[1], MAX_COMPARES)]
    then = [_operation(part) for part in _array(fields[2], MAX_OPERATIONS)]
    otherwise = [_operation(part) for part in _array(fields[3], MAX_OPERATIONS)]
    if not (changes_once(then) and changes_once(otherwise)):
        raise CommandError("a transaction changes a key twice")
    return Txn(compares, then, otherwise)


def decode_command(data: bytes) -> Command:
    """Return the command in `data`, checked in full; CommandError when it is not one."""
    fields = _unpack_command(data)
    kind = fields[0]
    if kind == PUT:  # the hot one: its checks stand in place
        if len(fields) < 3:
            raise CommandError("a command of the key-value store is too short")
        key, value = fields[1], fields[2]
        if type(key) is not bytes or not 0 < len(key) <= MAX_KEY_BYTES:
            raise CommandError(f"a key is 1 to {MAX_KEY_BYTES} bytes")
        if type(value) is not bytes:
            raise CommandError("a value is bytes")
        return _new(Put, (key, value))
    if kind == DELETE:
        _need(fields, 2)
        return Delete(_key(fields[1]))
    if kind == CAS:
        _need(fields, 4)
        expect = None if fields[2] is None else _value(fields[2])
        return Cas(_key(fields[1]), expect, _value(fields[3]))
    if kind == TXN:
        return _txn(fields)
    raise CommandError("a command that this version does not know")


def decode_query(data: bytes) -> tuple[Query, int]:
    """Return the query in `data` and the revision it asks for; CommandError when it is not one."""
    fields = _unpack_command(data)
    if fields[0] == GET:
        _need(fields, 3)
        return Get(_key(fields[1])), _number(fields[2])
    if fields[0] == RANGE:
        _need(fields, 6)
        return _range(fields), _number(fields[5])
    raise CommandError("a query that this version does not know")
