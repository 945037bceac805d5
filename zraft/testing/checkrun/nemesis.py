"""What breaks a cluster during a check run: one class per kind of fault, and the registry of them.

A nemesis breaks one thing when it is told to (`strike`) and undoes it when its time is over
(`undo`). It draws from the run's generator only, and what it reports is what really happened: a
kill that found nobody to kill is None. A new kind is a class with these two methods, named in
`NEMESES`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

from zraft import clock
from zraft.client.faults import FaultView
from zraft.control_api import Action
from zraft.errors import ControlError, NotFound
from zraft.testing.checkrun.field import Field, Strike
from zraft.testing.checkrun.operations import Membership, Snapshot, Transfer

GRACE_MS = 3_000  # a fault heals by itself so long after it should have been undone
OWNER = "check"
MAX_LINKS = 4


class Nemesis(Protocol):
    """One kind of fault."""

    def strike(self, field: Field) -> Strike | None:
        """Break something, and return what; None when there was nothing to break."""
        ...

    def undo(self, field: Field, strike: Strike) -> None:
        """End a fault whose time is over; note in it how often it was felt."""
        ...


class _Signal:
    """Kills or pauses a node; the supervisor undoes it after its time."""

    def __init__(self, action: Action, most_ms: int) -> None:
        self._action = action
        self._most_ms = most_ms

    def strike(self, field: Field) -> Strike | None:
        """Do it to one node."""
        name = field.victim()
        if name is None:
            return None
        for_ms = field.rng.randint(50, self._most_ms)
        (result,) = field.cluster.act(self._action, [name], for_ms=for_ms)
        if result.failure is not None or not result.changed:
            return None
        return Strike(
            kind=self._action,
            nodes=[name],
            what=f"{self._action} {name} for {for_ms}ms",
            began_ns=result.mono_ns or clock.monotonic_ns(),
            until_ms=clock.now_ms() + for_ms,
        )

    def undo(self, field: Field, strike: Strike) -> None:
        """Do nothing: the supervisor starts and resumes."""


Maker = Callable[[Field, int], FaultView]
"""Puts a fault on the links of a cluster, for so many ms, and returns it."""


class _Links:
    """Breaks links between nodes, and heals them after their time; clients still reach all."""

    def __init__(self, make: Maker, most_ms: int) -> None:
        self._make = make
        self._most_ms = most_ms
        self._ids: dict[int, str] = {}  # the ids of the faults of strikes, by their beginnings

    def strike(self, field: Field) -> Strike | None:
        """Put the fault in force in all living nodes."""
        for_ms = field.rng.randint(300, self._most_ms)
        began_ns = clock.monotonic_ns()
        fault = self._make(field, for_ms + GRACE_MS)
        self._ids[began_ns] = fault.id
        nodes = sorted({name for link in fault.links for name in link})
        sides = " | ".join(",".join(group) for group in fault.groups)
        where = sides or ",".join(f"{one}:{other}" for one, other in fault.links[:MAX_LINKS])
        more = "" if sides or len(fault.links) <= MAX_LINKS else ",…"
        return Strike(
            kind=fault.kind,
            nodes=nodes,
            what=f"{fault.kind} {where}{more} for {for_ms}ms",
            began_ns=began_ns,
            until_ms=clock.now_ms() + for_ms,
            hits=0,
        )

    def undo(self, field: Field, strike: Strike) -> None:
        """Heal it, and note how many messages it met."""
        with contextlib.suppress(NotFound):  # it took longer than the grace, and healed by itself
            healed = field.cluster.faults.heal(self._ids.pop(strike.began_ns))
            strike.hits = sum(fault.hits for fault in healed)


def _some(field: Field) -> list[str]:
    """Return a random minority of the nodes, often with the leader in it."""
    names = list(field.names)
    size = field.rng.randint(1, max(1, (len(names) - 1) // 2))
    field.rng.shuffle(names)
    leader = field.leader()
    if leader is not None and field.rng.random() < 0.5:
        names.remove(leader)
        names.insert(0, leader)
    return sorted(names[:size])


def _partition(field: Field, for_ms: int) -> FaultView:
    return field.cluster.faults.partition([_some(field)], for_ms=for_ms, owner=OWNER)


def _one_way(field: Field, for_ms: int) -> FaultView:
    """Let some nodes hear nobody, or nobody hear them."""
    some = _some(field)
    rest = [name for name in field.names if name not in some]
    pair = (some, rest) if field.rng.random() < 0.5 else (rest, some)
    return field.cluster.faults.one_way(*pair, for_ms=for_ms, owner=OWNER)


def _links_of(field: Field) -> list[tuple[str, str]]:
    some = _some(field)
    return [link for link in field.cluster.faults.all_links() if set(link) & set(some)]


def _drop(field: Field, for_ms: int) -> FaultView:
    links, rate = _links_of(field), field.rng.choice((0.1, 0.3, 0.6))
    seed = field.rng.getrandbits(31)
    return field.cluster.faults.drop(links, rate, seed=seed, for_ms=for_ms, owner=OWNER)


def _delay(field: Field, for_ms: int) -> FaultView:
    links, delay_ms = _links_of(field), field.rng.choice((5, 50, 200))
    seed = field.rng.getrandbits(31)
    return field.cluster.faults.delay(
        links, delay_ms, jitter_ms=delay_ms // 2, seed=seed, for_ms=for_ms, owner=OWNER
    )


def _duplicate(field: Field, for_ms: int) -> FaultView:
    links, seed = _links_of(field), field.rng.getrandbits(31)
    return field.cluster.faults.duplicate(links, 0.3, seed=seed, for_ms=for_ms, owner=OWNER)


def _reorder(field: Field, for_ms: int) -> FaultView:
    links, seed = _links_of(field), field.rng.getrandbits(31)
    return field.cluster.faults.reorder(links, 0.3, seed=seed, for_ms=for_ms, owner=OWNER)


def _corrupt(field: Field, for_ms: int) -> FaultView:
    links, seed = _links_of(field), field.rng.getrandbits(31)
    return field.cluster.faults.corrupt(links, 0.1, seed=seed, for_ms=for_ms, owner=OWNER)


NEMESES: dict[str, Callable[[], Nemesis]] = {
    "kill": lambda: _Signal("kill", 800),
    "pause": lambda: _Signal("pause", 1_500),
    "partition": lambda: _Links(_partition, 2_500),
    "one-way": lambda: _Links(_one_way, 2_500),
    "drop": lambda: _Links(_drop, 2_500),
    "delay": lambda: _Links(_delay, 2_500),
    "duplicate": lambda: _Links(_duplicate, 2_500),
    "reorder": lambda: _Links(_reorder, 2_500),
    "corrupt": lambda: _Links(_corrupt, 2_500),
    "membership": Membership,
    "transfer": Transfer,
    "snapshot": Snapshot,
}

PILING = frozenset({"kill", "pause"})
"""Kinds of which the next one does not wait for the end of the last."""


def parse_nemeses(text: str) -> list[str]:
    """Return the kinds in `kill,pause`; `none` is no fault at all.

    Raises:
        ControlError: there is no such kind.
    """
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    if kinds in ([], ["none"]):
        return []
    for kind in kinds:
        if kind not in NEMESES:
            raise ControlError(
                f'--nemesis: there is no "{kind}"',
                why=f"there are {', '.join(NEMESES)}, and none",
                try_="--nemesis kill,pause,partition",
            )
    return list(dict.fromkeys(kinds))
