"""The history format: what is read, what is refused and why, and that writing gives it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zraft.errors import EXIT_DATA
from zraft.testing.history import (
    EXAMPLE,
    HistoryError,
    HistoryWriter,
    Operation,
    decode_operation,
    encode_operation,
    read_history,
    write_history,
)

CAS = (
    '{"process":"c3.0","op":"cas","key":"k17","expected":"c1.4;","value":"c3.9;","output":true,'
    '"invoke":1720000123,"return":1720009876,"status":"ok","note":{"node":"n2","index":812}}'
)


def line(**fields: Any) -> bytes:
    """Return a line; fields that are None are left out, "null" is null."""
    good = {"process": 1, "op": "put", "key": "k", "value": 5, "invoke": 1, "return": 2}
    merged = {**good, "status": "ok", **fields}
    kept = {k: None if v == "null" else v for k, v in merged.items() if v is not None}
    return json.dumps(kept).encode()


def test_every_field_is_read() -> None:
    """The example of the format means what it says."""
    op = decode_operation(CAS.encode())
    assert op == Operation(
        process="c3.0",
        op="cas",
        key="k17",
        expected="c1.4;",
        value="c3.9;",
        output=True,
        invoke_ns=1720000123,
        return_ns=1720009876,
        status="ok",
        note={"node": "n2", "index": 812},
    )


def test_what_is_written_is_what_was_read() -> None:
    """A line comes back with the same fields, and only those that mean something."""
    assert json.loads(encode_operation(decode_operation(CAS.encode()))) == json.loads(CAS)
    assert b"expected" not in encode_operation(decode_operation(EXAMPLE.encode()))


def test_extra_fields_are_ignored() -> None:
    """Whoever wrote a history may add fields of its own."""
    assert decode_operation(line(f=3, type="x")) == decode_operation(line())


def test_a_file_is_read_in_order_and_empty_lines_do_not_matter(tmp_path: Path) -> None:
    """A history is the operations of a file, in the file's order."""
    path = tmp_path / "h.jsonl"
    path.write_bytes(line(key="a") + b"\n\n" + line(key="b"))
    assert [op.key for op in read_history(path)] == ["a", "b"]


def test_a_file_that_is_written_is_read_back(tmp_path: Path) -> None:
    """Writing and reading are inverse, also for values that need escapes."""
    ops = [decode_operation(line(value=value)) for value in ("é\n\0", 1, 2.5, "", -7)]
    write_history(tmp_path / "h.jsonl", ops)
    assert read_history(tmp_path / "h.jsonl") == ops


def test_a_writer_counts_and_flushes(tmp_path: Path) -> None:
    """Whoever reads along sees what was flushed."""
    path = tmp_path / "h.jsonl"
    with HistoryWriter(path) as writer:
        writer.write(decode_operation(line()))
        writer.flush()
        assert (writer.count, len(read_history(path))) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"op": "swap"}, "invalid enum value 'swap'"),
        ({"status": "info"}, "invalid enum value 'info'"),
        ({"key": None}, "required field `key`"),
        ({"invoke": None}, "required field `invoke`"),
        ({"invoke": 1.5}, "expected `int`, got `float`"),
        ({"value": True}, "got `bool`"),
        ({"value": [1]}, "got `array`"),
        ({"return": "null"}, 'status "ok" has a "return"'),
        ({"return": 0}, 'is before "invoke"'),
        ({"status": "unknown"}, "stays open"),
        ({"value": None}, 'a put has a "value"'),
        ({"op": "cas"}, 'a cas has "expected"'),
        ({"op": "cas", "expected": 1, "output": 3}, "true, false or null"),
        ({"op": "cas", "expected": 1, "value": None}, 'a cas has a "value"'),
        ({"op": "get"}, 'has an "output"'),
        ({"op": "get", "output": False}, "a value or null"),
        ({"op": "append"}, "is a string"),
        ({"op": "append", "value": "a", "output": 3}, "the new string"),
        ({"op": "incr", "value": 1.5}, "is an integer"),
        ({"op": "incr", "output": "3"}, "the new integer"),
        ({"op": "delete", "output": 1}, "true, false or null"),
    ],
)
def test_a_broken_rule_is_named_with_file_and_line(
    tmp_path: Path, fields: dict[str, Any], rule: str
) -> None:
    """The message says which line of which file breaks which rule."""
    path = tmp_path / "h.jsonl"
    path.write_bytes(line() + b"\n" + line(**fields) + b"\n")
    with pytest.raises(HistoryError) as caught:
        read_history(path)
    assert caught.value.what.startswith(f"{path}:2: ")
    assert rule in caught.value.why
    assert caught.value.exit_code == EXIT_DATA


@pytest.mark.parametrize("text", [b"{", b"[]", b"put k v", b'{"process":"\xff"}'])
def test_what_is_no_object_is_refused_with_an_example(tmp_path: Path, text: bytes) -> None:
    """Whoever gives another format sees one good line."""
    path = tmp_path / "h.jsonl"
    path.write_bytes(text)
    with pytest.raises(HistoryError, match=r"h\.jsonl:1: this is not an operation") as caught:
        read_history(path)
    assert EXAMPLE in caught.value.try_[0]


def test_null_means_no_such_key_where_it_is_said() -> None:
    """A cas may expect, and a get may find, that there is no key; both must say so."""
    assert decode_operation(line(op="cas", expected="null")).expected is None
    assert decode_operation(line(op="get", value=None, output="null")).output is None


def test_failed_and_unknown_operations_need_no_answer() -> None:
    """An operation that failed may have a time of return; an unknown one has none."""
    assert decode_operation(line(op="get", value=None, status="fail")).return_ns == 2
    failed = decode_operation(line(status="fail", **{"return": "null"}))
    assert failed.return_ns is None
    unknown = decode_operation(line(op="get", value=None, status="unknown", **{"return": "null"}))
    assert unknown.return_ns is None
