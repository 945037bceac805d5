"""Histories: what clients asked, when, and what they were told. One JSON object a line.

    {"process":"c3.0","op":"cas","key":"k17","expected":"c1.4;","value":"c3.9;","output":true,
     "invoke":1720000123,"return":1720009876,"status":"ok","note":{"node":"n2","index":812}}

`op` is get, put, delete, cas, append or incr. `output` is what the client was told: get a value or
null (no such key), cas and delete true or false, append and incr the new value; null means that it
was not looked at, except for get. `status` is ok, fail (KNOWN not done) or unknown (`return` is
null: it may take effect at any later time, or never). `invoke` and `return` are nanoseconds of one
clock that all clients share (CLOCK_MONOTONIC of one host, or a simulator's). A value is a string or
a number, a key that was never written reads null, and other fields of the object are ignored.
`note` is for people, and for a second check: the node that answered, the log index, the term.

This module reads, checks and writes this format. It judges nothing: see `linearizability`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import msgspec

from zraft.errors import EXIT_DATA, DecodeError

Value = str | int | float
"""What a key holds; null in a history is a key that does not exist."""

Kind = Literal["get", "put", "delete", "cas", "append", "incr"]
Status = Literal["ok", "fail", "unknown"]

EXAMPLE = '{"process":1,"op":"put","key":"k","value":"v","invoke":1,"return":2,"status":"ok"}'


class HistoryError(DecodeError):
    """A line of a history breaks a rule of the format; the message has file and line."""

    code = "history"
    exit_code = EXIT_DATA


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of one client, and how it ended. See the module for the fields."""

    process: str | int
    op: Kind
    key: str
    expected: Value | None = None  # of cas; null: there must be no such key
    value: Value | None = None  # put, cas: the new one; append: what is added; incr: by how much
    output: Value | bool | None = None
    invoke_ns: int = msgspec.field(name="invoke")
    return_ns: int | None = msgspec.field(name="return", default=None)
    status: Status
    note: dict[str, Any] = {}

    @property
    def is_write(self) -> bool:
        """Whether it could have changed something: everything but a get."""
        return self.op != "get"


_decoder = msgspec.json.Decoder(Operation)
_encoder = msgspec.json.Encoder()


def find_fault(op: Operation) -> str | None:
    """Return the rule of the format that an operation breaks, None when it breaks none."""
    if op.status == "unknown":
        if op.return_ns is not None:
            return 'an unknown outcome stays open: its "return" is null'
    elif op.return_ns is None:
        if op.status == "ok":
            return 'an operation with status "ok" has a "return" time'
    elif op.return_ns < op.invoke_ns:
        return f'"return" ({op.return_ns}) is before "invoke" ({op.invoke_ns})'
    match op.op:
        case "put" | "cas":
            if op.value is None:
                return f'a {op.op} has a "value"'
        case "append":
            if not isinstance(op.value, str):
                return 'the "value" of an append is a string'
        case "incr":
            if op.value is not None and not isinstance(op.value, int):
                return 'the "value" of an incr is an integer, or null for 1'
        case "get" | "delete":
            pass
    return _find_output_fault(op) if op.status == "ok" else None


def _find_output_fault(op: Operation) -> str | None:
    output = op.output
    match op.op:
        case "get":
            return 'the "output" of a get is a value or null' if type(output) is bool else None
        case "cas" | "delete":
            good = output is None or type(output) is bool
            return None if good else f'the "output" of a {op.op} is true, false or null'
        case "append":
            good = output is None or isinstance(output, str)
            return None if good else 'the "output" of an append is the new string, or null'
        case "incr":
            good = output is None or type(output) is int
            return None if good else 'the "output" of an incr is the new integer, or null'
        case "put":
            return None


def decode_operation(line: bytes) -> Operation:
    """Return the operation of one line.

    Raises:
        HistoryError: it is no JSON object, a field is missing or of a wrong type, or a rule of the
            format is broken.
    """
    try:
        op = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HistoryError(
            "this is not an operation", why=_lower(str(error)), try_=f"a line like {EXAMPLE}"
        ) from None
    fault = find_fault(op)
    if fault is None:
        # Forgotten fields would silently mean "no such key" here, and everything else hangs on it.
        if op.op == "cas" and op.expected is None and b'"expected"' not in line:
            fault = 'a cas has "expected"; null means that there must be no such key'
        elif op.op == "get" and op.status == "ok" and op.output is None and b'"output"' not in line:
            fault = 'a get with status "ok" has an "output"; null means that there was no such key'
    if fault is not None:
        raise HistoryError("this operation breaks a rule of the format", why=fault)
    return op


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def to_fields(op: Operation) -> dict[str, Any]:
    """Return the fields of an operation's line: only those that mean something for it."""
    fields: dict[str, Any] = {"process": op.process, "op": op.op, "key": op.key}
    if op.op == "cas":
        fields["expected"] = op.expected
    if op.value is not None:
        fields["value"] = op.value
    fields |= {
        "output": op.output,
        "invoke": op.invoke_ns,
        "return": op.return_ns,
        "status": op.status,
    }
    if op.note:
        fields["note"] = op.note
    return fields


def encode_operation(op: Operation) -> bytes:
    """Return an operation as one line, without the line's end."""
    return _encoder.encode(to_fields(op))


def iterate_history(lines: Iterable[bytes], name: str) -> Iterator[Operation]:
    """Yield the operations of lines; empty lines are allowed.

    Raises:
        HistoryError: naming `name` and the line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield decode_operation(line)
        except HistoryError as error:
            raise HistoryError(
                f"{name}:{number}: {error.what}", why=error.why, try_=error.try_
            ) from None


def read_history(path: Path) -> list[Operation]:
    """Return the operations of a file, in the file's order.

    Raises:
        HistoryError: a line is not an operation, with file and line (exit 65).
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return list(iterate_history(file, str(path)))


def write_history(path: Path, operations: Iterable[Operation]) -> None:
    """Write a whole history; a file of that name is replaced."""
    with HistoryWriter(path) as writer:
        for op in operations:
            writer.write(op)


class HistoryWriter:
    """Writes operations to a file as they end; each one breaks no rule of the format.

    Lines are buffered; `flush` or `close` hands them to the system. A history is a diagnosis: it
    is not synced.
    """

    def __init__(self, path: Path) -> None:
        """Create the file, or empty it."""
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115  # closed by `close`
        self.count = 0

    def __enter__(self) -> HistoryWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, op: Operation) -> None:
        """Add an operation."""
        fault = find_fault(op)
        assert fault is None, f"{fault}: {op}"
        self._file.write(encode_operation(op) + b"\n")
        self.count += 1

    def flush(self) -> None:
        """Hand everything to the system, for whoever reads along."""
        self._file.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()
