"""What operations do to one key, over small numbers instead of values.

`Effects` numbers the values of one key's history and the effects of its operations, and says what a
value becomes by an effect. It knows nothing of time.

**Values that nobody looks for are one value.** A value is *looked for* when some operation can tell
it apart from others: a get returned it, a cas expects it, an append or incr returned it. All other
strings behave alike: no get returns them, no cas matches them, a delete finds something. So they
share one number, and all other numbers (the mathematical ones) share another. This merges states of
the search and makes writes interchangeable; it changes no verdict. A cas with an unknown outcome
looks for what it expects only if somebody looks for what it writes; otherwise it turns one value
that nobody tells apart into another. With appends in the history a string counts as looked for when
it is the beginning of one, because appends can still complete it; one that is not can never become
one. With incrs every number counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from zraft.testing.history import Operation, Value

ABSENT = 0
OTHER_TEXT = 1
OTHER_NUMBER = 2
ILLEGAL = -1

EffectKey = tuple[object, ...]
"""("put", value) · ("delete", must) · ("cas", expected, value, must) ·
("append", text, output) · ("incr", by, output): values are numbers, `must` means that the
operation certainly found what it needs, texts and outputs are as in the history."""

UNSEEN = ("unseen",)
"""In the place of an append's text: one that is in no value that anybody looks for."""


class Effects:
    """The values and effects of one key.

    With `concrete` all values that were certainly written are told apart, and so is everything that
    appends can make: for reports, where a person wants to see them, at a higher price.
    """

    def __init__(self, operations: Iterable[Operation], *, concrete: bool = False) -> None:
        """Find out which values of these operations are looked for."""
        operations = list(operations)
        self.values: list[Value | None] = [None, None, None]
        self.keys: list[EffectKey] = []
        self.tables: list[dict[int, int]] = []
        self._concrete = concrete
        self._number_of: dict[Value, int] = {}
        self._effect_of: dict[EffectKey, int] = {}
        self._appends = self._incrs = False
        self._looked_for: set[Value] = set()
        for op in operations:
            self._look(op)
        self._look_through(operations)
        if concrete and not self._appends:
            written = (op.value for op in operations if op.status == "ok")
            self._looked_for.update(value for value in written if value is not None)
        self._texts = sorted(v for v in self._looked_for if isinstance(v, str))

    def _look(self, op: Operation) -> None:
        done = op.status == "ok"
        match op.op:
            case "cas":
                if done and op.expected is not None:
                    self._looked_for.add(op.expected)
                return
            case "append":
                self._appends = True
            case "incr":
                self._incrs = True
            case "get":
                pass
            case "put" | "delete":
                return
        if done and op.output is not None:
            self._looked_for.add(op.output)

    def _look_through(self, operations: list[Operation]) -> None:
        """Look for what unknown cas expect, where the value they write is looked for as well."""
        maybe = [op for op in operations if op.op == "cas" and op.status != "ok"]
        if self._appends or self._incrs:
            self._looked_for.update(op.expected for op in maybe if op.expected is not None)
            return
        sources: dict[Value | None, list[Value]] = {}
        for op in maybe:
            if op.expected is not None:
                sources.setdefault(op.value, []).append(op.expected)
        found = list(self._looked_for)
        while found:
            for source in sources.pop(found.pop(), ()):
                self._looked_for.add(source)
                found.append(source)

    def number(self, value: Value | None) -> int:
        """Return the number of a value; the same one for all those that nobody can tell apart."""
        if value is None:
            return ABSENT
        number = self._number_of.get(value)
        if number is None:
            if self._is_looked_for(value):
                number = len(self.values)
                self.values.append(value)
            else:
                number = OTHER_TEXT if isinstance(value, str) else OTHER_NUMBER
            self._number_of[value] = number
        return number

    def _is_looked_for(self, value: Value) -> bool:
        if not isinstance(value, str):
            return self._incrs or value in self._looked_for
        if not self._appends:
            return value in self._looked_for
        if self._concrete:
            return True
        place = bisect_left(self._texts, value)  # those that begin with it stand from here on
        return place < len(self._texts) and self._texts[place].startswith(value)

    def is_unseen(self, text: str) -> bool:
        """Tell whether no value that is looked for contains a text."""
        return not self._concrete and not any(text in seen for seen in self._texts)

    def effect(self, key: EffectKey) -> int:
        """Return the number of an effect; equal effects have equal numbers."""
        number = self._effect_of.get(key)
        if number is None:
            number = self._effect_of[key] = len(self.keys)
            self.keys.append(key)
            self.tables.append({})
        return number

    def effect_of(self, op: Operation, *, sure: bool) -> int:
        """Return the effect of a write. `sure`: it is known to have done what it was meant to."""
        match op.op:
            case "put":
                key: EffectKey = ("put", self.number(op.value))
            case "delete":
                key = ("delete", sure)
            case "cas":
                key = ("cas", self.number(op.expected), self.number(op.value), sure)
            case "append":
                assert isinstance(op.value, str)
                told = op.output if op.status == "ok" else None
                unseen = told is None and self.is_unseen(op.value)
                key = ("append", UNSEEN if unseen else op.value, told)
            case "incr":
                key = (
                    "incr",
                    1 if op.value is None else op.value,
                    op.output if op.status == "ok" else None,
                )
            case "get":
                raise AssertionError("a get has no effect")
        return self.effect(key)

    def apply(self, effect: int, state: int) -> int:
        """Return what a value becomes, ILLEGAL when the operation can not have met this value."""
        result = self._compute(self.keys[effect], state)
        self.tables[effect][state] = result
        return result

    def _compute(self, key: EffectKey, state: int) -> int:
        match key:
            case ("put", int(number)):
                return number
            case ("delete", must):
                return ILLEGAL if must and state == ABSENT else ABSENT
            case ("cas", int(expected), int(number), must):
                if state == expected:
                    return number
                return ILLEGAL if must else state
            case ("append", text, output):
                return self._append(state, text, output)
            case ("incr", int(by), output):
                value = self.values[state]
                if isinstance(value, str) or state in {OTHER_TEXT, OTHER_NUMBER}:
                    return ILLEGAL
                total = (value or 0) + by
                return self.number(total) if output in {None, total} else ILLEGAL
            case _:
                raise AssertionError(key)

    def _append(self, state: int, text: object, output: object) -> int:
        value = self.values[state]
        if state == OTHER_NUMBER or isinstance(value, int | float):
            return ILLEGAL
        if state == OTHER_TEXT or not isinstance(text, str):
            return OTHER_TEXT if output is None else ILLEGAL
        result = (value or "") + text
        return self.number(result) if output in {None, result} else ILLEGAL

    def spell(self, state: int) -> Value | None:
        """Return the value of a number; the two shared ones are spelled in words."""
        if state in {OTHER_TEXT, OTHER_NUMBER}:
            return "(a value that nobody read)"
        return self.values[state]
