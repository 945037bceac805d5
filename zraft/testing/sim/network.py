"""Links between members: one per direction, so that every asymmetry is possible.

A link loses, doubles, delays and reorders; a cut link loses everything, what is in flight too. A
frame that arrives has passed the production codec and header filter if the plan says so; otherwise
the message goes over as it is, and only the sender's incarnation is looked at, as the filter would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zraft.core.messages import InstallSnapshot, Message, RequestVote
from zraft.core.model import MemberId
from zraft.testing.sim.storage import CLUSTER_ID
from zraft.transport.base import Lane
from zraft.transport.filter import HeaderFilter, Refused
from zraft.wire import decode_message, encode_message

if TYPE_CHECKING:
    from zraft.testing.sim.node import SimNode
    from zraft.testing.sim.world import World

_BULK, _PEER = Lane.BULK, Lane.PEER
CLUSTER = CLUSTER_ID.to_bytes(8, "big")


class Link:
    """One direction between two members, and what is wrong with it now."""

    __slots__ = ("cuts", "drop", "dst", "duplicate", "extra_us", "last_us", "reorder", "src")

    def __init__(self, src: MemberId, dst: MemberId) -> None:
        self.src = src
        self.dst = dst
        self.cuts = 0  # faults that cut it
        self.drop = 0.0
        self.duplicate = 0.0
        self.reorder = 0.0
        self.extra_us = 0
        self.last_us = 0  # when the last frame arrives


class Network:
    """All links. Frames of one link keep their order unless the plan or a fault says otherwise."""

    def __init__(self, world: World) -> None:
        plan = world.plan
        self._world = world
        self._plan = plan
        self._draws = world.draws("network")
        self._seq = 0
        self.sent = 0
        self.lost = 0
        ids = world.ids
        self.links = {a: {b: Link(a, b) for b in ids if b != a} for a in ids}
        self._filters: dict[MemberId, tuple[HeaderFilter, ...]] = {}  # one a lane
        self._newest: dict[MemberId, dict[MemberId, int]] = {}
        self.settle()

    def settle(self) -> None:
        """Give every link its ordinary badness back; cuts stay."""
        plan = self._plan
        for link in self.all_links():
            link.drop, link.duplicate, link.reorder = plan.drop, plan.duplicate, plan.reorder
            link.extra_us = 0

    def heal(self, ids: tuple[MemberId, ...]) -> None:
        """Make every link among `ids` good."""
        for link in self.all_links():
            if link.src in ids and link.dst in ids:
                link.cuts = 0
                link.drop = link.duplicate = link.reorder = 0.0
                link.extra_us = 0

    def all_links(self) -> list[Link]:
        """Return the links, in a fixed order."""
        return [link for row in self.links.values() for link in row.values()]

    def on_start(self, node: SimNode) -> None:
        """A process starts: it has heard of nobody yet."""
        me = node.member_id
        peers = [peer for peer in self._world.ids if peer != me]
        self._filters[me] = tuple(
            HeaderFilter(me=me, cluster=CLUSTER, peers=peers, lane=lane)
            for lane in (Lane.PEER, Lane.BULK)
        )
        self._newest[me] = dict.fromkeys(peers, 0)

    def send(self, node: SimNode, messages: Sequence[Message], at_us: int) -> None:
        """Put messages on their way; they leave at `at_us`, which may be after now."""
        plan, random, row = self._plan, self._draws.random, self.links[node.member_id]
        for message in messages:
            link = row[message.dst]
            self.sent += 1
            if link.cuts or (link.drop and random() < link.drop):
                self.lost += 1
                self._world.trace.message(self._world.agenda.now_us, "lost", message)
                continue
            load: Any = message
            if plan.codec:
                self._seq += 1
                load = encode_message(
                    message,
                    lane=_BULK if type(message) is InstallSnapshot else _PEER,
                    cluster=CLUSTER,
                    incarnation=node.incarnation,
                    epoch=1,
                    seq=self._seq,
                    heard=0,
                )
            self._carry(link, load, message, node.incarnation, at_us)
            if link.duplicate and random() < link.duplicate:
                self._carry(link, load, message, node.incarnation, at_us)

    def _carry(self, link: Link, load: Any, message: Message, life: int, at_us: int) -> None:
        plan, random = self._plan, self._draws.random
        arrives_us = at_us + plan.latency_us + int(random() * plan.jitter_us)
        if link.extra_us:
            arrives_us += int(random() * link.extra_us)
        if link.reorder and random() < link.reorder:
            arrives_us += int(random() * 20 * (plan.latency_us + plan.jitter_us))
        elif plan.fifo:
            arrives_us = max(arrives_us, link.last_us)
            link.last_us = arrives_us
        self._world.agenda.at(arrives_us, self._arrive, (link, load, message, life))

    def _arrive(self, cargo: tuple[Link, Any, Message, int]) -> None:
        link, load, message, life = cargo
        world = self._world
        world.agenda.events += 1
        node = world.nodes[link.dst]
        if link.cuts or node.server is None:
            self.lost += 1
            world.trace.message(world.agenda.now_us, "lost", message)
            return
        if self._plan.codec:
            lane = _BULK if type(message) is InstallSnapshot else _PEER
            checked = self._filters[link.dst][lane].check([b"", load])
            if isinstance(checked, Refused):
                assert checked.older_life, f"the filter dropped a frame: {checked}"
                world.marks.reach("stale_frame")
                return
            message = decode_message(*checked)
        else:
            newest = self._newest[link.dst]
            if life < newest[link.src]:
                world.marks.reach("stale_frame")
                return
            newest[link.src] = life
        world.trace.message(world.agenda.now_us, "deliver", message)
        if isinstance(message, RequestVote):
            world.operators.on_asked(message)
        node.on_message(message)
