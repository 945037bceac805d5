"""A second check, in linear time: does the order of the log explain what clients saw?

When every write that succeeded carries its log index (`note.index`), there is no need to search:
the log is one order of all writes, and there is nothing better to try for a correct system. This
module replays the writes of a key in that order, places each operation that changed nothing at the
first point where it fits, and checks real time. What it finds is an explicit linearization, whether
the notes are honest or not, so "yes" is a proof. "No" is none: an unknown write without an index
may be missing, or a note may be wrong. Then the search decides, and if it finds an order that the
log does not have, the two disagree: `linearizability` reports that, since a log whose indices
contradict what clients saw is a bug of the system or of its notes.

Why the first point is enough: the points that an operation may take are an interval (after all
writes that returned before it was invoked, before all that were invoked after it returned), and
an earlier point only leaves more room to the operations that come after it in real time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import heappop, heappush

from zraft.testing.history import Operation
from zraft.testing.key_problem import NEVER_NS, fit_of
from zraft.testing.key_values import ABSENT, ILLEGAL, Effects


def index_of(op: Operation) -> int | None:
    """Return the log index that an operation's note names."""
    index = op.note.get("index")
    return index if type(index) is int else None


def is_indexed(operations: Sequence[Operation]) -> bool:
    """Tell whether every write that succeeded has an index, each its own."""
    indices = [index_of(op) for op in operations if op.status == "ok" and fit_of(op)[0] == "writes"]
    return None not in indices and len(set(indices)) == len(indices)


def follows_index(operations: Sequence[Operation]) -> bool:
    """Tell whether the order of the log is a linearization of one key's operations.

    Args:
        operations: as `key_problem.happened` returns them, and `is_indexed`. Unknown writes with
            an index were applied there, those without one were not.
    """
    effects = Effects(operations, concrete=True)
    writes, others = [], []
    for op in operations:
        index = index_of(op)
        if fit_of(op)[0] != "writes":
            others.append(op)
        elif index is not None:
            writes.append((index, op))
    writes.sort(key=lambda write: write[0])
    states, latest_begin, earliest_end = [ABSENT], [-NEVER_NS], []
    for _, op in writes:
        sure = op.status == "ok" and op.output is True
        state = effects.apply(effects.effect_of(op, sure=sure), states[-1])
        end_ns = NEVER_NS if op.return_ns is None else op.return_ns
        begin_ns = max(latest_begin[-1], op.invoke_ns)
        if state == ILLEGAL or begin_ns > end_ns:
            return False
        states.append(state)
        latest_begin.append(begin_ns)
        earliest_end.append(end_ns)
    earliest_end.append(NEVER_NS)
    for place in range(len(earliest_end) - 2, -1, -1):  # of all writes after a point
        earliest_end[place] = min(earliest_end[place], earliest_end[place + 1])
    return _place_others(others, effects, states, latest_begin, earliest_end)


def _place_others(
    others: list[Operation],
    effects: Effects,
    states: list[int],
    latest_begin: list[int],
    earliest_end: list[int],
) -> bool:
    """Place what changed nothing: point i is after i writes, where the value is states[i]."""
    points_of: dict[int, list[int]] = {}
    for point, state in enumerate(states):
        points_of.setdefault(state, []).append(point)
    under_way: list[tuple[int, int]] = []  # heap of (return, point)
    highest = 0  # point of all that returned before the present one was invoked
    for op in sorted(others, key=lambda other: other.invoke_ns):
        assert op.return_ns is not None
        while under_way and under_way[0][0] < op.invoke_ns:
            highest = max(highest, heappop(under_way)[1])
        low = max(highest, bisect_left(earliest_end, op.invoke_ns))
        high = bisect_right(latest_begin, op.return_ns) - 1
        fit = _first_fit(op, effects, states, points_of, low, high)
        if fit is None:
            return False
        heappush(under_way, (op.return_ns, fit))
    return True


def _first_fit(
    op: Operation,
    effects: Effects,
    states: list[int],
    points_of: dict[int, list[int]],
    low: int,
    high: int,
) -> int | None:
    kind, value = fit_of(op)
    number = effects.number(value)
    if kind == "finds":
        points = points_of.get(number, [])
        place = bisect_left(points, low)
        return points[place] if place < len(points) and points[place] <= high else None
    return next((point for point in range(low, high + 1) if states[point] != number), None)
