"""How fast the judge is: a big history of a correct store, and the same with one wrong answer."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from zraft import clock
from zraft.testing.history import Kind, Operation, Value, decode_operation, encode_operation
from zraft.testing.linearizability import check_history

OPERATIONS = 100_000
KEYS = 500
CLIENTS = 10
UNKNOWN = 0.01
LIMIT_MS = 30_000  # a third of it on a machine that does nothing else

FAMILIES: tuple[tuple[Kind, ...], ...] = (
    ("get", "put", "cas", "delete"),
    ("get", "append"),
    ("get", "incr"),
)


def big_history(seed: int) -> list[Operation]:
    """Return what clients of a correct store saw, one operation at a time for each of them."""
    rng = random.Random(seed)
    windows = []
    for client in range(CLIENTS):
        now_ns = 0
        for number in range(OPERATIONS // CLIENTS):
            begin_ns = now_ns + rng.randint(1, 5)
            point_ns = begin_ns + rng.randint(0, 200)
            now_ns = point_ns + rng.randint(0, 200)
            windows.append((point_ns, begin_ns, now_ns, f"c{client}", f"{client}.{number};"))
    states: dict[str, Value] = {}
    history = []
    for _, begin_ns, end_ns, process, token in sorted(windows):
        number = rng.randrange(KEYS)
        fields, after = act(rng, FAMILIES[number % len(FAMILIES)], states.get(f"k{number}"), token)
        unknown = rng.random() < UNKNOWN
        if not unknown or rng.random() < 0.5:
            states[f"k{number}"] = after  # type: ignore[assignment]  # None is "no key" here
        if unknown:
            fields |= {"output": None, "return_ns": None, "status": "unknown"}
        times = {"invoke_ns": begin_ns, "return_ns": end_ns, "status": "ok"}
        history.append(Operation(process=process, key=f"k{number}", **{**times, **fields}))
    return history


def act(
    rng: random.Random, family: tuple[Kind, ...], state: Value | None, token: str
) -> tuple[dict[str, Any], Value | None]:
    """Return the fields of a random operation, and the value after it."""
    match rng.choice(family):
        case "get":
            return {"op": "get", "output": state}, state
        case "put":
            return {"op": "put", "value": token}, token
        case "delete":
            return {"op": "delete", "output": state is not None}, None
        case "cas":
            expected = state if rng.random() < 0.6 else "another"
            done = expected == state
            fields = {"op": "cas", "expected": expected, "value": token, "output": done}
            return fields, token if done else state
        case "append":
            text = f"{state or ''}{token}"
            return {"op": "append", "value": token, "output": text}, text
        case "incr":
            assert not isinstance(state, str)
            return {"op": "incr", "value": 1, "output": (state or 0) + 1}, (state or 0) + 1


@pytest.mark.slow
def test_a_hundred_thousand_operations_are_judged_in_seconds() -> None:
    """All six operations, unknown outcomes among them: read, judged, right, and nothing open."""
    lines = [encode_operation(op) for op in big_history(1)]
    began_ms = clock.monotonic_ms()
    history = [decode_operation(line) for line in lines]
    result = check_history(history)
    elapsed_ms = clock.monotonic_ms() - began_ms
    assert (result.verdict, result.operations, result.keys) == ("linearizable", OPERATIONS, KEYS)
    assert elapsed_ms < LIMIT_MS, f"{elapsed_ms} ms for {OPERATIONS} operations"


@pytest.mark.slow
def test_one_wrong_answer_among_a_hundred_thousand_is_found() -> None:
    """A single stale read of one key is found, and it is the one that is named."""
    history = big_history(2)
    rng = random.Random(2)
    reads = [
        place
        for place, op in enumerate(history)
        if op.op == "get" and op.status == "ok" and op.key == "k3" and op.output is not None
    ]
    earlier, later = reads[3], reads[-1]
    assert history[earlier].output != history[later].output
    history[later] = msgspec.structs.replace(history[later], output=history[earlier].output)
    rng.shuffle(history)
    result = check_history(history)
    assert (result.verdict, result.not_linearizable) == ("not-linearizable", ["k3"])
    (found,) = result.counterexamples
    assert len(found.core) <= 6
