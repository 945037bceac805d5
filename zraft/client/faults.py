"""Breaking a cluster's network from a program, and healing it: `Cluster.faults`.

    fault = cluster.faults.partition([["n1", "n2"]], for_ms=2_000, owner="check")
    cluster.faults.list()
    cluster.faults.heal(fault.id)          # or kind="partition", or nothing: all of them

A fault is in force in every living node when the call returns. It belongs to the process that made
it, and ends with that process; `owner` is its name for people. With owner "cli" it belongs to
nobody, and stays until it is healed or its time is up. All names are those of the cluster file;
links are pairs (from, to).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import msgspec

from zraft import clock
from zraft.api import FaultKind, NodeStatus
from zraft.control_api import (
    FaultsReply,
    GetFaults,
    HealFaults,
    HeldFault,
    PutFault,
    SupervisorReply,
    SupervisorRequest,
)
from zraft.errors import ControlError

CLI = "cli"
VERB_MS = 20_000

Link = tuple[str, str]


class FaultView(msgspec.Struct, frozen=True, kw_only=True):
    """A fault as it is now. `missed`: living nodes that do not know of it (or of its end) yet."""

    id: str
    kind: str
    links: list[Link]
    groups: list[list[str]]
    rate: float
    delay_ms: int
    jitter_ms: int
    normal: bool
    messages: list[str]
    seed: int
    by: str
    age_ms: int
    left_ms: int | None
    hits: int
    missed: list[str] = []
    replaced: list[str] = []


Views = list[FaultView]


class Faults:
    """The network faults of one cluster. Verbs start a supervisor if none runs."""

    def __init__(
        self,
        names: Sequence[str],
        verb: Callable[[SupervisorRequest, int], SupervisorReply],
        ask: Callable[[GetFaults], SupervisorReply | None],
        statuses: Callable[[], dict[str, NodeStatus | None]],
    ) -> None:
        """Use `Cluster.faults`."""
        self._names = list(names)
        self._verb = verb
        self._ask = ask
        self._statuses = statuses

    # -------------------------------------------------------------------------------- cut links

    def partition(
        self,
        groups: Sequence[Sequence[str]],
        *,
        for_ms: int | None = None,
        owner: str = "script",
        add: bool = False,
    ) -> FaultView:
        """Let each group talk to itself only. Nodes that are in no group are one more group.

        It takes the place of an earlier partition (its id is in `replaced`), unless `add`.

        Raises:
            ControlError: unknown names, a node in two groups, or nothing is separated.
        """
        parts = [list(dict.fromkeys(group)) for group in groups if group]
        named = [name for part in parts for name in part]
        self._check_names(named)
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ControlError(
                f"{', '.join(twice)} cannot be on two sides of a partition",
                why="a node is in one group; nodes that are in none are one more group",
            )
        rest = [name for name in self._names if name not in named]
        parts += [rest] if rest else []
        if len(parts) < 2:
            raise ControlError(
                "that separates nobody",
                why="all nodes are on one side",
                try_="name a part of them: the rest is the other side",
            )
        side = {name: number for number, part in enumerate(parts) for name in part}
        links = [pair for pair in self.all_links() if side[pair[0]] != side[pair[1]]]
        return self._put("partition", links, owner, for_ms, groups=parts, add=add)

    def isolate(
        self, names: Sequence[str], *, for_ms: int | None = None, owner: str = "script"
    ) -> FaultView:
        """Cut each of these nodes off from every other node, also from each other."""
        self._check_names(names)
        links = [pair for pair in self.all_links() if set(pair) & set(names)]
        groups = [[name] for name in dict.fromkeys(names)]
        return self._put("isolate", links, owner, for_ms, groups=groups)

    def one_way(
        self,
        from_: Sequence[str],
        to: Sequence[str],
        *,
        for_ms: int | None = None,
        owner: str = "script",
    ) -> FaultView:
        """Let nothing pass from these nodes to those; the other way stays open."""
        self._check_names([*from_, *to])
        links = [(one, other) for one, other in self.all_links() if one in from_ and other in to]
        return self.one_way_links(links, for_ms=for_ms, owner=owner)

    def one_way_links(
        self, links: Iterable[Link], *, for_ms: int | None = None, owner: str = "script"
    ) -> FaultView:
        """Let nothing pass on these links, each in its direction only."""
        return self._put("one-way", links, owner, for_ms)

    # ------------------------------------------------------------------------------- bad links

    def drop(
        self,
        links: Iterable[Link],
        rate: float,
        *,
        messages: Sequence[str] = (),
        seed: int = 0,
        for_ms: int | None = None,
        owner: str = "script",
    ) -> FaultView:
        """Lose this part of the messages on these links."""
        return self._rated("drop", links, rate, messages, seed, for_ms, owner)

    def duplicate(
        self,
        links: Iterable[Link],
        rate: float,
        *,
        messages: Sequence[str] = (),
        seed: int = 0,
        for_ms: int | None = None,
        owner: str = "script",
    ) -> FaultView:
        """Send this part of the messages twice."""
        return self._rated("duplicate", links, rate, messages, seed, for_ms, owner)

    def reorder(
        self,
        links: Iterable[Link],
        rate: float,
        *,
        messages: Sequence[str] = (),
        seed: int = 0,
        for_ms: int | None = None,
        owner: str = "script",
    ) -> FaultView:
        """Let this part of the messages be overtaken: each is held for up to 20 ms."""
        return self._rated("reorder", links, rate, messages, seed, for_ms, owner)

    def corrupt(
        self,
        links: Iterable[Link],
        rate: float,
        *,
        messages: Sequence[str] = (),
        seed: int = 0,
        for_ms: int | None = None,
        owner: str = "script",
    ) -> FaultView:
        """Damage bytes of this part of the messages; their receivers refuse and count them."""
        return self._rated("corrupt", links, rate, messages, seed, for_ms, owner)

    def delay(
        self,
        links: Iterable[Link],
        delay_ms: int,
        *,
        jitter_ms: int = 0,
        normal: bool = False,
        rate: float = 1.0,
        messages: Sequence[str] = (),
        seed: int = 0,
        for_ms: int | None = None,
        owner: str = "script",
    ) -> FaultView:
        """Hold messages for `delay_ms` ± `jitter_ms` (`normal`: a standard deviation)."""
        if not 0 <= delay_ms <= 600_000 or not 0 <= jitter_ms <= 600_000:
            raise ControlError(
                f"a delay of {delay_ms} ± {jitter_ms} ms is impossible",
                why="each is from 0 to 600000 ms",
            )
        return self._put(
            "delay",
            links,
            owner,
            for_ms,
            rate=rate,
            delay_ms=delay_ms,
            jitter_ms=jitter_ms,
            normal=normal,
            messages=messages,
            seed=seed,
        )

    # --------------------------------------------------------------------------- heal and look

    def heal(self, *ids: str, kind: FaultKind | None = None) -> Views:
        """End the faults with these ids, of this kind, or, with neither, all; return them.

        Raises:
            ControlError: there is no such id (code not_found, exit 4).
        """
        reply = self._verb(HealFaults(ids=[*ids], kind=kind), VERB_MS)
        assert isinstance(reply, FaultsReply), f"not an answer to heal: {reply}"
        return [_view(fault, reply) for fault in reply.faults]

    def list(self) -> Views:
        """Return the faults that are in force. Starts nothing.

        Without a supervisor, what the nodes say is put together.
        """
        reply = self._ask(GetFaults())
        if isinstance(reply, FaultsReply):
            return [_view(fault, reply) for fault in reply.faults]
        return faults_of(self._statuses())

    def all_links(self) -> Sequence[Link]:
        """Return every pair of two nodes, both ways."""
        return [(one, other) for one in self._names for other in self._names if one != other]

    def _rated(
        self,
        kind: FaultKind,
        links: Iterable[Link],
        rate: float,
        messages: Sequence[str],
        seed: int,
        for_ms: int | None,
        owner: str,
    ) -> FaultView:
        return self._put(kind, links, owner, for_ms, rate=rate, messages=messages, seed=seed)

    def _put(
        self,
        kind: FaultKind,
        links: Iterable[Link],
        owner: str,
        for_ms: int | None,
        *,
        groups: Sequence[Sequence[str]] = (),
        rate: float = 1.0,
        delay_ms: int = 0,
        jitter_ms: int = 0,
        normal: bool = False,
        messages: Sequence[str] = (),
        seed: int = 0,
        add: bool = False,
    ) -> FaultView:
        pairs = list(dict.fromkeys(links))
        self._check_names([name for pair in pairs for name in pair])
        if not pairs or any(one == other for one, other in pairs):
            raise ControlError(
                "there is no link to break",
                why="a link leads from one node to another, and here is none",
                try_="n1:n2",
            )
        if not 0 < rate <= 1:
            raise ControlError(f"a rate of {rate} is impossible", why="it is above 0, up to 1")
        request = PutFault(
            kind=kind,
            links=pairs,
            groups=[list(group) for group in groups],
            rate=rate,
            delay_ms=delay_ms,
            jitter_ms=jitter_ms,
            normal=normal,
            messages=list(messages),
            seed=seed,
            by=owner,
            owner_pid=0 if owner == CLI else os.getpid(),
            for_ms=for_ms,
            add=add,
        )
        reply = self._verb(request, VERB_MS)
        assert isinstance(reply, FaultsReply), f"not an answer to a fault: {reply}"
        return _view(reply.faults[0], reply)

    def _check_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._names:
                raise ControlError(
                    f'no node "{name}"',
                    why=f"there are {', '.join(self._names)}",
                    try_="zraft node list",
                )


def _view(fault: HeldFault, reply: FaultsReply) -> FaultView:
    rule, now_ms = fault.rule, clock.now_ms()
    return FaultView(
        id=rule.id,
        kind=rule.kind,
        links=rule.links,
        groups=rule.groups,
        rate=rule.rate,
        delay_ms=rule.delay_ms,
        jitter_ms=rule.jitter_ms,
        normal=rule.normal,
        messages=rule.messages,
        seed=rule.seed,
        by=rule.by,
        age_ms=max(0, now_ms - rule.since_ms),
        left_ms=None if rule.until_ms is None else max(0, rule.until_ms - now_ms),
        hits=fault.hits,
        missed=reply.missed,
        replaced=[old.rule.id for old in reply.replaced],
    )


def faults_of(statuses: dict[str, NodeStatus | None]) -> list[FaultView]:
    """Return the faults that the nodes say are in force, hits added up, by id.

    One that only a single node was told (`own1` of n3) has the id `n3-own1`.
    """
    found: dict[str, FaultView] = {}
    for name, status in statuses.items():
        for fault in status.faults if status is not None else ():
            rule = fault.rule
            if rule is None:
                view = _own_view(name, fault.kind, fault.peers, fault.id, fault.hits, fault.left_ms)
            else:
                view = _view(HeldFault(rule, fault.hits), FaultsReply(faults=[]))
            before = found.get(view.id)
            hits = view.hits + (before.hits if before is not None else 0)
            found[view.id] = msgspec.structs.replace(view, hits=hits)
    return sorted(found.values(), key=lambda fault: (len(fault.id), fault.id))


def _own_view(
    name: str, kind: str, peers: Sequence[str], fault_id: str, hits: int, left_ms: int | None
) -> FaultView:
    return FaultView(
        id=f"{name}-{fault_id}",
        kind=kind,
        links=[pair for peer in peers for pair in ((name, peer), (peer, name))],
        groups=[[name]],
        rate=1.0,
        delay_ms=0,
        jitter_ms=0,
        normal=False,
        messages=[],
        seed=0,
        by="control",
        age_ms=0,
        left_ms=left_ms,
        hits=hits,
    )
