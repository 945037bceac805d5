"""Entries of the log and configurations as bytes; the part of the codec that disks read, too.

    entry           [type, term, log_time_ms, session, sequence, ack_below, body]
    configuration   [voters, outgoing, learners, joining, [[member_id, name, address], …]]

The rules for arrays and for untrusted bytes are those of `zraft.wire`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from zraft.core.model import MAX_MEMBERS, Command, Configuration, Entries, EntryType, MemberInfo
from zraft.errors import DecodeError

MAX_FRAME_BYTES = 4 << 20
MAX_ENTRIES = 65536  # in one frame
MAX_U64 = (1 << 64) - 1

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def pack(value: object) -> bytes:
    """Encode one MessagePack value."""
    packed: bytes = _pack(value)
    return packed


def unpack(data: bytes) -> Any:
    """Decode one MessagePack value, bounded; DecodeError for anything else."""
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_ext_len=0,
            max_map_len=0,
            max_str_len=256,
            max_array_len=min(MAX_ENTRIES, len(data)),  # or nested heads would cost memory
            max_bin_len=MAX_FRAME_BYTES,
        )
    except (
        ValueError,
        TypeError,
        msgpack.exceptions.UnpackException,
        RecursionError,
    ) as error:
        raise DecodeError("not a MessagePack value", why=type(error).__name__) from None


def natural(value: object, what: str) -> int:
    """Return `value` if it is an int in [0, 2^64); bool is not an int here."""
    if type(value) is not int or not 0 <= value <= MAX_U64:
        raise DecodeError(f"{what} is not a natural number")
    return value


def flag(value: object, what: str) -> bool:
    if type(value) is not bool:
        raise DecodeError(f"{what} is not a boolean")
    return value


def naturals(values: list[Any], what: str) -> list[int]:
    """Return `values` if all are natural numbers; MessagePack has none from 2^64 on."""
    for value in values:
        if type(value) is not int or value < 0:
            raise DecodeError(f"{what} holds something that is not a natural number")
    return values


class Entry(NamedTuple):
    """One decoded entry of the log."""

    type: int
    term: int
    log_time_ms: int
    session: int
    sequence: int
    ack_below: int
    body: bytes


_new = tuple.__new__  # without a NamedTuple's Python-level constructor: a third of the time
_ENTRY_LENGTH = len(Entry._fields)
_CONFIG = int(EntryType.CONFIG)


class EntryCodec:
    """The core's `EntryCodec`: encodes an entry once, for every disk and every follower."""

    def encode(self, command: Command, *, term: int, log_time_ms: int) -> bytes:
        """Return the payload of an entry."""
        packed: bytes = _pack(
            [
                command.type,
                term,
                log_time_ms,
                command.session,
                command.sequence,
                command.ack_below,
                command.body,
            ]
        )
        return packed

    def log_time_ms(self, payload: bytes) -> int:
        """Return the log time of a payload."""
        return decode_entry(payload).log_time_ms

    def configurations(self, payloads: Sequence[bytes]) -> list[tuple[int, Configuration]]:
        """Return position and configuration of each CONFIG entry; see the core's `EntryCodec`.

        An entry is an array of 7 to 15, so its type, a small number, is its second byte.
        """
        return [
            (position, decode_configuration(decode_entry(payload).body))
            for position, payload in enumerate(payloads)
            if payload[1] == _CONFIG
        ]

    def encode_configuration(self, configuration: Configuration) -> bytes:
        """Return the body of a CONFIG entry."""
        return encode_configuration(configuration)


def decode_entry(payload: bytes) -> Entry:
    """Return the entry in `payload`; DecodeError when it is not one."""
    fields = unpack(payload)
    if type(fields) is not list or len(fields) < _ENTRY_LENGTH:
        raise DecodeError("an entry is an array of seven or more")
    body = fields[6]
    if type(body) is not bytes:
        raise DecodeError("an entry's body is not bytes")
    naturals(fields[:6], "an entry")
    return _new(Entry, fields[:_ENTRY_LENGTH])


def encode_configuration(configuration: Configuration) -> bytes:
    """Return `[voters, outgoing, learners, joining, [[member_id, name, address], …]]`."""
    packed: bytes = _pack(
        [
            configuration.voters,
            configuration.outgoing,
            configuration.learners,
            configuration.joining,
            [[m.member_id, m.name.encode(), m.address.encode()] for m in configuration.members],
        ]
    )
    return packed


def decode_configuration(body: bytes) -> Configuration:
    """Return the configuration in the body of a CONFIG entry, its `index` 0.

    Raises:
        DecodeError: it is not one, or breaks a rule of `Configuration`.
    """
    fields = unpack(body)
    if type(fields) is not list or len(fields) < 5:
        raise DecodeError("a configuration is an array of five or more")
    voters, outgoing, learners, joining = (_member_ids(ids) for ids in fields[:4])
    if not voters or {*voters} & {*learners} or not {*joining} <= {*learners}:
        raise DecodeError("a configuration contradicts itself")
    if type(fields[4]) is not list or len(fields[4]) > MAX_MEMBERS:
        raise DecodeError("a configuration's members are not an array")
    members = tuple(_member_info(item) for item in fields[4])
    return Configuration(voters, 0, outgoing, learners, joining, members)


def _member_ids(ids: object) -> tuple[int, ...]:
    if type(ids) is not list or len(ids) > MAX_MEMBERS:
        raise DecodeError("members are not an array")
    numbers = naturals(ids, "a configuration")
    if numbers != sorted(set(numbers)) or 0 in numbers:
        raise DecodeError("members are not sorted, or not different")
    return tuple(numbers)


def _member_info(item: object) -> MemberInfo:
    if type(item) is not list or len(item) < 3:
        raise DecodeError("a member is an array of three or more")
    member_id, name, address = item[:3]
    if type(name) is not bytes or type(address) is not bytes:
        raise DecodeError("a member's name is not bytes")
    try:
        return MemberInfo(natural(member_id, "a member"), name.decode(), address.decode())
    except UnicodeDecodeError:
        raise DecodeError("a member's name is not UTF-8") from None


def decode_entries(first_index: int, payloads: object, limit_term: int) -> Entries:
    """Check a list of payloads and take the terms out; terms never fall nor pass the sender's.

    A configuration among them is checked as well: the core reads it as soon as it is appended.
    """
    if type(payloads) is not list:
        raise DecodeError("entries are not an array")
    terms: list[int] = []
    last_term = 0
    for payload in payloads:
        if type(payload) is not bytes:
            raise DecodeError("an entry is not bytes")
        entry = decode_entry(payload)
        term = entry.term
        if entry.type == _CONFIG:
            decode_configuration(entry.body)
        if not last_term <= term <= limit_term or term == 0:
            raise DecodeError("the terms of entries fall, or pass the sender's term")
        terms.append(term)
        last_term = term
    return _new(Entries, (first_index, terms, payloads))
