"""The key-value store's results: made by the store, read by the client.

    item     [key, value, create_revision, mod_revision, version, lease]
    put      [revision]                  delete  [revision, deleted]
    cas      [revision, succeeded, item | nil]
    get      [revision, item | nil]      range   [revision, [item, …], total, more]
    txn      [revision, succeeded, [response, …]], a response being
             [PUT]  [DELETE, n]  [DELETE_RANGE, n]  [GET, item | nil]
             [RANGE, [item, …], total, more]

Each starts with the store's revision after the command, or at the time of the query. Arrays grow at
the end only. A client does not trust a node's bytes: what does not fit raises DecodeError.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack

from zraft.errors import DecodeError
from zraft.machine.kv_codec import DELETE, DELETE_RANGE, GET, PUT, RANGE
from zraft.wire_entry import MAX_U64

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
_pack = _packer.pack


class KeyValue(NamedTuple):
    """One key as the store holds it.

    `version` counts the puts since the key was created (1 = created); `create_revision` and
    `mod_revision` are the store's revision at its creation and at its last put. `value` is empty
    when only keys were asked for.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class DeleteResult(NamedTuple):
    """What a delete did."""

    revision: int
    deleted: int


class CasResult(NamedTuple):
    """What a cas did; `current` is what stood in its way, None when it succeeded or is absent."""

    revision: int
    succeeded: bool
    current: KeyValue | None


class GetResult(NamedTuple):
    """A key, None when there is none."""

    revision: int
    item: KeyValue | None


class RangeResult(NamedTuple):
    """A page of a range; `total` is the number of keys in all of it, `more` if some are left."""

    revision: int
    items: list[KeyValue]
    total: int
    more: bool


class TxnResult(NamedTuple):
    """Which branch ran, and one response per operation of it.

    None for a put, the number of deleted keys for a delete, KeyValue or None for a get, a
    RangeResult for a range.
    """

    revision: int
    succeeded: bool
    responses: list[int | KeyValue | RangeResult | None]


def encode_result(fields: tuple[object, ...]) -> bytes:
    """Return a result; `fields` starts with the revision."""
    packed: bytes = _pack(fields)
    return packed


def _result(data: bytes, count: int) -> list[Any]:
    try:
        fields = msgpack.unpackb(data, max_str_len=0, max_map_len=0, max_ext_len=0)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError):
        raise DecodeError("an answer is not a result of the key-value store") from None
    if type(fields) is not list or len(fields) < count:
        raise DecodeError("a result of the key-value store is too short")
    _natural(fields[0])
    return fields


def _natural(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_U64:
        raise DecodeError("a result holds something that is not a natural number")
    return value


def _truth(value: object) -> bool:
    if type(value) is not bool:
        raise DecodeError("a result holds something that is not a boolean")
    return value


def _item(fields: object) -> KeyValue:
    if type(fields) is not list or len(fields) < 6:
        raise DecodeError("an item is an array of six or more")
    key, value = fields[0], fields[1]
    if type(key) is not bytes or type(value) is not bytes:
        raise DecodeError("a key or a value is not bytes")
    return KeyValue(key, value, *[_natural(number) for number in fields[2:6]])


def _maybe_item(fields: object) -> KeyValue | None:
    return None if fields is None else _item(fields)


def _page(revision: int, fields: list[Any]) -> RangeResult:
    if len(fields) < 3 or type(fields[0]) is not list:
        raise DecodeError("a page is an array of items, a count and a flag")
    items = [_item(item) for item in fields[0]]
    return RangeResult(revision, items, _natural(fields[1]), _truth(fields[2]))


def decode_put_result(data: bytes) -> int:
    """Return the revision of `[revision]`; DecodeError."""
    revision: int = _result(data, 1)[0]
    return revision


def decode_delete_result(data: bytes) -> DeleteResult:
    """Return what is in `[revision, deleted]`; DecodeError."""
    fields = _result(data, 2)
    return DeleteResult(fields[0], _natural(fields[1]))


def decode_cas_result(data: bytes) -> CasResult:
    """Return what is in `[revision, succeeded, item | nil]`; DecodeError."""
    fields = _result(data, 3)
    return CasResult(fields[0], _truth(fields[1]), _maybe_item(fields[2]))


def decode_get_result(data: bytes) -> GetResult:
    """Return what is in `[revision, item | nil]`; DecodeError."""
    fields = _result(data, 2)
    return GetResult(fields[0], _maybe_item(fields[1]))


def decode_range_result(data: bytes) -> RangeResult:
    """Return what is in `[revision, [item, …], total, more]`; DecodeError."""
    fields = _result(data, 4)
    return _page(fields[0], fields[1:])


def decode_txn_result(data: bytes) -> TxnResult:
    """Return what is in `[revision, succeeded, [response, …]]`; DecodeError.

    A response is `[PUT]`, `[DELETE, deleted]`, `[DELETE_RANGE, deleted]`, `[GET, item | nil]` or
    `[RANGE, [item, …], total, more]`.
    """
    fields = _result(data, 3)
    if type(fields[2]) is not list:
        raise DecodeError("responses are not an array")
    responses = [_response(fields[0], part) for part in fields[2]]
    return TxnResult(fields[0], _truth(fields[1]), responses)


def _response(revision: int, part: object) -> int | KeyValue | RangeResult | None:
    if type(part) is not list or not part:
        raise DecodeError("a response is not an array")
    if part[0] == PUT:
        return None
    if part[0] == RANGE:
        return _page(revision, part[1:])
    if len(part) < 2:
        raise DecodeError("a response is too short")
    if part[0] in (DELETE, DELETE_RANGE):  # no set: it may be anything
        return _natural(part[1])
    if part[0] == GET:
        return _maybe_item(part[1])
    raise DecodeError("a response that this version does not know")
