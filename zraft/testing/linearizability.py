"""The judge: is there an order of the operations that explains what every client was told?

`check_history` takes operations of any number of keys and says linearizable, not-linearizable or
undecided. A history is linearizable when each key's part is (Herlihy and Wing's locality), so every
key is judged alone: first by the order of the log, if the writes carry their indices
(`index_order`), then by a search (`wing_gong`) over what `key_problem` makes of it.

Keys whose search is hard get a small budget first and a large one when all others are done: one
hard key hides no violation of another. `undecided` means that a bound was reached, and never that
something is wrong. What cannot be explained is made small and put into words by `counterexample`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zraft import clock
from zraft.testing.counterexample import Counterexample, explain
from zraft.testing.history import Operation
from zraft.testing.index_order import follows_index, is_indexed
from zraft.testing.key_problem import compile_key, happened
from zraft.testing.wing_gong import SearchResult, Verdict, search

FIRST_CONFIGURATIONS = 20_000
MAX_CONFIGURATIONS = 2_000_000  # about 200 MB
EXPLAIN_MS = 3_000
MAX_COUNTEREXAMPLES = 10


@dataclass(slots=True)
class CheckResult:
    """The verdict on a history, and what it rests on.

    `index_proved` keys needed no search. On `index_differs` keys an order exists, but it is not
    that of the log, although every write names its index and none is unknown: the system or its
    notes contradict what clients saw.
    """

    verdict: Verdict
    operations: int = 0
    keys: int = 0
    not_linearizable: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    counterexamples: list[Counterexample] = field(default_factory=list)
    configurations: int = 0
    index_proved: int = 0
    index_differs: list[str] = field(default_factory=list)
    elapsed_ms: int = 0


def check_history(
    operations: Iterable[Operation],
    *,
    timeout_ms: int | None = None,
    max_configurations: int = MAX_CONFIGURATIONS,
    use_index: bool = True,
) -> CheckResult:
    """Judge a history.

    Args:
        operations: in any order.
        timeout_ms: for the searches of all keys together; None: no bound, and the verdict depends
            on nothing but the history. Explaining a violation takes a few seconds more at most.
        max_configurations: how many the search of one key may remember, at about 100 bytes each.
        use_index: believe an order that the log proves; False searches always.
    """
    began_ms = clock.monotonic_ms()
    end_ms = None if timeout_ms is None else began_ms + timeout_ms
    parts = partition(operations)
    result = CheckResult("linearizable", sum(map(len, parts.values())), len(parts))
    judge = _Judge(result, end_ms, use_index)
    small = min(FIRST_CONFIGURATIONS, max_configurations)
    hard = [key for key, part in parts.items() if not judge.decide(key, part, small)]
    for key in hard:
        if small == max_configurations or not judge.decide(key, parts[key], max_configurations):
            result.undecided.append(key)
    explained = result.not_linearizable[:MAX_COUNTEREXAMPLES]
    for key in explained:
        found = judge.violations[key]
        max_ms = EXPLAIN_MS // len(explained)
        result.counterexamples.append(explain(parts[key], found, max_ms=max_ms))
    if result.not_linearizable:
        result.verdict = "not-linearizable"
    elif result.undecided:
        result.verdict = "undecided"
    result.elapsed_ms = clock.monotonic_ms() - began_ms
    return result


def partition(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Return the operations of each key."""
    parts: dict[str, list[Operation]] = {}
    for op in operations:
        parts.setdefault(op.key, []).append(op)
    return parts


class _Judge:
    """Decides key after key, and keeps what was found in the result."""

    def __init__(self, result: CheckResult, end_ms: int | None, use_index: bool) -> None:
        self.violations: dict[str, SearchResult] = {}
        self._result = result
        self._end_ms = end_ms
        self._use_index = use_index

    def is_late(self) -> bool:
        """Tell whether the time is up."""
        return self._end_ms is not None and clock.monotonic_ms() >= self._end_ms

    def decide(self, key: str, part: Sequence[Operation], max_configurations: int) -> bool:
        """Judge one key, return whether it is decided now."""
        operations = happened(part)
        indexed = self._use_index and is_indexed(operations)
        if indexed and follows_index(operations):
            self._result.index_proved += 1
            return True
        if self.is_late():
            return False
        found = search(
            compile_key(operations), max_configurations=max_configurations, is_late=self.is_late
        )
        self._result.configurations += found.configurations
        if found.verdict == "undecided":
            return False
        if found.verdict == "not-linearizable":
            self.violations[key] = found
            self._result.not_linearizable.append(key)
        elif indexed and all(op.status == "ok" for op in operations):
            self._result.index_differs.append(key)
        return True
