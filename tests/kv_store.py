"""A key-value store with an index that counts on, spoken to in typed values."""

from __future__ import annotations

from zraft.machine.base import Ctx
from zraft.machine.kv import KV
from zraft.machine.kv_codec import (
    Range,
    Txn,
    encode_cas,
    encode_delete,
    encode_get,
    encode_put,
    encode_range,
    encode_txn,
)
from zraft.machine.kv_results import (
    CasResult,
    DeleteResult,
    KeyValue,
    RangeResult,
    TxnResult,
    decode_cas_result,
    decode_delete_result,
    decode_get_result,
    decode_put_result,
    decode_range_result,
    decode_txn_result,
)


class Store:
    """A KV and its index."""

    def __init__(self) -> None:
        self.kv = KV()
        self.index = 0

    def apply(self, command: bytes) -> bytes:
        self.index += 1
        return self.kv.apply(Ctx(self.index, 1, self.index * 10), command)

    def query(self, request: bytes) -> bytes:
        return self.kv.query(Ctx(self.index, 1, self.index * 10), request)

    def put(self, key: bytes, value: bytes) -> int:
        return decode_put_result(self.apply(encode_put(key, value)))

    def delete(self, key: bytes) -> DeleteResult:
        return decode_delete_result(self.apply(encode_delete(key)))

    def cas(self, key: bytes, expect: bytes | None, value: bytes) -> CasResult:
        return decode_cas_result(self.apply(encode_cas(key, expect, value)))

    def txn(self, txn: Txn) -> TxnResult:
        return decode_txn_result(self.apply(encode_txn(txn)))

    def get(self, key: bytes) -> KeyValue | None:
        return decode_get_result(self.query(encode_get(key))).item

    def range(self, query: Range) -> RangeResult:
        return decode_range_result(self.query(encode_range(query)))
