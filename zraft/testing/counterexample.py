"""From "there is no order" to something a person can look at: which operation, and which others.

The operation that cannot be placed is the first one, by returns, whose answer no order explains
together with everything that returned before it; of what was under way then, only that it was
asked for is taken into account. Its **core** is made small by weakening: a read is
dropped, a write becomes one with an unknown outcome, open for ever. Weakening only allows more
orders, so what still has none is a contradiction of the whole history as well: the answers of the
core contradict each other whatever the other operations did. (Leaving writes out, as shrinkers
usually do, would make up contradictions: a read of a value that nobody wrote.) `is_minimal` is true
when no operation of the core can be weakened any more; otherwise the time for shrinking was up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from zraft import clock
from zraft.testing.history import Operation, Value
from zraft.testing.key_problem import compile_key, fit_of, happened
from zraft.testing.key_values import OTHER_NUMBER, OTHER_TEXT
from zraft.testing.wing_gong import SearchResult, search

CORE_CONFIGURATIONS = 20_000
MAX_CONFIGURATIONS = 1_000_000
STATES_MS = 1_000
NOWHERE = "\0nowhere\0"  # a value that no history has


@dataclass(slots=True)
class Counterexample:
    """Why one key's history is not linearizable.

    `states` are the values that the key can have had when `operation` returned, in all orders that
    explain what returned before; null is no such key. `has_other_states`: and some that nobody
    looked for. `concurrent` were under way at the same time. `core` are the operations that
    contradict each other, with `operation`, by invocation; they are among `count` of this key.
    """

    key: str
    operation: Operation
    why: str
    states: list[Value | None]
    has_other_states: bool
    concurrent: list[Operation]
    core: list[Operation]
    is_minimal: bool
    count: int


def explain(part: Sequence[Operation], found: SearchResult, *, max_ms: int) -> Counterexample:
    """Return the counterexample for a key on which the search found no order.

    Args:
        part: all operations of the key.
        found: what `search` returned for `happened(part)`.
        max_ms: how long to make the core smaller.
    """
    operations = happened(part)
    guilty = _find_guilty(operations, found)
    end_ns = guilty.return_ns
    assert end_ns is not None
    before = [op for op in operations if op.invoke_ns <= end_ns and op is not guilty]
    certain = _returned_by(before, end_ns)
    states, has_others = _states(before, certain, guilty)
    core, is_minimal = _shrink(before, certain, guilty, clock.monotonic_ms() + max_ms)
    return Counterexample(
        key=guilty.key,
        operation=guilty,
        why=_why(guilty, part, [] if has_others else states),
        states=states,
        has_other_states=has_others,
        concurrent=[
            op for op in before if op.return_ns is None or op.return_ns >= guilty.invoke_ns
        ],
        core=sorted([*core, guilty], key=lambda op: (op.invoke_ns, op is guilty)),
        is_minimal=is_minimal,
        count=len(part),
    )


def weaken(op: Operation) -> list[Operation]:
    """Return what remains of an operation whose answer is not believed: nothing, or a maybe."""
    if fit_of(op)[0] != "writes":
        return []
    return [msgspec.structs.replace(op, status="unknown", return_ns=None, output=None)]


def _with_certain(before: Sequence[Operation], certain: set[int]) -> list[Operation]:
    """Return all operations, those whose ids are not in `certain` weakened."""
    kept: list[Operation] = []
    for op in before:
        if id(op) in certain:
            kept.append(op)
        else:
            kept.extend(weaken(op))
    return kept


def _returned_by(operations: Sequence[Operation], time_ns: int) -> list[Operation]:
    return [op for op in operations if op.return_ns is not None and op.return_ns <= time_ns]


def _find_guilty(operations: Sequence[Operation], found: SearchResult) -> Operation:
    """Return the first answer, by returns, that what was known by then cannot explain.

    The search stops there or earlier: it also knows the answers of operations that were still under
    way, and those may be the ones that are wrong. More answers never make more orders possible, so
    the first one is found by halving.
    """
    assert found.place is not None
    done = [op for op in operations if op.return_ns is not None]
    done.sort(key=lambda op: op.return_ns or 0)
    bound = 2 * found.configurations + CORE_CONFIGURATIONS

    def contradicts(last: int) -> bool:
        end_ns = done[last].return_ns or 0
        asked = [op for op in operations if op.invoke_ns <= end_ns]
        problem = compile_key(_with_certain(asked, set(map(id, done[: last + 1]))))
        return search(problem, max_configurations=bound).verdict == "not-linearizable"

    stuck = operations[found.place]
    searched = bool(found.states)  # else it is the first of its kind, but perhaps not of all
    low = next((place for place, op in enumerate(done) if op is stuck and searched), 0)
    high = len(done) - 1
    if contradicts(low):
        high = low
    while low < high:
        middle = (low + high) // 2
        if contradicts(middle):
            high = middle
        else:
            low = middle + 1
    return done[high]


def _states(
    before: Sequence[Operation], certain: Sequence[Operation], guilty: Operation
) -> tuple[list[Value | None], bool]:
    """Return the values that the key can have had when `guilty` returned, and if there are others.

    A read that nothing can explain takes the place of `guilty`: the search tries all orders and
    ends there.
    """
    probe = msgspec.structs.replace(guilty, op="get", expected=None, value=None, output=NOWHERE)
    operations = [*_with_certain(before, set(map(id, certain))), probe]
    until_ms = clock.monotonic_ms() + STATES_MS

    def is_late() -> bool:
        return clock.monotonic_ms() >= until_ms

    for concrete in (True, False):
        problem = compile_key(operations, concrete=concrete, must_search=True)
        bound = CORE_CONFIGURATIONS if concrete else MAX_CONFIGURATIONS
        result = search(problem, max_configurations=bound, is_late=is_late)
        if result.verdict == "not-linearizable":
            numbers = [state for state in result.states if state not in {OTHER_TEXT, OTHER_NUMBER}]
            values = [problem.effects.values[number] for number in numbers]
            return values, len(numbers) < len(result.states)
        until_ms += STATES_MS
    return [], True


def _shrink(
    before: Sequence[Operation], certain: Sequence[Operation], guilty: Operation, until_ms: int
) -> tuple[list[Operation], bool]:
    """Return the smallest set of certain operations found that contradicts `guilty`."""

    def is_late() -> bool:
        return clock.monotonic_ms() >= until_ms

    def contradicts(some: Sequence[Operation]) -> bool:
        problem = compile_key([*_with_certain(before, set(map(id, some))), guilty])
        found = search(problem, max_configurations=CORE_CONFIGURATIONS, is_late=is_late)
        return found.verdict == "not-linearizable"

    by_return = sorted(certain, key=lambda op: op.return_ns or 0)
    related = [op for op in by_return if guilty.output is not None and op.value == guilty.output]
    core = list(by_return)
    size = 4
    while size < len(by_return) and not is_late():
        latest = by_return[-size:]
        some = latest + [op for op in related if not any(op is other for other in latest)]
        if contradicts(some):
            core = some
            break
        size *= 4
    return _leave_out(core, contradicts, is_late)


def _leave_out(
    core: list[Operation],
    contradicts: Callable[[Sequence[Operation]], bool],
    is_late: Callable[[], bool],
) -> tuple[list[Operation], bool]:
    """Leave out ever smaller runs of operations as long as the rest contradicts."""
    size = max(1, len(core) // 2)
    while core:
        start = 0
        smaller = False
        while start < len(core):
            if is_late():
                return core, False
            rest = core[:start] + core[start + size :]
            if contradicts(rest):
                core, smaller = rest, True
            else:
                start += size
        if size == 1 and not smaller:
            break
        size = max(1, size // 2)
    return core, True


def _why(op: Operation, part: Sequence[Operation], states: Sequence[Value | None]) -> str:
    """Say in one sentence what is wrong with an operation's answer."""
    match op.op:
        case "get" if op.output is None:
            return "a read found no such key, and it was there"
        case "get" if any(other.op in {"append", "incr"} for other in part):
            return _why_read_of_sum(op, states)
        case "get":
            return _why_read(op, part)
        case "cas" if op.output is True:
            return f"a cas said true, and the key can not have been {spell(op.expected)}"
        case "cas":
            return f"a cas said false, and the key can only have been {spell(op.expected)}"
        case "delete" if op.output is True:
            return "a delete said true, and there was nothing to delete"
        case "delete":
            return "a delete said false, and there was something to delete"
        case _ if op.output is not None:
            return f"an {op.op} returned {spell(op.output)}, which no order of operations gives"
        case _:
            return f"a {op.op} has no place in any order"


def _why_read_of_sum(op: Operation, states: Sequence[Value | None]) -> str:
    """Say what is wrong with a read where values grow."""
    seen = op.output
    longer = [isinstance(s, str) and isinstance(seen, str) and s.startswith(seen) for s in states]
    if longer and all(longer):
        return f"a read returned {spell(seen)} without what was appended to it before"
    return f"a read returned {spell(seen)}, which no order of operations gives"


def _why_read(op: Operation, part: Sequence[Operation]) -> str:
    assert op.return_ns is not None
    writers = [other for other in part if other.is_write and other.value == op.output]
    done = [other for other in writers if other.status != "fail" and fit_of(other)[0] == "writes"]
    if not done:
        failed = "a value whose write had failed for certain"
        return f"a read returned {failed if writers else 'a value that nobody wrote'}"
    if all(other.invoke_ns > op.return_ns for other in done):
        return "a read returned a value before it was written"
    if all(other.return_ns is not None and other.return_ns < op.invoke_ns for other in done):
        return "a read returned a value that was already overwritten"
    return "a read returned a value that the key can not have had at any moment of the read"


def spell(value: Value | bool | None) -> str:
    """Return a value as a person reads it: strings in quotes, cut when long; null is "no key"."""
    if value is None:
        return "no key"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 40 else f'"{value[:16]}…{value[-16:]}"'
    return str(value).lower() if isinstance(value, bool) else str(value)
