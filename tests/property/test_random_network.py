"""A random network, random crashes, random clients: nothing unsafe ever happens, and it ends well.

Each walk draws commands of the interaction language from a seeded generator. After every command
the cores check themselves, and the five properties of Raft are checked over the whole cluster;
reads must see what was committed before they were asked. In the end the network is whole, everybody
runs, and a leader must be found that commits. A failing walk prints its commands: a script for
`zraft.testing.interaction` that can be cut down by hand.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from zraft.core.model import Role
from zraft.core.state import RaftState
from zraft.testing.core_cluster import CoreCluster
from zraft.testing.interaction import Interaction

WALKS = 40
STEPS = 600
MAX_IN_FLIGHT = 60


def has_something_to_write(st: RaftState) -> bool:
    """Tell whether the next Ready has to be persisted."""
    return st.durable != (st.term, st.voted_for) or st.log.saved_index < st.log.last_index


def has_applied_more_than_its_snapshot(st: RaftState) -> bool:
    """Tell whether a snapshot taken now would be a new one."""
    return st.applied_index > (0 if st.snapshot is None else st.snapshot.index)


class Walk:
    """One random walk; `script` is everything it did."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.interaction = Interaction()
        self.script: list[str] = []
        self.proposed = 0
        options = ["max_batch_bytes=1", "max_inflight_messages=2", "apply_batch_entries=2"]
        options += ["pre_vote=off", "check_quorum=off", "trailing_entries=0", "trailing_entries=3"]
        chosen = [option for option in options if self.chance.random() < 0.2]
        self.do(" ".join([f"nodes {self.chance.choice([3, 3, 4, 5])} seed={seed}", *chosen]))
        self.steps: list[tuple[int, Callable[[], None]]] = [
            (24, self.flush),
            (12, self.deliver_one),
            (16, self.deliver_to),
            (14, self.exchange),
            (3, self.settle),
            (3, self.lose),
            (3, self.repeat),
            (8, self.timer),
            (1, self.time_out),
            (20, self.propose),
            (8, self.read),
            (1, self.crash),
            (1, self.crash_leader),
            (4, self.crash_between),
            (9, self.restart),
            (2, self.snapshot),
            (1, self.peer_down),
            (1, self.cut),
            (2, self.isolate_leader),
            (3, self.heal),
            (1, self.campaign),
        ]

    def do(self, command: str) -> None:
        """Run a command and write it down first."""
        self.script.append(command)
        self.interaction.run(command)

    def run(self, steps: int) -> None:
        """Walk, and then let everything come to rest."""
        weights = [weight for weight, _ in self.steps]
        for _ in range(steps):
            self.chance.choices(self.steps, weights)[0][1]()
        self.come_to_rest()

    # Choices

    def up(self) -> list[int]:
        """Return who runs."""
        return self.interaction.cluster.up()

    def somebody(self) -> int | None:
        """Return a random running member, None when all are down."""
        return self.chance.choice(self.up()) if self.up() else None

    def leader(self) -> int | None:
        """Return a member that believes to lead; of the old or of the new ones."""
        leaders = self.interaction.cluster.leaders()
        return self.chance.choice(leaders) if leaders else None

    def for_somebody(self, command: str, member_id: int | None) -> None:
        """Run a command for a member, if there is one."""
        if member_id is not None:
            self.do(f"{command} {member_id}")

    def number(self) -> int:
        """Return the number of a random message, most often an early one; 0 if there is none."""
        flight = len(self.interaction.cluster.in_flight)
        return min(flight, 1 + int(self.chance.expovariate(0.3))) if flight else 0

    # Steps

    def flush(self) -> None:
        """Somebody handles its Readys."""
        self.for_somebody("flush", self.somebody())

    def deliver_one(self) -> None:
        """One message arrives, perhaps before older ones."""
        if number := self.number():
            self.do(f"deliver number={number}")

    def deliver_to(self) -> None:
        """Everything for somebody arrives."""
        if len(self.interaction.cluster.in_flight) > MAX_IN_FLIGHT:
            self.do("drop 1")
            self.do("deliver")
        self.for_somebody("deliver", self.somebody())

    def exchange(self) -> None:
        """Everybody's Readys are handled, and everything arrives, but not the answers."""
        for member_id in self.up():
            self.do(f"flush {member_id}")
        self.do("deliver")

    def settle(self) -> None:
        """A calm moment, for all or for some."""
        ids = sorted(self.interaction.cluster.members)
        some = sorted(self.chance.sample(ids, self.chance.randint(2, len(ids))))
        self.do(f"stabilise {' '.join(map(str, some))} quiet")

    def lose(self) -> None:
        """One message is lost."""
        if number := self.number():
            self.do(f"drop number={number}")

    def repeat(self) -> None:
        """One message is there twice."""
        if number := self.number():
            self.do(f"duplicate number={number}")

    def timer(self) -> None:
        """Time passes, and somebody's timer runs."""
        self.do(f"advance {int(self.chance.expovariate(0.04))}ms")
        self.for_somebody("timer", self.somebody())

    def time_out(self) -> None:
        """Somebody's election deadline is reached."""
        member_id = self.somebody()
        if member_id and self.interaction.cluster.raft(member_id).role is not Role.LEADER:
            self.do(f"timeout {member_id}")

    def propose(self) -> None:
        """A leader gets one or two commands."""
        leader = self.leader()
        if leader:
            self.proposed += 1
            self.do(f"propose {leader} w={self.proposed}" + " again" * self.chance.randrange(2))

    def read(self) -> None:
        """A leader is asked for a read."""
        self.for_somebody("read", self.leader())

    def crash(self) -> None:
        """Somebody dies."""
        self.for_somebody("crash", self.somebody())

    def crash_leader(self) -> None:
        """A leader dies; the transport may tell the others."""
        leader = self.leader()
        self.for_somebody("crash", leader)
        if leader and self.chance.random() < 0.5:
            for member_id in self.up():
                self.do(f"peer-down {member_id} {leader}")

    def crash_between(self) -> None:
        """Somebody who has something to write dies while it handles the Ready."""
        cluster = self.interaction.cluster
        busy = [m for m in self.up() if has_something_to_write(cluster.raft(m).state)]
        if busy:
            point = self.chance.choice(["after-messages", "after-persist"])
            self.do(f"crash {self.chance.choice(busy)} {point}")

    def restart(self) -> None:
        """Somebody who is down comes back."""
        down = sorted(set(self.interaction.cluster.members) - set(self.up()))
        if down:
            self.do(f"restart {self.chance.choice(down)}")

    def snapshot(self) -> None:
        """Somebody takes a snapshot of what it has applied, and cuts its log."""
        cluster = self.interaction.cluster
        fresh = [i for i in self.up() if has_applied_more_than_its_snapshot(cluster.raft(i).state)]
        if fresh:
            self.do(f"snapshot {self.chance.choice(fresh)}")

    def peer_down(self) -> None:
        """Somebody is told that another is gone, rightly or wrongly."""
        ids = sorted(self.interaction.cluster.members)
        member_id, peer = self.somebody(), self.chance.choice(ids)
        if member_id and member_id != peer:
            self.do(f"peer-down {member_id} {peer}")

    def cut(self) -> None:
        """One link is cut, one way."""
        a, b = self.chance.sample(sorted(self.interaction.cluster.members), 2)
        self.do(f"cut {a}->{b}")

    def isolate_leader(self) -> None:
        """A leader is cut off, alone."""
        self.for_somebody("isolate", self.leader())

    def heal(self) -> None:
        """Every link works again."""
        self.do("heal")

    def campaign(self) -> None:
        """Somebody stands for election without asking before."""
        self.for_somebody("campaign", self.somebody())

    def come_to_rest(self) -> None:
        """The network is whole, everybody runs: there is one leader, and it commits."""
        self.do("heal")
        cluster = self.interaction.cluster
        for member_id in sorted(set(cluster.members) - set(self.up())):
            self.do(f"restart {member_id}")
        self.do("run 3000ms")
        leader = self.leader()
        assert leader is not None, "nobody leads, although nothing hinders"
        self.do(f"propose {leader} last")
        self.do("run 200ms")
        self.do("invariants")
        last = {cluster.raft(member_id).last_id for member_id in cluster.members}
        assert len(last) == 1, "logs differ, although nothing hinders"
        last_index = last.pop().index
        applied = {len(member.applied) for member in cluster.members.values()}
        assert applied == {last_index}, "not everybody applied everything"


@pytest.mark.parametrize("seed", range(WALKS))
def test_a_random_walk_is_safe_and_ends_well(seed: int) -> None:
    """Figure 3: the five properties hold after every step; liveness returns with the network."""
    walk = Walk(seed)
    try:
        walk.run(STEPS)
    except AssertionError as error:
        script = "\n".join(walk.script)
        raise AssertionError(f"seed {seed}: {error}\nto see it again, run:\n{script}") from error


@pytest.mark.parametrize("seed", range(12))
def test_a_half_broken_network_keeps_a_leader_if_somebody_reaches_a_majority(seed: int) -> None:
    """Pre-vote, CheckQuorum and stickiness together: terms stop growing (pitfalls 14)."""
    chance = random.Random(seed)
    members = chance.choice([3, 4, 5])
    cluster = CoreCluster(members, seed=seed)
    links = [(a, b) for a in cluster.members for b in cluster.members if a != b]
    cut = chance.sample(links, chance.randint(1, len(links) // 2))
    for src, dst in cut:
        cluster.cut_one_way(src, dst)
    reached = {
        a: sum((a, b) not in cut and (b, a) not in cut for b in cluster.members)
        for a in cluster.members
    }
    cluster.run(3_000)
    terms = [cluster.raft(member_id).term for member_id in cluster.members]
    if max(reached.values()) > members // 2:
        assert cluster.leaders(), f"nobody leads; cut: {cut}"
    cluster.run(3_000)
    assert terms == [cluster.raft(member_id).term for member_id in cluster.members], cut
