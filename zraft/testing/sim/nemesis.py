"""Who breaks what, and when: faults at random times, of the kinds that the plan switched on.

Faults overlap as they please; each ends by itself. `hits` counts those that really happened, for a
run that proves nothing about faults must not pass as one that does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from zraft.core.model import NOBODY, MemberId, Role
from zraft.testing.sim.network import Link
from zraft.testing.sim.node import SimNode

if TYPE_CHECKING:
    from zraft.testing.sim.world import World


class Nemesis:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._plan = world.plan
        self._draws = world.draws("nemesis")
        self.active = False
        self.hits: Counter[str] = Counter()
        self._do: dict[str, Callable[[], bool]] = {
            "kill": self._kill,
            "power": self._power,
            "crash-at-step": self._crash_at_step,
            "outage": self._outage,
            "pause": self._pause,
            "stall": self._stall,
            "isolate": self._isolate,
            "partition": self._partition,
            "one-way": self._one_way,
            "bridge": self._bridge,
            "cut-link": self._cut_link,
            "bad-links": self._bad_links,
            "clock-jump": self._clock_jump,
            "wrong-hint": self._wrong_hint,
            "campaign": self._campaign,
            "step-down": self._step_down,
            "disk-error": self._disk_error,
            "stop": self._stop,
            "transfer": self._transfer,
            "wipe": self._wipe,
        }

    def start(self) -> None:
        """Begin to break things."""
        self.active = True
        self._plan_next()

    def _plan_next(self) -> None:
        gap_us = 1 + self._draws.exponential(self._plan.fault_gap_us)
        self._world.agenda.after(gap_us, self._strike)

    def _strike(self, _: None) -> None:
        if not self.active:
            return
        kind = self._draws.weighted(self._plan.faults)
        if self._do[kind]():
            self.hits[kind] += 1
            self._world.agenda.events += 1
        self._plan_next()

    # Whom it meets

    def _victim(self) -> SimNode | None:
        """Return a living node, often the leader."""
        leader = self._world.leader()
        if leader is not None and self._draws.chance(self._plan.aims_at_leader):
            return leader
        living = self._world.up()
        return self._draws.pick(living) if living else None

    def _length_us(self) -> int:
        return 1000 + self._draws.exponential(self._plan.fault_us)

    def _note(self, text: str) -> None:
        self._world.trace.step(self._world.agenda.now_us, text)

    # Processes

    def _kill(self) -> bool:
        node = self._victim()
        if node is None or node.busy_us > self._world.agenda.now_us:
            return False  # in the middle of a turn: that is what crash-at-step is for
        node.crash(power=False)
        return True

    def _power(self) -> bool:
        node = self._victim()
        if node is None or node.busy_us > self._world.agenda.now_us:
            return False
        node.crash(power=True)
        return True

    def _crash_at_step(self) -> bool:
        """A process ends between two steps: of a flush, or, if it is down now, of its start."""
        nodes, lost = self._world.nodes.values(), self._world.wipes.held
        down = [node for node in nodes if node.server is None and node.member_id not in lost]
        node = self._draws.pick(down) if down and self._draws.chance(0.5) else self._victim()
        if node is None:
            return False
        if node.server is not None and self._draws.chance(0.5):
            node.fuse.light(1, power=True, at_sync=True)
            return True
        most = 3 if node.server is None else 9
        node.fuse.light(self._draws.between(1, most), power=self._draws.chance(0.6))
        return True

    def _outage(self) -> bool:
        """The power fails for a majority, or for all."""
        nodes = self._draws.shuffled(list(self._world.nodes.values()))
        count = len(nodes) if self._draws.chance(0.5) else len(nodes) // 2 + 1
        for node in nodes[:count]:
            if node.server is None:
                continue
            if node.busy_us > self._world.agenda.now_us:
                node.fuse.light(1, power=True, at_sync=self._draws.chance(0.5))
            else:
                node.crash(power=True, how="outage")
        return True

    def _wipe(self) -> bool:
        """A voter loses its disk for good, often the leader; it may be down already."""
        world, wipes = self._world, self._world.wipes
        voters = [world.nodes[member] for member in world.members.newest.voters]
        leader = self._draws.chance(self._plan.aims_at_leader)
        node = (world.leader() if leader else None) or self._draws.pick(voters)
        if node.busy_us > world.agenda.now_us or not wipes.may_strike(node.member_id):
            return False
        wipes.strike(node)
        return True

    def _pause(self) -> bool:
        node = self._victim()
        if node is None or node.paused:
            return False
        led = node.raft.role is Role.LEADER
        node.pause()
        node.was_paused = led
        self._note(f"pause {node.member_id}")
        self._world.agenda.after(self._length_us(), self._resume, (node, node.incarnation))
        return True

    def _resume(self, who: tuple[SimNode, int]) -> None:
        node, life = who
        if node.server is not None and node.incarnation == life and node.paused:
            self._note(f"resume {node.member_id}")
            node.resume()

    def _stall(self) -> bool:
        """A node's disk takes long for the next sync."""
        node = self._victim()
        if node is None:
            return False
        node.next_sync_us += self._length_us()
        return True

    def _disk_error(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        node.fuse.light(self._draws.between(1, 4), error=True)
        return True

    def _stop(self) -> bool:
        node = self._victim()
        if node is None or node.paused or node.busy_us > self._world.agenda.now_us:
            return False
        node.stop()
        return True

    # Links

    def _cut(self, links: list[Link], why: str) -> bool:
        if not links:
            return False
        for link in links:
            link.cuts += 1
        self._note(f"cut {' '.join(f'{link.src}->{link.dst}' for link in links)}  # {why}")
        self._world.agenda.after(self._length_us(), self._mend, links)
        return True

    def _mend(self, links: list[Link]) -> None:
        for link in links:
            link.cuts = max(0, link.cuts - 1)
        self._note(f"mend {' '.join(f'{link.src}->{link.dst}' for link in links)}")

    def _isolate(self) -> bool:
        node = self._victim()
        if node is None:
            return False
        links = self._world.network.all_links()
        return self._cut([x for x in links if node.member_id in {x.src, x.dst}], "isolate")

    def _partition(self) -> bool:
        """Two groups that do not hear each other."""
        side = {member_id: self._draws.chance(0.5) for member_id in self._world.ids}
        links = self._world.network.all_links()
        return self._cut([x for x in links if side[x.src] != side[x.dst]], "partition")

    def _one_way(self) -> bool:
        """A node speaks and does not hear, or hears and is not heard."""
        node = self._victim()
        if node is None:
            return False
        deaf = self._draws.chance(0.5)
        links = self._world.network.all_links()
        me = node.member_id
        return self._cut([x for x in links if (x.dst if deaf else x.src) == me], "one-way")

    def _bridge(self) -> bool:
        """Two groups, and one node that hears both."""
        ids = self._draws.shuffled(self._world.ids)
        if len(ids) < 3:
            return False
        bridge, left = ids[0], ids[1 : 1 + len(ids) // 2]
        group: dict[MemberId, int] = {i: int(i in left) for i in ids if i != bridge}
        links = self._world.network.all_links()
        return self._cut(
            [x for x in links if bridge not in {x.src, x.dst} and group[x.src] != group[x.dst]],
            "bridge",
        )

    def _cut_link(self) -> bool:
        links = self._world.network.all_links()
        return self._cut([self._draws.pick(links)] if links else [], "link")

    def _bad_links(self) -> bool:
        """All links, or those of one node, lose, double, delay and reorder for a while."""
        draws, network = self._draws, self._world.network
        node = self._victim() if draws.chance(0.5) else None
        chosen = [
            x for x in network.all_links() if node is None or node.member_id in {x.src, x.dst}
        ]
        drop, duplicate = draws.pick((0.0, 0.1, 0.5)), draws.pick((0.0, 0.3))
        reorder, extra_us = draws.pick((0.0, 0.3)), draws.pick((0, 10_000, 100_000))
        for link in chosen:
            link.drop, link.duplicate, link.reorder = drop, duplicate, reorder
            link.extra_us = extra_us
        self._note(f"bad-links drop={drop} duplicate={duplicate} reorder={reorder} us={extra_us}")
        self._world.agenda.after(self._length_us(), lambda _: network.settle())
        return bool(chosen)

    # Clocks, hints, operators

    def _clock_jump(self) -> bool:
        node = self._victim()
        if node is None or self._plan.settings.lease:
            return False  # leases trust clocks: a jump would break what they rest on
        ahead_us = self._length_us()
        node.clock.jump(ahead_us)
        node.overshoot_us += ahead_us
        self._note(f"clock-jump {node.member_id} {ahead_us}us")
        node.maybe_turn()
        return True

    def _wrong_hint(self) -> bool:
        """Nodes hear that a living leader's process is gone."""
        leader = self._world.leader()
        if leader is None:
            return False
        for node in self._world.up():
            if node is not leader and self._draws.chance(0.7):
                self._note(f"peer-down {node.member_id} {leader.member_id}  # wrong")
                self._world.marks.reach("hint_wrong")
                node.on_down(leader.member_id, leader.incarnation)
        return True

    def _campaign(self) -> bool:
        living = [node for node in self._world.up() if _idle(node)]
        if not living:
            return False
        node = self._draws.pick(living)
        server = node.server
        assert server is not None
        self._note(f"campaign {node.member_id}")
        server.campaign(now_ms=node.clock.local_ms(self._world.agenda.now_us))
        node.maybe_turn()
        return True

    def _step_down(self) -> bool:
        leader = self._world.leader()
        if leader is None or not _idle(leader):
            return False
        server = leader.server
        assert server is not None
        self._note(f"step-down {leader.member_id}")
        server.step_down(now_ms=leader.clock.local_ms(self._world.agenda.now_us))
        leader.maybe_turn()
        return True

    def _transfer(self) -> bool:
        """An operator has the leader hand over, to somebody or to whom it likes."""
        leader = self._world.leader()
        if leader is None or not _idle(leader):
            return False
        server = leader.server
        assert server is not None
        target = self._draws.pick((NOBODY, *self._world.ids))
        self._note(f"transfer {leader.member_id} to={target}")
        now_ms = leader.clock.local_ms(self._world.agenda.now_us)
        begun = server.transfer(target, now_ms=now_ms) is None
        leader.maybe_turn()
        return begun


def _idle(node: SimNode) -> bool:
    return not node.paused and node.busy_us <= node.world.agenda.now_us
