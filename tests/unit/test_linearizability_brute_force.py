"""The judge against a checker that tries every order, on thousands of small random histories."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from tests.small_histories import KINDS, is_linearizable, random_history
from zraft.testing.counterexample import Counterexample, weaken
from zraft.testing.history import Operation
from zraft.testing.index_order import follows_index, is_indexed
from zraft.testing.key_problem import compile_key, fit_of, happened
from zraft.testing.linearizability import check_history
from zraft.testing.wing_gong import search

SEEDS = 4_000
PARTS = 4


def told(history: list[Operation]) -> str:
    """Return a history for the message of a failure."""
    return "\n".join(str(op) for op in sorted(history, key=lambda op: op.invoke_ns))


@pytest.mark.parametrize("part", range(PARTS))
def test_the_search_agrees_with_all_orders(part: int) -> None:
    """Same verdict on every history, and both verdicts, all operations, all outcomes occur."""
    verdicts: Counter[bool] = Counter()
    seen: Counter[str] = Counter()
    for seed in range(part * SEEDS // PARTS, (part + 1) * SEEDS // PARTS):
        history = random_history(random.Random(seed))
        expected = is_linearizable(history)
        for concrete in (False, True):
            problem = compile_key(happened(history), concrete=concrete)
            found = search(problem, max_configurations=1_000_000)
            assert (found.verdict == "linearizable") == expected, f"seed {seed}\n{told(history)}"
        verdicts[expected] += 1
        seen.update({f"{op.op} {op.status}" for op in history})
    assert min(verdicts[True], verdicts[False]) >= SEEDS // PARTS // 4, verdicts
    outcomes = {f"{op} {status}" for op in KINDS["all"] for status in ("ok", "fail", "unknown")}
    assert outcomes <= set(seen)
    assert min(seen.values()) >= 5, seen


def test_the_counterexample_is_the_first_answer_that_no_order_explains() -> None:
    """Without its operation there is an order, with it there is none, by the other checker too."""
    checked = 0
    for seed in range(1_200):
        history = random_history(random.Random(seed), most=6)
        if is_linearizable(history):
            continue
        (found,) = check_history(history).counterexamples
        check_blame(history, found, f"seed {seed}\n{told(history)}")
        checked += 1
    assert checked >= 300


def check_blame(history: list[Operation], found: Counterexample, message: str) -> None:
    """Fail when another operation is to blame, or the core is no contradiction."""
    guilty = found.operation
    end_ns = guilty.return_ns
    assert end_ns is not None
    others = [op for op in happened(history) if op is not guilty and op.invoke_ns <= end_ns]
    earlier = [op for op in others if op.return_ns is not None and op.return_ns < end_ns]
    assert is_linearizable([*believing(others, earlier), *weaken(guilty)]), message
    until = [op for op in others if op.return_ns is not None and op.return_ns <= end_ns]
    assert not is_linearizable([*believing(others, until), guilty]), message
    core = [op for op in found.core if op is not guilty]
    assert not is_linearizable([*believing(others, core), guilty]), message
    if found.is_minimal:
        for op in core:
            fewer = [other for other in core if other is not op]
            assert is_linearizable([*believing(others, fewer), guilty]), message


def believing(operations: list[Operation], believed: list[Operation]) -> list[Operation]:
    """Return a history in which only some answers are believed."""
    kept: list[Operation] = []
    for op in operations:
        kept.extend([op] if any(op is other for other in believed) else weaken(op))
    return kept


def test_an_order_that_the_log_proves_exists() -> None:
    """With random indices: where the log explains everything, some order does."""
    proved = refused = 0
    for seed in range(3_000):
        rng = random.Random(seed)
        history = [with_index(rng, op) for op in random_history(rng, most=6)]
        operations = happened(history)
        if not is_indexed(operations):
            continue
        if follows_index(operations):
            proved += 1
            assert is_linearizable(history), f"seed {seed}\n{told(history)}"
        else:
            refused += 1
    assert min(proved, refused) >= 100, (proved, refused)


def with_index(rng: random.Random, op: Operation) -> Operation:
    """Return an operation with the index that a log gave it, more or less in order of time."""
    unknown = op.status == "unknown" and rng.random() < 0.5
    if op.status == "fail" or unknown or fit_of(op)[0] != "writes":
        return op
    index = op.invoke_ns * 1_000_000 + rng.randrange(2_000_000)
    return msgspec.structs.replace(op, note={"index": index})


def test_an_honest_log_always_proves_its_history() -> None:
    """Where every answer is what the log's order gives, in real time, no search is needed."""
    proved = 0
    for seed in range(500):
        rng = random.Random(seed)
        state: int | None = None
        history = []
        for index in range(1, rng.randint(2, 30)):
            at_ns = 10 * index
            window = {
                "invoke_ns": at_ns - rng.randint(0, 40),
                "return_ns": at_ns + rng.randint(0, 40),
            }
            fields: dict[str, Any] = {"process": index, "key": "k", "status": "ok", **window}
            if rng.random() < 0.5:
                history.append(Operation(op="get", output=state, **fields))
            elif rng.random() < 0.3:
                expected = rng.choice((state, 0))
                done = state == expected
                note = {"index": index}
                fields |= {"expected": expected, "value": index, "output": done, "note": note}
                history.append(Operation(op="cas", **fields))
                state = index if done else state
            else:
                history.append(Operation(op="put", value=index, note={"index": index}, **fields))
                state = index
        rng.shuffle(history)
        result = check_history(history)
        assert (result.verdict, result.index_proved) == ("linearizable", 1), f"seed {seed}"
        proved += 1
    assert proved == 500
