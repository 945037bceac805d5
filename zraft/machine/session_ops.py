"""What is said about a session: the bodies of SESSION entries, and the results they have.

    open      [1, ttl_ms, max_sessions, max_bytes]   → [ttl_ms]; the session is the entry's index
    keep      [2]                                    → []
    close     [3]                                    → []
    resolve   [4]                                    → [fate, index, code, result]

The session, and with `resolve` the sequence, stand in the entry's header. A client asks with the
same bodies, but opens with `[1]` alone: the leader puts its own configuration there, and so it is
the log that says what holds, on every node alike.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from zraft.errors import DecodeError
from zraft.wire_entry import naturals, pack, unpack


class SessionOp(IntEnum):
    """What a SESSION entry does. The numbers are on disk and on the wire."""

    OPEN = 1
    KEEP = 2  # it was used, and nothing else
    CLOSE = 3
    RESOLVE = 4  # tell what became of a sequence; one that was not applied never will be


_OPS = {int(op): op for op in SessionOp}


class Terms(NamedTuple):
    """Under which terms a session is opened; `max_bytes` holds for all sessions from then on."""

    ttl_ms: int = 1_800_000
    max_sessions: int = 10_000
    max_bytes: int = 64 << 20


class Fate(IntEnum):
    """What became of a sequence."""

    WITHDRAWN = 0  # not applied, and now it never will be
    APPLIED = 1
    FORGOTTEN = 2  # the client had said that it needs the result no more


class Resolution(NamedTuple):
    """The result of a resolve; the rest belongs to an applied command."""

    fate: Fate
    index: int = 0  # type: ignore[assignment]  # a field, not tuple.index
    code: int = 0
    result: bytes = b""


def encode_op(op: SessionOp) -> bytes:
    """Return the body with which a client asks."""
    return pack([int(op)])


def encode_open(terms: Terms) -> bytes:
    """Return the body of the entry that opens a session."""
    return pack([int(SessionOp.OPEN), *terms])


def decode_op(body: bytes) -> tuple[SessionOp, list[int]]:
    """Return what is to be done, and the numbers behind it; DecodeError."""
    fields = unpack(body)
    if type(fields) is not list or not fields:
        raise DecodeError("not something that can be done to a session")
    number, *numbers = naturals(fields, "a session's entry")
    op = _OPS.get(number)
    if op is None:
        raise DecodeError("something to be done to a session that this version does not know")
    return op, numbers


def decode_terms(numbers: list[int]) -> Terms:
    """Return the terms of an opening entry; DecodeError."""
    if len(numbers) < len(Terms._fields) or not all(numbers[: len(Terms._fields)]):
        raise DecodeError("a session is opened without its terms")
    return Terms(*numbers[: len(Terms._fields)])


def encode_resolution(resolution: Resolution) -> bytes:
    """Return the result of a resolve."""
    return pack([int(field) if type(field) is not bytes else field for field in resolution])


def decode_resolution(data: bytes) -> Resolution:
    """Return what is in the result of a resolve; DecodeError."""
    fields = unpack(data)
    if type(fields) is not list or len(fields) < 4 or type(fields[3]) is not bytes:
        raise DecodeError("not the result of a resolve")
    fate, index, code = naturals(fields[:3], "the result of a resolve")
    if fate not in {*Fate}:
        raise DecodeError("the result of a resolve is one that this version does not know")
    return Resolution(Fate(fate), index, code, fields[3])


def decode_opened(data: bytes) -> int:
    """Return the ttl in the result of an opening, in ms; DecodeError."""
    fields = unpack(data)
    if type(fields) is not list or not fields:
        raise DecodeError("not the result of opening a session")
    return naturals(fields[:1], "the result of opening a session")[0]
