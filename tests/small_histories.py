"""Small random histories of one key, and a checker that tries every order: what the judge is
judged by.

`random_history` draws operations that overlap a lot, over few values, with equal times, failures
and unknown outcomes. Half of them are what a correct store would have answered, with now and then
one answer changed; the others have answers drawn at random. `is_linearizable` follows the
definition word for word: some of the unknown writes, all that succeeded, in any order that respects
real time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

from zraft.testing.history import Kind, Operation, Value

KINDS: dict[str, tuple[Kind, ...]] = {
    "register": ("get", "put"),
    "cas": ("get", "put", "cas", "delete"),
    "append": ("get", "append", "put", "delete"),
    "list": ("get", "append"),
    "count": ("get", "incr", "delete"),
    "all": ("get", "put", "delete", "cas", "append", "incr"),
}

IMPOSSIBLE: Literal["impossible"] = "impossible"


def step(op: Operation, state: Value | None) -> tuple[Value | None, Any]:
    """Return the value after an operation and its answer; IMPOSSIBLE where it makes no sense."""
    match op.op:
        case "get":
            return state, state
        case "put":
            return op.value, None
        case "delete":
            return None, state is not None
        case "cas":
            return (op.value, True) if state == op.expected else (state, False)
        case "append":
            if state is not None and not isinstance(state, str):
                return state, IMPOSSIBLE
            text = (state or "") + str(op.value)
            return text, text
        case "incr":
            if isinstance(state, str):
                return state, IMPOSSIBLE
            by = 1 if op.value is None else op.value
            assert not isinstance(by, str)
            return (state or 0) + by, (state or 0) + by


def is_linearizable(operations: Sequence[Operation]) -> bool:
    """Try every order."""
    return _can_place([op for op in operations if op.status != "fail"], None)


def _can_place(left: list[Operation], state: Value | None) -> bool:
    if all(op.status == "unknown" for op in left):
        return True
    returns = [op.return_ns for op in left if op.return_ns is not None]
    for place, op in enumerate(left):
        if any(end_ns < op.invoke_ns for end_ns in returns):
            continue  # another one returned before this one was invoked, and is not placed yet
        after, answer = step(op, state)
        if answer == IMPOSSIBLE:
            continue
        looked_at = op.status == "ok" and op.op != "put" and (op.output is not None or _is_get(op))
        if looked_at and answer != op.output:
            continue
        if _can_place(left[:place] + left[place + 1 :], after):
            return True
    return False


def _is_get(op: Operation) -> bool:
    return op.op == "get"


def random_history(rng: random.Random, *, most: int = 7) -> list[Operation]:
    """Draw a history of up to `most` operations."""
    kinds = KINDS[rng.choice(sorted(KINDS))]
    count = rng.randint(2, most)
    unique = rng.random() < 0.4
    honest = rng.random() < 0.6
    chance_unknown = rng.choice((0.0, 0.2, 0.5))
    span_ns = rng.randint(2, 12)
    drafts = []
    for number in range(count):
        begin_ns = rng.randint(0, 12)
        end_ns = begin_ns + rng.randint(0, span_ns)
        kind = rng.choice(kinds)
        drafts.append(
            Operation(
                process=f"c{number}",
                op=kind,
                key="k",
                expected=_draw(rng, kinds, number, False) if kind == "cas" else None,
                value=_value(rng, kind, kinds, number, unique),
                invoke_ns=begin_ns,
                return_ns=end_ns,
                status="ok",
            )
        )
    return _answered(rng, drafts, kinds, honest, chance_unknown)


def _value(
    rng: random.Random, kind: Kind, kinds: tuple[Kind, ...], number: int, unique: bool
) -> Value | None:
    match kind:
        case "get" | "delete":
            return None
        case "incr":
            return rng.choice((None, 1, 2))
        case "append":
            return f"{number};" if unique else rng.choice(("a", "b"))
        case _:
            drawn = _draw(rng, kinds, number, unique)
            return "a" if drawn is None else drawn


def _draw(rng: random.Random, kinds: tuple[Kind, ...], number: int, unique: bool) -> Value | None:
    if "append" in kinds and "incr" not in kinds:
        return f"{number};" if unique else rng.choice(("a", "b", "ab", None))
    if "append" in kinds:
        return rng.choice(("a", "ab", 1, 2, None))
    return 10 + number if unique else rng.choice((1, 2, None))


def _answered(
    rng: random.Random,
    drafts: list[Operation],
    kinds: tuple[Kind, ...],
    honest: bool,
    chance_unknown: float,
) -> list[Operation]:
    """Answer as a store does that takes effect at some point of each window, or as a liar does."""
    points = [
        (rng.uniform(op.invoke_ns, op.return_ns or 0), number) for number, op in enumerate(drafts)
    ]
    state: Value | None = None
    history: list[Operation] = []
    for _, number in sorted(points):
        op = drafts[number]
        fields: dict[str, Any] = {name: getattr(op, name) for name in op.__struct_fields__}
        after, answer = step(op, state)
        fate = rng.random()
        if fate < chance_unknown:
            fields |= {"status": "unknown", "return_ns": None}
            state = after if rng.random() < 0.5 else state
        elif fate > 0.95 or answer == IMPOSSIBLE:
            fields |= {"status": "fail"}
        else:
            lies = not honest or rng.random() < 0.08
            fields["output"] = _lie(rng, op, kinds) if lies else answer
            if op.op == "put" or (op.op != "get" and rng.random() < 0.2):
                fields["output"] = None
            state = after
        history.append(Operation(**fields))
    rng.shuffle(history)
    return history


def _lie(rng: random.Random, op: Operation, kinds: tuple[Kind, ...]) -> Value | bool | None:
    match op.op:
        case "get":
            return _draw(rng, kinds, rng.randint(0, 6), rng.random() < 0.3)
        case "cas" | "delete":
            return rng.random() < 0.5
        case "append":
            return f"{rng.choice(('', 'a', 'b'))}{op.value}"
        case _:
            return rng.randint(1, 3)
