"""The store against a plain dict: any sequence of commands, with snapshots in between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zraft.machine.base import CommandError, Ctx
from zraft.machine.kv import KV, item_hash
from zraft.machine.kv_codec import (
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
    changes_once,
    decode_command,
    encode_cas,
    encode_delete,
    encode_put,
    encode_range,
    encode_txn,
    in_range,
)
from zraft.machine.kv_results import (
    KeyValue,
    RangeResult,
    decode_cas_result,
    decode_delete_result,
    decode_put_result,
    decode_range_result,
    decode_txn_result,
)

KEYS = st.binary(min_size=1, max_size=2).map(lambda key: bytes(byte % 4 for byte in key))
VALUES = st.binary(max_size=3)
ENDS = st.none() | st.just(b"") | KEYS
COMPARES = st.builds(
    Compare, st.just(Target.VALUE), st.sampled_from(list(Relation)), KEYS, VALUES
) | st.builds(
    Compare,
    st.sampled_from([Target.VERSION, Target.CREATE_REVISION, Target.MOD_REVISION]),
    st.sampled_from(list(Relation)),
    KEYS,
    st.integers(0, 9),
)
OPERATIONS = st.lists(
    st.builds(Put, KEYS, VALUES)
    | st.builds(Delete, KEYS)
    | st.builds(Get, KEYS)
    | st.builds(DeleteRange, KEYS, ENDS)
    | st.builds(Range, KEYS | st.just(b""), ENDS, st.integers(0, 3), st.just(RangeFlag.NONE)),
    max_size=5,
).filter(changes_once)
COMMANDS = (
    st.builds(Put, KEYS, VALUES)
    | st.builds(Delete, KEYS)
    | st.builds(Cas, KEYS, st.none() | VALUES, VALUES)
    | st.builds(Txn, st.lists(COMPARES, max_size=2), OPERATIONS, OPERATIONS)
)


class Model:
    """The store as one would write it without a thought for speed."""

    def __init__(self) -> None:
        self.items: dict[bytes, KeyValue] = {}
        self.revision = 1

    def put(self, key: bytes, value: bytes, revision: int) -> None:
        old = self.items.get(key)
        created, version = (old.create_revision, old.version + 1) if old else (revision, 1)
        self.items[key] = KeyValue(key, value, created, revision, version, 0)

    def range(self, start: bytes, end: bytes | None) -> list[KeyValue]:
        return [self.items[key] for key in sorted(self.items) if in_range(key, start, end)]

    def holds(self, compare: Compare) -> bool:
        item = self.items.get(compare.key)
        numbers = item[4:1:-1] if item else (0, 0, 0)  # version, mod, create
        found: Any
        if compare.target == Target.VALUE:
            if item is None:
                return False
            found = item.value
        elif compare.target == Target.VERSION:
            found = numbers[0]
        else:
            found = numbers[2 if compare.target == Target.CREATE_REVISION else 1]
        operand: Any = compare.operand
        return bool(
            {
                Relation.EQUAL: found == operand,
                Relation.NOT_EQUAL: found != operand,
                Relation.LESS: found < operand,
                Relation.GREATER: found > operand,
            }[compare.relation]
        )

    def operate(self, operations: list[Operation], revision: int) -> Iterator[Any]:
        for operation in operations:
            match operation:
                case Put():
                    self.put(operation.key, operation.value, revision)
                    yield None
                case Delete():
                    yield int(self.items.pop(operation.key, None) is not None)
                case Get():
                    yield self.items.get(operation.key)
                case DeleteRange():
                    found = self.range(operation.start, operation.end)
                    for item in found:
                        del self.items[item.key]
                    yield len(found)
                case Range():
                    found = self.range(operation.start, operation.end)
                    yield found[: operation.limit or None], len(found)

    def apply(self, command: Put | Delete | Cas | Txn) -> Any:
        before, following = dict(self.items), self.revision + 1
        answer: Any = None
        match command:
            case Put():
                self.put(command.key, command.value, following)
            case Delete():
                answer = int(self.items.pop(command.key, None) is not None)
            case Cas():
                old = self.items.get(command.key)
                answer = (old.value if old else None) == command.expect
                if answer:
                    self.put(command.key, command.value, following)
            case Txn():
                succeeded = all(self.holds(compare) for compare in command.compares)
                branch = command.then if succeeded else command.otherwise
                answer = succeeded, list(self.operate(list(branch), following))
        if self.items != before:
            self.revision = following
        return answer


def encode(command: Put | Delete | Cas | Txn) -> bytes:
    match command:
        case Put():
            return encode_put(command.key, command.value)
        case Delete():
            return encode_delete(command.key)
        case Cas():
            return encode_cas(command.key, command.expect, command.value)
        case Txn():
            return encode_txn(command)


def check_answer(command: Put | Delete | Cas | Txn, result: bytes, answer: Any, rev: int) -> None:
    """The store's answer says what the model says, at the model's revision."""
    match command:
        case Put():
            assert decode_put_result(result) == rev
        case Delete():
            assert decode_delete_result(result) == (rev, answer)
        case Cas():
            assert decode_cas_result(result)[:2] == (rev, answer)
        case Txn():
            decoded = decode_txn_result(result)
            assert decoded[:2] == (rev, answer[0])
            responses = [
                (response.items, response.total) if isinstance(response, RangeResult) else response
                for response in decoded.responses
            ]
            assert responses == answer[1]


@given(st.lists(COMMANDS, max_size=30), st.data())
def test_the_store_is_a_dict_with_revisions(
    commands: list[Put | Delete | Cas | Txn], data: st.DataObject
) -> None:
    """Same answers, same state, and a sum that can be computed afresh at any time."""
    kv, model = KV(), Model()
    frozen: list[tuple[Any, int, list[bytes]]] = []
    for index, command in enumerate(commands, 1):
        if data.draw(st.integers(0, 5)) == 0:
            frozen.append((iter(kv.snapshot()), kv.digest(), []))
        body = encode(command)
        assert decode_command(body) == command
        result = kv.apply(Ctx(index, 1, index), body)
        check_answer(command, result, model.apply(command), model.revision)
        items = decode_range_result(kv.query(Ctx(index, 1, index), encode_range(Range(b"", b""))))
        assert items.items == model.range(b"", b"")
        assert len(kv._keys) == len(kv._items)
        assert all(key in kv._items for key in kv._keys)
        total = sum(item_hash(item.key, item.value, item.mod_revision) for item in items.items)
        assert kv._sum == total % (1 << 64)
    for view, digest, chunks in frozen:
        copy = KV()
        copy.restore([*chunks, *view])
        assert copy.digest() == digest


@given(st.binary(max_size=40))
def test_no_bytes_make_the_store_raise_anything_but_a_refusal(garbage: bytes) -> None:
    """CommandError or a result, and the refusal changes nothing."""
    kv = KV()
    kv.apply(Ctx(1, 1, 0), encode_put(b"x", b"1"))
    for run in (kv.apply, kv.query):
        try:
            run(Ctx(2, 1, 0), garbage)
        except CommandError:
            assert kv.revision == 2
