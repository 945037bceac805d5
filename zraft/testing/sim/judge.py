"""The judge that knows nothing but what clients saw."""

from __future__ import annotations

from collections.abc import Sequence

from zraft.testing.sim.history import Operation


def judge(operations: Sequence[Operation]) -> None:
    """Raise Violation if no order of the operations explains what the clients saw."""
    del operations
