"""The search for an order that explains one key's history: Wing and Gong's, with Lowe's memo.

J. Wing, C. Gong, "Testing and Verifying Concurrent Objects" (1993); G. Lowe, "Testing for
Linearizability" (2017). The search goes through the returns in order. What had to be placed before
a return is placed as late as possible, when that return is reached ("just in time"), so a
configuration is small: which level, which of the operations pending there are placed already, how
many unknown writes of each class were used, and the value. A configuration that was tried is not
tried again. One that used no more unknown writes than another, and is equal otherwise, can do
everything that the other can, so the other is not tried either.

There is no recursion; the number of configurations and the time are bounded, and a search that
reaches a bound is undecided. The furthest level that was reached, and no order passes, names the
operation that cannot be placed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from zraft.testing.key_problem import KeyProblem, Level
from zraft.testing.key_values import ABSENT

Verdict = Literal["linearizable", "not-linearizable", "undecided"]

LOOK_EVERY = 1024  # configurations between two looks at the clock
STATE_BITS = 32
STACK_FACTOR = 4  # what waits to be tried may be this many times what may be remembered

Configuration = tuple[int, int, int, int]
"""Level, mask of what is placed of its pending operations, unknown writes used, value."""


@dataclass(slots=True)
class SearchResult:
    """What the search found. `place` and `states` are set when there is no order.

    `place` is the operation that cannot be placed: there is an order for everything that returned
    before it, and none for it as well. `states` are the values the key can have when it returns;
    there are none when it found what nobody can have written, which takes no search.
    """

    verdict: Verdict
    configurations: int
    place: int | None = None
    states: tuple[int, ...] = ()


def search(
    problem: KeyProblem,
    *,
    max_configurations: int,
    is_late: Callable[[], bool] = lambda: False,
) -> SearchResult:
    """Look for an order.

    Args:
        problem: of one key.
        max_configurations: how many may be remembered; one takes about 100 bytes.
        is_late: asked now and then; true ends the search.
    """
    if problem.impossible is not None:
        return SearchResult("not-linearizable", 0, problem.impossible)
    levels = problem.levels
    last = len(levels)
    seen: list[dict[int, list[int]]] = [{} for _ in levels]
    stack: list[Configuration] = [(0, 0, 0, ABSENT)]
    count = furthest = 0
    while stack:
        place, mask, used, state = stack.pop()
        while place < last:
            level = levels[place]
            mask |= level.fits.get(state, 0)
            if level.misfits:
                mask |= level.misfits & ~level.misfit_at.get(state, 0)
            if not mask & level.bit:
                break
            mask ^= level.bit
            place += 1
        else:
            return SearchResult("linearizable", count)
        key = mask << STATE_BITS | state
        before = seen[place].get(key)
        if before is None:
            seen[place][key] = [used]
        elif _is_dominated(used, before, problem.guards):
            continue
        else:
            before.append(used)
        furthest = max(furthest, place)
        count += 1
        full = count >= max_configurations or len(stack) > STACK_FACTOR * max_configurations
        if full or (not count % LOOK_EVERY and is_late()):
            return SearchResult("undecided", count)
        _push_next(problem, level, (place, mask, used, state), stack)
    states = tuple(sorted({key & ((1 << STATE_BITS) - 1) for key in seen[furthest]}))
    return SearchResult("not-linearizable", count, levels[furthest].place, states)


def _is_dominated(used: int, before: list[int], guards: int) -> bool:
    """Tell whether one of `before` used no more of any class; counts are compared all at once."""
    raised = used | guards
    return any((raised - other) & guards == guards for other in before)


def _push_next(
    problem: KeyProblem, level: Level, at: Configuration, stack: list[Configuration]
) -> None:
    """Add what can come next. What is tried first is pushed last: what the level's own operation
    waits for, then writes by their returns, then unknown ones."""
    place, mask, used, state = at
    tables, apply = problem.effects.tables, problem.effects.apply
    wanted = level.wanted
    fitting: list[Configuration] = []
    if level.options or level.cas_options:
        for option in (*level.options, *level.cas_options.get(state, ())):
            if used >> option.shift & option.ones >= option.limit:
                continue
            after = tables[option.effect].get(state)
            if after is None:
                after = apply(option.effect, state)
            if after >= 0 and after != state:
                stack.append((place, mask, used + (1 << option.shift), after))
    for effect, bits in reversed(level.groups):
        for bit in bits:
            if not mask & bit:
                break
        else:
            continue
        after = tables[effect].get(state)
        if after is None:
            after = apply(effect, state)
        if after >= 0:
            chosen = fitting if after == wanted else stack
            chosen.append((place, mask | bit, used, after))
    stack += fitting
