"""Hands the clients' history to the judge that knows nothing but what clients saw.

The run has checked every answer against the log already; this asks the other question, whether the
log was needed at all to explain them. Indices are left out: an order has to be found.
"""

from __future__ import annotations

from collections.abc import Sequence

from zraft.api import Consistency
from zraft.testing.history import Kind, Status
from zraft.testing.history import Operation as Judged
from zraft.testing.linearizability import check_history
from zraft.testing.sim.history import Operation
from zraft.testing.sim.trace import Violation

MAX_CONFIGURATIONS = 200_000


def judge(operations: Sequence[Operation]) -> list[str]:
    """Return the keys on which the search gave up.

    Raises:
        Violation: no order of the operations explains what the clients saw.
    """
    judged = [
        to_judged(operation)
        for operation in operations
        if operation.status != "open" and operation.consistency != Consistency.STALE
    ]
    result = check_history(judged, max_configurations=MAX_CONFIGURATIONS, use_index=False)
    if result.not_linearizable:
        texts = [
            f"key {found.key}: {found.operation.op} by {found.operation.process}: {found.why}"
            for found in result.counterexamples
        ]
        raise Violation(f"not linearizable: {'; '.join(texts)}")
    return result.undecided


def to_judged(operation: Operation) -> Judged:
    """Return an operation in the format of histories; simulated microseconds as nanoseconds."""
    status: Status = "unknown"
    if operation.status in {"ok", "fail"}:
        status = "ok" if operation.status == "ok" else "fail"
    kind: Kind = operation.kind  # type: ignore[assignment]  # one of the four that are drawn
    return Judged(
        process=operation.process,
        op=kind,
        key=operation.key.decode(),
        expected=None if operation.expected is None else operation.expected.decode(),
        value=None if operation.value is None else operation.value.decode(),
        output=_text(operation.output) if status == "ok" else None,
        invoke_ns=operation.invoke_us * 1000,
        return_ns=None if status == "unknown" else operation.return_us * 1000,
        status=status,
        note={"index": operation.index, "term": operation.term},
    )


def _text(value: object) -> str | bool | None:
    if isinstance(value, bytes):
        return value.decode()
    assert value is None or isinstance(value, bool)
    return value
