"""The judge on histories that a person can follow: each operation, unknown outcomes, bounds."""

from __future__ import annotations

from typing import Any

import pytest

from zraft.testing.history import Kind, Operation, Value
from zraft.testing.linearizability import CheckResult, check_history


def op(
    kind: Kind,
    begin_ns: int,
    end_ns: int | None,
    value: Value | None = None,
    output: Value | bool | None = None,
    **fields: Any,
) -> Operation:
    """Return an operation on key k; without an end its outcome is unknown."""
    status = "unknown" if end_ns is None else "ok"
    given = {"process": 0, "key": "k", "status": status, **fields}
    return Operation(
        op=kind, value=value, output=output, invoke_ns=begin_ns, return_ns=end_ns, **given
    )


def put(begin_ns: int, end_ns: int | None, value: Value, **fields: Any) -> Operation:
    """Return a put."""
    return op("put", begin_ns, end_ns, value, **fields)


def get(begin_ns: int, end_ns: int, output: Value | None, **fields: Any) -> Operation:
    """Return a get that found `output`."""
    return op("get", begin_ns, end_ns, None, output, **fields)


def cas(
    begin_ns: int, end_ns: int | None, expected: Value | None, value: Value, output: bool | None
) -> Operation:
    """Return a cas."""
    return op("cas", begin_ns, end_ns, value, output, expected=expected)


def verdict(*operations: Operation, **options: Any) -> str:
    """Return the judge's verdict."""
    return check_history(operations, **options).verdict


OK, BAD = "linearizable", "not-linearizable"

CASES: dict[str, tuple[str, list[Operation]]] = {
    "nothing": (OK, []),
    "a key that was never written reads null": (OK, [get(1, 2, None)]),
    "a value from nowhere": (BAD, [get(1, 2, 7)]),
    "a read after a write sees it": (OK, [put(1, 2, 7), get(3, 4, 7)]),
    "a read after a write misses it": (BAD, [put(1, 2, 7), get(3, 4, None)]),
    "a read beside a write sees it": (OK, [put(1, 9, 7), get(3, 4, 7)]),
    "a read beside a write misses it": (OK, [put(1, 9, 7), get(3, 4, None)]),
    "one saw it, a later one did not": (BAD, [put(1, 9, 7), get(2, 3, 7), get(4, 5, None)]),
    "a return and an invocation at the same time overlap": (OK, [put(1, 3, 7), get(3, 4, None)]),
    "a read of an overwritten value": (BAD, [put(1, 2, 1), put(3, 4, 2), get(5, 6, 1)]),
    "two writes at once, in the other order": (OK, [put(1, 4, 1), put(1, 4, 2), get(5, 6, 1)]),
    "two readers disagree on the order": (
        BAD,
        [put(1, 4, 1), put(1, 4, 2), get(5, 6, 1), get(7, 8, 2)],
    ),
    "delete says there was one": (OK, [put(1, 2, 1), op("delete", 3, 4, output=True)]),
    "delete says there was none": (BAD, [put(1, 2, 1), op("delete", 3, 4, output=False)]),
    "delete of nothing says true": (BAD, [op("delete", 3, 4, output=True)]),
    "a deleted key reads null": (OK, [put(1, 2, 1), op("delete", 3, 4), get(5, 6, None)]),
    "a deleted key reads its value": (BAD, [put(1, 2, 1), op("delete", 3, 4), get(5, 6, 1)]),
    "cas of what is there": (OK, [put(1, 2, 1), cas(3, 4, 1, 2, True), get(5, 6, 2)]),
    "cas of what is not there says true": (BAD, [put(1, 2, 1), cas(3, 4, 3, 2, True)]),
    "cas of what is there says false": (BAD, [put(1, 2, 1), cas(3, 4, 1, 2, False)]),
    "cas that said false wrote": (BAD, [put(1, 2, 1), cas(3, 4, 3, 2, False), get(5, 6, 2)]),
    "cas of no key": (OK, [cas(1, 2, None, 2, True), cas(3, 4, None, 3, False), get(5, 6, 2)]),
    "only one cas of two can win": (BAD, [cas(1, 9, None, 1, True), cas(1, 9, None, 2, True)]),
    "a cas whose answer nobody looked at may have won": (
        OK,
        [put(1, 2, 1), cas(3, 4, 1, 2, None), get(5, 6, 2)],
    ),
    "and must have, if it found its value": (
        BAD,
        [put(1, 2, 1), cas(3, 4, 1, 2, None), get(5, 6, 1)],
    ),
    "append to nothing and to something": (
        OK,
        [op("append", 1, 2, "a", "a"), op("append", 3, 4, "b", "ab"), get(5, 6, "ab")],
    ),
    "append returned too little": (
        BAD,
        [op("append", 1, 2, "a", "a"), op("append", 3, 4, "b", "b")],
    ),
    "an append was lost": (
        BAD,
        [op("append", 1, 2, "a"), op("append", 3, 4, "b"), get(5, 6, "b")],
    ),
    "append after a put": (OK, [put(1, 2, "x"), op("append", 3, 4, "y"), get(5, 6, "xy")]),
    "append to a number can not succeed": (BAD, [put(1, 2, 1), op("append", 3, 4, "y")]),
    "incr counts from nothing": (
        OK,
        [op("incr", 1, 2, None, 1), op("incr", 3, 4, 5, 6), get(5, 6, 6)],
    ),
    "two incrs returned the same": (BAD, [op("incr", 1, 9, 1, 1), op("incr", 1, 9, 1, 1)]),
    "incr downwards": (OK, [put(1, 2, 3), op("incr", 3, 4, -4, -1), get(5, 6, -1)]),
    "incr of a string can not succeed": (BAD, [put(1, 2, "3"), op("incr", 3, 4, 1)]),
    "a failed write is not there": (OK, [put(1, 2, 7, status="fail"), get(3, 4, None)]),
    "a failed write was read": (BAD, [put(1, 2, 7, status="fail"), get(3, 4, 7)]),
    "an unknown write may never happen": (OK, [put(1, None, 7), get(3, 4, None)]),
    "it may happen at once": (OK, [put(1, None, 7), get(3, 4, 7)]),
    "it may happen late": (OK, [put(1, None, 7), get(3, 4, None), get(5, 6, 7)]),
    "it can not happen before it was asked for": (BAD, [put(5, None, 7), get(3, 4, 7)]),
    "it can not happen twice": (
        BAD,
        [put(1, None, 7), get(2, 3, 7), put(4, 5, 8), get(6, 7, 7)],
    ),
    "two unknown writes of a value can": (
        OK,
        [put(1, None, 7), put(1, None, 7), get(2, 3, 7), put(4, 5, 8), get(6, 7, 7)],
    ),
    "an unknown cas explains a value": (
        OK,
        [put(1, 2, 1), cas(3, None, 1, 2, None), get(5, 6, 1), get(7, 8, 2)],
    ),
    "an unknown cas needs what it expects": (
        BAD,
        [put(1, 2, 1), cas(3, None, 9, 2, None), get(5, 6, 2)],
    ),
    "a chain of unknown cas": (
        OK,
        [put(1, 2, 1), cas(3, None, 1, 2, None), cas(3, None, 2, 3, None), get(5, 6, 3)],
    ),
    "a chain the wrong way round": (
        BAD,
        [put(1, 2, 1), cas(3, None, 1, 2, None), cas(7, None, 2, 3, None), get(5, 6, 3)],
    ),
    "an unknown delete": (OK, [put(1, 2, 1), op("delete", 3, None), get(5, 6, None)]),
    "an unknown write that nobody read explains a cas that said false": (
        OK,
        [put(1, 2, 1), put(3, None, 99), cas(4, 5, 1, 2, False)],
    ),
    "but only until the value is back": (
        BAD,
        [put(1, 2, 1), put(3, None, 99), cas(4, 5, 1, 2, False), get(6, 7, 1)],
    ),
    "an unknown write that nobody read explains a delete that said true": (
        OK,
        [put(3, None, 99), op("delete", 4, 5, output=True), get(6, 7, None)],
    ),
    "unknown appends": (
        OK,
        [op("append", 1, None, "a"), op("append", 1, None, "b"), get(2, 3, "b"), get(4, 5, "ba")],
    ),
    "unknown incrs": (
        OK,
        [op("incr", 1, None, 1), op("incr", 1, None, 1), get(2, 3, 1), get(4, 5, 2)],
    ),
    "more than the unknown incrs can give": (BAD, [op("incr", 1, None, 1), get(2, 3, 2)]),
    "a read with an unknown outcome says nothing": (OK, [op("get", 1, None, None, 5)]),
    "1 and 1.0 are one number": (OK, [put(1, 2, 1), get(3, 4, 1.0)]),
    "1 and the text are two values": (BAD, [put(1, 2, 1), get(3, 4, "1")]),
    "the empty text is a value": (BAD, [put(1, 2, ""), get(3, 4, None)]),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    """Each case is what its name says."""
    expected, operations = CASES[name]
    assert verdict(*operations) == expected
    assert verdict(*reversed(operations)) == expected, "the order of the lines means nothing"


def test_keys_are_judged_alone() -> None:
    """A value of another key explains nothing, and only the bad key is named."""
    result = check_history([put(1, 2, 7, key="a"), get(3, 4, 7, key="b"), get(3, 4, 7, key="a")])
    assert (result.verdict, result.not_linearizable, result.keys) == (BAD, ["b"], 2)


def hard_history(writers: int) -> list[Operation]:
    """Return writes at once, and two reads that disagree on the last one: 2^writers states."""
    writes = [put(1, 100, number) for number in range(writers)]
    reads = [get(1, 100, number) for number in range(writers)]
    return [*writes, *reads, get(200, 201, 0), get(202, 203, 1)]


def test_a_search_that_reaches_its_bound_is_undecided() -> None:
    """Out of memory is not a verdict."""
    result = check_history(hard_history(24), max_configurations=1000)
    assert (result.verdict, result.undecided) == ("undecided", ["k"])
    assert result.counterexamples == []


def test_a_search_that_takes_too_long_is_undecided() -> None:
    """Out of time is not a verdict."""
    assert check_history(hard_history(24), timeout_ms=30).verdict == "undecided"


def test_a_hard_key_hides_no_violation() -> None:
    """One key that cannot be decided leaves the others to be judged, and "no" is the verdict."""
    easy = [put(1, 2, 7, key="z"), get(3, 4, None, key="z")]
    result = check_history([*hard_history(24), *easy], max_configurations=50_000)
    assert (result.verdict, result.undecided, result.not_linearizable) == (BAD, ["k"], ["z"])


def test_a_value_that_nobody_can_have_written_needs_no_search() -> None:
    """However hard the rest is, it is found at once, and the right read is named."""
    nowhere = get(300, 301, "nowhere")
    result = check_history([*hard_history(24)[:-1], nowhere])
    assert (result.verdict, result.configurations) == (BAD, 0)
    assert result.counterexamples[0].operation == nowhere


@pytest.mark.parametrize("expected", [OK, BAD])
def test_many_unknown_writes_are_cheap(expected: str) -> None:
    """A value that was read closes its writer's window; one that was not is like any other."""
    operations = []
    for number in range(300):
        at_ns = 100 * number
        operations.append(put(at_ns, None, f"u{number}"))
        operations.append(put(at_ns + 10, at_ns + 20, f"w{number}"))
        seen = f"u{number - number % 7}" if number % 7 == 0 else f"w{number}"
        operations.append(get(at_ns + 30, at_ns + 40, seen))
        operations.append(cas(at_ns + 50, at_ns + 60, "nowhere", "never", False))
    if expected == BAD:
        operations.append(get(30_001, 30_002, "w1"))
    result = check_history(operations)
    assert result.verdict == expected
    assert result.configurations < 100_000


def test_a_log_that_explains_everything_needs_no_search() -> None:
    """Indices that respect real time and match the reads are a proof."""
    operations = [
        put(1, 9, 1, note={"index": 4}),
        put(1, 9, 2, note={"index": 3}),
        get(2, 3, 2),
        cas(2, 4, 9, 9, False),
        get(10, 11, 1),
    ]
    result = check_history(operations)
    assert (result.verdict, result.index_proved, result.configurations) == (OK, 1, 0)


def test_a_log_that_contradicts_the_answers_is_reported() -> None:
    """An order exists, but the log has another one: the system or its notes are wrong."""
    result = check_history(
        [put(1, 2, 1, note={"index": 4}), put(3, 4, 2, note={"index": 3}), get(5, 6, 2)]
    )
    assert (result.verdict, result.index_proved, result.index_differs) == (OK, 0, ["k"])


def test_indices_prove_nothing_that_is_wrong() -> None:
    """Notes that explain a wrong answer do not make it right."""
    operations = [
        put(1, 2, 1, note={"index": 4}),
        put(3, 4, 2, note={"index": 3}),
        get(5, 6, 1),
    ]
    assert check_history(operations).verdict == BAD


def blamed(*operations: Operation) -> CheckResult:
    """Return the result for a history that has no order."""
    result = check_history(operations)
    assert result.verdict == BAD
    return result


def test_a_counterexample_names_the_operation_and_the_state_before_it() -> None:
    """A stale read: the read is to blame, and the newer value was the only one possible."""
    stale = get(50, 60, 40, process="c4", note={"node": "n2"})
    noise = [put(100 + n, 110 + n, 100 + n) for n in range(20)]
    (found,) = blamed(put(1, 2, 40), put(3, 4, 41), stale, get(5, 6, 41), *noise).counterexamples
    assert found.operation == stale
    assert found.states == [41]
    assert not found.has_other_states
    assert found.why == "a read returned a value that was already overwritten"
    assert found.count == 24
    assert found.is_minimal
    assert stale in found.core
    assert len(found.core) <= 3


def test_the_state_before_is_said_also_when_nobody_read_it() -> None:
    """Values that the search does not tell apart are told apart in the report."""
    (found,) = blamed(put(1, 2, 40), put(3, 4, 41), get(50, 60, 40)).counterexamples
    assert (found.states, found.has_other_states) == ([41], False)
    assert [op.value for op in found.core] == [40, 41, None]


def test_a_counterexample_lists_what_ran_at_the_same_time() -> None:
    """Unknown writes that are still open count as running."""
    open_, done, beside = put(1, None, 5), put(1, 2, 6), put(49, 70, 7)
    (found,) = blamed(open_, done, beside, get(50, 60, "x")).counterexamples
    assert found.concurrent == [open_, beside]
    assert found.why == "a read returned a value that nobody wrote"


def test_a_long_history_gets_a_small_core() -> None:
    """Of hundreds of operations those few are shown that contradict each other."""
    operations = []
    for number in range(400):
        operations.append(put(10 * number, 10 * number + 3, number))
        operations.append(get(10 * number + 5, 10 * number + 7, number))
    (found,) = blamed(*operations, get(9000, 9001, 17)).counterexamples
    assert len(found.core) <= 4
    assert found.is_minimal


@pytest.mark.parametrize(
    ("operations", "why"),
    [
        ([put(1, 2, 7, status="fail"), get(3, 4, 7)], "whose write had failed for certain"),
        ([put(5, 6, 7), get(3, 4, 7)], "before it was written"),
        ([put(1, 2, 7), get(3, 4, None)], "found no such key"),
        ([put(1, 2, 7), cas(3, 4, 8, 9, True)], "can not have been 8"),
        ([put(1, 2, 7), cas(3, 4, 7, 9, False)], "can only have been 7"),
        ([put(1, 2, 7), op("delete", 3, 4, None, False)], "there was something"),
        ([op("delete", 3, 4, None, True)], "there was nothing"),
        ([op("incr", 1, 2, 1), op("incr", 3, 4, 1, 1)], "an incr returned 1"),
        ([op("append", 1, 2, "a"), op("append", 3, 4, "b"), get(5, 6, "a")], "without what"),
    ],
)
def test_a_counterexample_says_what_is_wrong(operations: list[Operation], why: str) -> None:
    """One sentence, by the kind of the operation."""
    assert why in blamed(*operations).counterexamples[0].why
