"""The world of one seed: members, links, clients, and how one hears of another.

It owns the agenda and decides what a death means to those who live: hints to the peers, lost
connections to whoever passed requests on or asked, and a new start some time later.
"""

from __future__ import annotations

from collections.abc import Callable

from zraft.api import Reply, Request
from zraft.core.model import Configuration, MemberId, Role
from zraft.testing.sim.agenda import Agenda
from zraft.testing.sim.clients import SimClient
from zraft.testing.sim.draws import Draws
from zraft.testing.sim.history import History
from zraft.testing.sim.invariants import Invariants
from zraft.testing.sim.marks import Marks
from zraft.testing.sim.members import MemberChecks, Operators
from zraft.testing.sim.network import Network
from zraft.testing.sim.node import SimNode
from zraft.testing.sim.plan import Plan
from zraft.testing.sim.reads import ReadChecks
from zraft.testing.sim.trace import Trace
from zraft.testing.sim.wipes import Wipes

CLIENT_LATENCY_US = 200


class World:
    """See the module. `ids` are 1 … n, and the spare ones that are no members at first."""

    def __init__(self, plan: Plan, *, steps: int) -> None:
        self.plan = plan
        self.ids: tuple[MemberId, ...] = tuple(range(1, plan.nodes + plan.spares + 1))
        self.base = Configuration(self.ids[: plan.nodes])
        self.agenda = Agenda()
        self.trace = Trace(steps)
        self.marks = Marks()
        self.members = MemberChecks(self)
        self.wipes = Wipes(self)
        self.invariants = Invariants(self)
        self.history = History(self)
        self._luck = self.draws("world")
        self.nodes: dict[MemberId, SimNode] = {}
        self.nodes = {member_id: SimNode(self, member_id) for member_id in self.ids}
        self.network = Network(self)
        self.operators = Operators(self)
        self.reads = ReadChecks(self)
        self.clients = [SimClient(self, number) for number in range(1, plan.clients + 1)]
        self.restarts = True  # whoever dies is started again
        self.deaths = 0
        self.on_probe_reply: Callable[[MemberId, list[Reply]], None] | None = None

    def draws(self, stream: str) -> Draws:
        """Return a stream of draws of this world's seed."""
        return Draws(self.plan.seed, stream)

    def start(self) -> None:
        """Start all members, then the clients."""
        for node in self.nodes.values():
            node.start()
        for client in self.clients:
            client.start()

    def up(self) -> list[SimNode]:
        """Return the members whose process lives, paused or not."""
        return [node for node in self.nodes.values() if node.server is not None]

    def leader(self) -> SimNode | None:
        """Return the living leader of the highest term."""
        return max(self.leaders(), key=lambda node: node.raft.term, default=None)

    def leaders(self) -> list[SimNode]:
        """Return the living members that believe to lead."""
        leader = Role.LEADER
        return [node for node in self.up() if node.raft.state.role is leader]

    # Death and what follows

    def on_death(self, dead: SimNode) -> None:
        """A process ended: the kernel closes its connections, and others notice, or do not."""
        agenda, luck, plan = self.agenda, self._luck, self.plan
        self.deaths += 1
        if not self.up():
            self.marks.reach("all_down")
        life = dead.incarnation
        for node in self.nodes.values():
            if node is dead:
                continue
            if luck.chance(plan.hint):
                late_us = luck.below(300_000) if luck.chance(plan.late_hint) else 0
                delay_us = 100 + luck.below(2000) + late_us
                agenda.after(delay_us, self._hint, (node, dead, life))
            agenda.after(100 + luck.below(3000), self._lose_forwards, (node, dead))
        for client in self.clients:
            agenda.after(100 + luck.below(1000), client.on_node_lost, dead.member_id)
        if self.restarts:
            agenda.after(1000 + luck.exponential(plan.down_us), self._restart, dead)

    def _restart(self, node: SimNode) -> None:
        if node.server is None and self.restarts:
            node.start()

    def _hint(self, who: tuple[SimNode, SimNode, int]) -> None:
        """A raw connect was refused; late ones may come when the peer lives again."""
        node, dead, life = who
        if node.server is None or self.network.links[node.member_id][dead.member_id].cuts:
            return
        self.agenda.events += 1
        self.trace.step(self.agenda.now_us, f"peer-down {node.member_id} {dead.member_id}")
        node.on_down(dead.member_id, life)

    def _lose_forwards(self, who: tuple[SimNode, SimNode]) -> None:
        node, dead = who
        if node.server is not None:
            node.forward_losses.append(dead.member_id)
            node.maybe_turn()

    # Requests between nodes, and replies

    def carry_forward(self, node: SimNode, leader: MemberId, requests: list[Request]) -> None:
        """Take a frame of requests that a follower passes on."""
        name = b"n%d.%d" % (node.member_id, node.incarnation)
        life = self.nodes[leader].incarnation
        at_us = node.local_us + self.plan.latency_us + self._luck.below(self.plan.jitter_us + 1)
        self.agenda.at(at_us, self._arrive_forward, (node.member_id, leader, life, name, requests))

    def _arrive_forward(self, cargo: tuple[MemberId, MemberId, int, bytes, list[Request]]) -> None:
        src, leader, life, name, requests = cargo
        node = self.nodes[leader]
        cut = self.network.links[src][leader].cuts
        if node.server is None or node.incarnation != life or cut:
            return
        self.agenda.events += 1
        self.trace.state(self.agenda.now_us, src, leader, len(requests))
        node.on_requests(name, requests)

    def carry_replies(self, node: SimNode, client: bytes, replies: list[Reply]) -> None:
        """Take a frame of replies to a client, or to the node that passed the requests on."""
        kind, (number, life) = client[:1], map(int, client[1:].split(b"."))
        if kind == b"p":
            assert self.on_probe_reply is not None
            self.on_probe_reply(number, replies)
        elif kind == b"c":
            at_us = node.local_us + CLIENT_LATENCY_US + self._luck.below(CLIENT_LATENCY_US)
            cargo = (node.member_id, node.incarnation, replies)
            self.agenda.at(at_us, self.clients[number - 1].on_replies, cargo)
        else:
            delay_us = self.plan.latency_us + self._luck.below(self.plan.jitter_us + 1)
            cargo_home = (node.member_id, number, life, replies)
            self.agenda.at(node.local_us + delay_us, self._arrive_replies, cargo_home)

    def _arrive_replies(self, cargo: tuple[MemberId, MemberId, int, list[Reply]]) -> None:
        leader, follower, life, replies = cargo
        node = self.nodes[follower]
        cut = self.network.links[leader][follower].cuts
        if node.server is None or node.incarnation != life or cut:
            return
        self.agenda.events += 1
        self.trace.state(self.agenda.now_us, leader, follower, len(replies))
        node.forward_replies.append((leader, replies))
        node.maybe_turn()
