"""One key's history made ready for the search: what must be placed, what may be, and by when.

`compile_key` turns operations into `Level`s, one for every operation that returned and has to be
placed, in the order of the returns. It takes these steps, and none of them changes the verdict:

1. Operations that failed did not happen. Gets with an unknown outcome tell nothing.
2. **Windows are closed by unique values.** If only one operation of the history can have written a
   value, and an operation that certainly happened found that value, then the write happened, and
   before that operation returned: the write's window ends there at the latest, an unknown outcome
   becomes a known one, and the finder's window does not begin before the write's. All three follow
   from the history, so no order is lost. Without this an unknown write stays open for ever and
   doubles the work of everything after it. A value that nobody found closes nothing, but it is not
   told apart from others either (`key_values`), and that makes such writes interchangeable. One
   that was found before anybody began to write it has no order, without a search.
3. Operations that change nothing, as their output tells (get; cas and delete that said false), are
   not placed one by one: a level says which of them fit which value, and the search takes them as
   soon as they fit. That is sound because moving such an operation to an earlier point of its
   window, where it fits as well, disturbs nobody.
4. Unknown writes with the same effect are a class: they have no end, so any order can use the one
   that was invoked first, first. The search counts how many of a class were used.

Two events at the same nanosecond count as concurrent: returns come after invocations.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zraft.testing.history import Operation, Value
from zraft.testing.key_values import Effects

NEVER_NS = 1 << 200
"""When a write with an unknown outcome returns."""

Groups = tuple[tuple[int, tuple[int, ...]], ...]


class Option(NamedTuple):
    """A class of unknown writes: `effect`, where its count stands, how many were invoked by now."""

    effect: int
    shift: int
    ones: int
    limit: int


class Level(NamedTuple):
    """What is pending when an operation, the level's own, returns.

    `bit` is its place in the masks of this level, `wanted` the value that it must find if it
    changes nothing (else -1). `groups` are the pending writes by effect, each with the bits of its
    members, the one that returns first first. `fits[value]` is the mask of the pending operations
    that find just this value. `misfits` are those that must not find the value that
    `misfit_at` lists them under. `options` may be used in any state, `cas_options[value]` in this.
    """

    bit: int
    wanted: int
    groups: Groups
    fits: dict[int, int]
    misfits: int
    misfit_at: dict[int, int]
    options: tuple[Option, ...]
    cas_options: dict[int, tuple[Option, ...]]
    place: int  # of the level's own operation in the history of the key


@dataclass(slots=True)
class KeyProblem:
    """See the module. `guards` has a bit above the count of each class of unknown writes."""

    effects: Effects
    levels: list[Level]
    guards: int
    impossible: int | None  # an operation that found what nobody can have written: no search


@dataclass(slots=True)
class _Windows:
    """When each operation of a key can have happened, by its place in the history."""

    operations: Sequence[Operation]
    begin_ns: list[int] = field(init=False)
    end_ns: list[int] = field(init=False)
    closed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.begin_ns = [op.invoke_ns for op in self.operations]
        self.end_ns = [_end_of(op) for op in self.operations]

    def must_be_placed(self, place: int) -> bool:
        """Whether an operation certainly happened."""
        return self.operations[place].status == "ok" or place in self.closed

    def is_sure(self, place: int) -> bool:
        """Whether a cas or delete certainly found what it needs."""
        op = self.operations[place]
        return (op.status == "ok" and op.output is True) or place in self.closed

    def rank(self, place: int) -> int:
        """Return how returns at the same nanosecond are ordered: those that were seen first."""
        return 1 if self.end_ns[place] == self.operations[place].return_ns else 2

    def found(self, place: int) -> Value | None:
        """Return the value that an operation certainly found, None when there is none."""
        op = self.operations[place]
        if op.op == "get":
            found = op.output if op.status == "ok" else None
            assert found is not True
            assert found is not False
            return found
        return op.expected if op.op == "cas" and self.is_sure(place) else None


def _end_of(op: Operation) -> int:
    if op.status == "unknown" or op.return_ns is None:
        return NEVER_NS
    return op.return_ns


class _Writers:
    """Who can have written a value. What appends and incrs may have made is left open."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._first_ns: dict[Value, int] = {}
        self._sole: dict[Value, int] = {}
        self._counts = any(op.op == "incr" for op in operations)
        texts = {op.value for op in operations if op.op == "append"}
        self._endings = tuple(text for text in texts if isinstance(text, str))
        for place, op in enumerate(operations):
            if op.op == "put" or (op.op == "cas" and fit_of(op)[0] == "writes"):
                assert op.value is not None
                known_ns = self._first_ns.get(op.value, NEVER_NS)
                self._sole[op.value] = place if known_ns == NEVER_NS else -1
                self._first_ns[op.value] = min(known_ns, op.invoke_ns)

    def sole(self, value: Value) -> int | None:
        """Return the one operation that can have written a value, None if there is not just one."""
        place = self._sole.get(value, -1)
        return None if place < 0 or self._is_sum(value) else place

    def could_be_by(self, value: Value, time_ns: int) -> bool:
        """Tell whether somebody had begun by then who could have written it."""
        return self._first_ns.get(value, NEVER_NS) <= time_ns or self._is_sum(value)

    def _is_sum(self, value: Value) -> bool:
        return value.endswith(self._endings) if isinstance(value, str) else self._counts


def _close_windows(windows: _Windows) -> int | None:
    """Do step 2. Finders are taken by their ends, so that each window is closed once, rightly.

    Return the first one that found what nobody can have written by then, None when there is none.
    """
    operations = windows.operations
    writers = _Writers(operations)
    begin_ns, end_ns = windows.begin_ns, windows.end_ns
    finders = [
        place
        for place, op in enumerate(operations)
        if op.status == "ok" and windows.found(place) is not None
    ]
    finders.sort(key=lambda place: end_ns[place])
    impossible: int | None = None
    for first in finders:
        value = windows.found(first)
        assert value is not None
        if impossible is None and not writers.could_be_by(value, end_ns[first]):
            impossible = first
        finder: int | None = first
        while finder is not None:
            value = windows.found(finder)
            writer = None if value is None else writers.sole(value)
            if writer is None or end_ns[writer] <= end_ns[finder]:
                break
            if begin_ns[writer] > end_ns[finder]:
                break  # found before it was written: the search will say so
            end_ns[writer] = end_ns[finder]
            if operations[writer].status == "unknown":
                windows.closed.add(writer)
            finder = writer
    for finder in finders:
        value = windows.found(finder)
        writer = None if value is None else writers.sole(value)
        if writer is not None and begin_ns[writer] <= end_ns[finder]:
            begin_ns[finder] = max(begin_ns[finder], begin_ns[writer])
    return impossible


class _Pending:
    """What is pending at a moment, kept while the events of a key go by."""

    def __init__(self, effects: Effects, windows: _Windows, shifts: dict[int, tuple[int, int]]):
        self._effects = effects
        self._windows = windows
        self._shifts = shifts
        self._free: list[int] = []
        self._bits: dict[int, int] = {}
        self._writes: list[tuple[int, int, int, int]] = []  # (end, rank, place, effect), sorted
        self._fits: dict[int, int] = {}
        self._misfit_at: dict[int, int] = {}
        self._misfits = 0
        self._invoked: dict[int, int] = {}  # class of unknown writes -> how many
        self._groups: Groups | None = ()
        self._options: tuple[tuple[Option, ...], dict[int, tuple[Option, ...]]] | None = ((), {})

    def begin(self, place: int) -> None:
        """An operation that has to be placed is invoked."""
        bit = self._free.pop() if self._free else 1 << len(self._bits)
        self._bits[place] = bit
        self._toggle(place, bit)

    def end(self, place: int) -> None:
        """It returned, and its level is made."""
        bit = self._bits.pop(place)
        self._free.append(bit)
        self._toggle(place, bit)

    def begin_unknown(self, effect: int) -> None:
        """A write with an unknown outcome is invoked."""
        self._invoked[effect] = self._invoked.get(effect, 0) + 1
        self._options = None

    def _toggle(self, place: int, bit: int) -> None:
        op = self._windows.operations[place]
        kind, value = fit_of(op)
        if kind == "finds":
            number = self._effects.number(value)
            self._fits = _with_bit(self._fits, number, bit)
        elif kind == "misses":
            number = self._effects.number(value)
            self._misfit_at = _with_bit(self._misfit_at, number, bit)
            self._misfits ^= bit
        else:
            effect = self._effects.effect_of(op, sure=self._windows.is_sure(place))
            entry = (self._windows.end_ns[place], self._windows.rank(place), place, effect)
            if place in self._bits:
                insort(self._writes, entry)
            else:
                self._writes.remove(entry)
            self._groups = None

    def level(self, place: int) -> Level:
        """Return the level of an operation that is about to return."""
        if self._groups is None:
            groups: dict[int, tuple[int, ...]] = {}
            for _, _, member, effect in self._writes:
                groups[effect] = (*groups.get(effect, ()), self._bits[member])
            self._groups = tuple(groups.items())
        if self._options is None:
            self._options = self._list_options()
        options, cas_options = self._options
        kind, value = fit_of(self._windows.operations[place])
        wanted = self._effects.number(value) if kind == "finds" else -1
        return Level(
            self._bits[place],
            wanted,
            self._groups,
            self._fits,
            self._misfits,
            self._misfit_at,
            options,
            cas_options,
            place,
        )

    def _list_options(self) -> tuple[tuple[Option, ...], dict[int, tuple[Option, ...]]]:
        options: list[Option] = []
        cas_options: dict[int, tuple[Option, ...]] = {}
        for effect, count in self._invoked.items():
            option = Option(effect, *self._shifts[effect], count)
            key = self._effects.keys[effect]
            if key[0] == "cas":
                expected = key[1]
                assert isinstance(expected, int)
                cas_options[expected] = (*cas_options.get(expected, ()), option)
            else:
                options.append(option)
        return tuple(options), cas_options


def _with_bit(masks: dict[int, int], number: int, bit: int) -> dict[int, int]:
    """Return a copy with one bit turned; levels that were made keep theirs."""
    mask = masks.get(number, 0) ^ bit
    turned = {**masks, number: mask}
    if not mask:
        del turned[number]
    return turned


def fit_of(op: Operation) -> tuple[str, Value | None]:
    """Return what an operation that changed nothing must or must not have found.

    ("finds", value), ("misses", value), or ("writes", None) for one that may change something.
    """
    match op.op:
        case "get":
            assert op.output is not True
            assert op.output is not False
            return "finds", op.output
        case "delete" if op.status == "ok" and op.output is False:
            return "finds", None
        case "cas" if op.status == "ok" and op.output is False:
            return "misses", op.expected
        case _:
            return "writes", None


def happened(operations: Sequence[Operation]) -> list[Operation]:
    """Return the operations that say something: not those that failed, no gets without answer."""
    return [
        op for op in operations if op.status == "ok" or (op.status == "unknown" and op.op != "get")
    ]


def compile_key(
    operations: Sequence[Operation], *, concrete: bool = False, must_search: bool = False
) -> KeyProblem:
    """Return what the search has to solve for the operations of one key, in any order.

    Args:
        operations: of one key, as `happened` returns them.
        concrete: tell all values apart, for a report; it is slower and the verdict is the same.
        must_search: leave also to the search what is `impossible`, for the states it goes through.
    """
    effects = Effects(operations, concrete=concrete)
    windows = _Windows(operations)
    impossible = _close_windows(windows)
    if impossible is not None and not must_search:
        return KeyProblem(effects, [], 0, impossible)
    begins, ends = [], []
    sizes: dict[int, int] = {}
    for place, op in enumerate(operations):
        if windows.must_be_placed(place):
            begins.append((windows.begin_ns[place], 0, place, -1))
            ends.append((windows.end_ns[place], windows.rank(place), place, -1))
        else:
            effect = effects.effect_of(op, sure=False)
            sizes[effect] = sizes.get(effect, 0) + 1
            begins.append((windows.begin_ns[place], 0, place, effect))
    shifts: dict[int, tuple[int, int]] = {}
    guards = shift = 0
    for effect, size in sizes.items():
        width = size.bit_length()
        shifts[effect] = (shift, (1 << width) - 1)
        guards |= 1 << (shift + width)
        shift += width + 1
    pending = _Pending(effects, windows, shifts)
    levels = []
    for _, is_end, place, effect in sorted(begins + ends):
        if is_end:
            levels.append(pending.level(place))
            pending.end(place)
        elif effect >= 0:
            pending.begin_unknown(effect)
        else:
            pending.begin(place)
    return KeyProblem(effects, levels, guards, None)
