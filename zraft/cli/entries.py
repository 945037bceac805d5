"""Entries of the log in words: what `node inspect` prints in its COMMAND column.

A command of the built-in store is spelled out; one of another state machine is shown as its length
and its first bytes. What does not decode is no error here: somebody looks at it because something
is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zraft.cli.durations import format_ms
from zraft.core.model import Configuration, EntryType
from zraft.errors import DecodeError
from zraft.machine.base import CommandError
from zraft.machine.kv_codec import (
    Cas,
    Delete,
    DeleteRange,
    Get,
    Operation,
    Put,
    Range,
    Txn,
    decode_command,
)
from zraft.machine.session_ops import SessionOp, decode_op
from zraft.wire_entry import Entry, decode_configuration, decode_entry

VALUE_CHARACTERS = 32
Names = Mapping[int, str]
"""Member id → name."""


class EntryWords(NamedTuple):
    """An entry for people. `type` is `?` and `text` says why when the payload does not decode."""

    type: str
    text: str
    entry: Entry | None


def describe_entry(payload: bytes, names: Names) -> EntryWords:
    """Return what an entry is and what it says."""
    try:
        entry = decode_entry(payload)
    except DecodeError as error:
        return EntryWords("?", f"{len(payload)} bytes that are no entry: {error.what}", None)
    try:
        kind = EntryType(entry.type).name.lower()
    except ValueError:
        return EntryWords(f"type {entry.type}", "of a newer version", entry)
    text = ""
    if entry.type == EntryType.COMMAND:
        text = describe_command(entry.body)
    elif entry.type == EntryType.CONFIG:
        text = _describe_config(entry.body, names)
    elif entry.type == EntryType.SESSION:
        return EntryWords(kind, _describe_session(entry), entry)
    if entry.session:
        text = f"{text} (session {entry.session:x} seq {entry.sequence})".strip()
    return EntryWords(kind, text, entry)


def _describe_session(entry: Entry) -> str:
    """Return what is done to a session; one that is opened gets the entry's index as its id."""
    try:
        op, numbers = decode_op(entry.body)
    except DecodeError as error:
        return f"no session's entry: {error.what}"
    match op:
        case SessionOp.OPEN:
            ttl = f", ends {format_ms(numbers[0])} after its last use" if numbers else ""
            return f"open a session{ttl}"
        case SessionOp.RESOLVE:
            return f"resolve {entry.session:x}-{entry.sequence}"
        case SessionOp.KEEP | SessionOp.CLOSE:
            return f"{op.name.lower()} session {entry.session:x}"


def describe_command(body: bytes) -> str:
    """Return a command of the built-in store in its own words, or its first bytes."""
    try:
        command = decode_command(body)
    except CommandError:
        return _bytes(body)
    match command:
        case Put() | Delete():
            return _operation(command)
        case Cas():
            expect = "absent" if command.expect is None else show(command.expect)
            return f"cas {show(command.key)} {expect} → {show(command.value)}"
        case Txn():
            return _transaction(command)


def _transaction(command: Txn) -> str:
    parts = [f"txn if {len(command.compares)} hold" if command.compares else "txn"]
    parts.append("then " + (_operations(command.then) or "nothing"))
    if command.otherwise:
        parts.append("else " + _operations(command.otherwise))
    return " ".join(parts)


def _operations(operations: Sequence[Operation]) -> str:
    text = "; ".join(_operation(operation) for operation in operations[:3])
    more = len(operations) - 3
    return f"{text}; and {more} more" if more > 0 else text


def _operation(operation: Operation) -> str:
    match operation:
        case Put():
            return f"put {show(operation.key)}={show(operation.value)}"
        case Delete():
            return f"delete {show(operation.key)}"
        case Get():
            return f"get {show(operation.key)}"
        case DeleteRange():
            return f"delete {_range(operation.start, operation.end)}"
        case Range():
            return f"range {_range(operation.start, operation.end)}"


def _range(start: bytes, end: bytes | None) -> str:
    if end is None:
        return show(start)
    return f"[{show(start)}, {show(end) if end else 'end'})"


def show(data: bytes) -> str:
    """Return bytes as text if they are text, and never more than fits into a line."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _bytes(data)
    if not text.isprintable():
        return _bytes(data)
    if len(text) > VALUE_CHARACTERS:
        return f"{text[:VALUE_CHARACTERS]}… ({len(data)} bytes)"
    return text or '""'


def _bytes(data: bytes) -> str:
    shown = data[: VALUE_CHARACTERS // 2].hex()
    more = "…" if len(data) > VALUE_CHARACTERS // 2 else ""
    return f"0x{shown}{more} ({len(data)} bytes)"


def _describe_config(body: bytes, names: Names) -> str:
    try:
        return describe_configuration(decode_configuration(body), names)
    except DecodeError as error:
        return f"no configuration: {error.what}"


def describe_configuration(configuration: Configuration, names: Names) -> str:
    """Return who votes and who listens: `voters n1 n2 n3, learners n4`."""
    known = {**names, **{member.member_id: member.name for member in configuration.members}}
    parts = [f"voters {_named(configuration.voters, known)}"]
    if configuration.outgoing:
        parts.append(f"outgoing {_named(configuration.outgoing, known)}")
    if configuration.learners:
        parts.append(f"learners {_named(configuration.learners, known)}")
    if configuration.joining:
        parts.append(f"joining {_named(configuration.joining, known)}")
    return ", ".join(parts)


def _named(ids: Sequence[int], names: Names) -> str:
    return " ".join(sorted(member_label(member_id, names) for member_id in ids))


def member_label(member_id: int, names: Names) -> str:
    """Return a member's name, or its id when nobody knows the name."""
    return names.get(member_id) or f"{member_id:016x}"


def configuration_document(configuration: Configuration, names: Names) -> dict[str, Any]:
    """Return a configuration for programs."""
    known = {**names, **{member.member_id: member.name for member in configuration.members}}

    def labels(ids: Sequence[int]) -> list[str]:
        return sorted(member_label(member_id, known) for member_id in ids)

    return {
        "index": configuration.index,
        "voters": labels(configuration.voters),
        "outgoing": labels(configuration.outgoing),
        "learners": labels(configuration.learners),
        "joining": labels(configuration.joining),
    }
