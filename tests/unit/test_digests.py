"""Comparing states: who is wrong, since which index, and that a lost message changes nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import cast

import pytest

from zraft.core.messages import DigestPurpose, StateDigest
from zraft.core.model import Configuration
from zraft.core.raft import Raft
from zraft.core.state import FAR_MS
from zraft.errors import DivergedError
from zraft.machine.history import KEPT, DigestHistory
from zraft.node.digests import MAX_OPEN, PAGE_WAIT_MS, WAIT_MS, DigestWatch, compare_states
from zraft.transport.base import Peers

INTERVAL = 8


class Bench:
    """Some watches, their messages, and a clock that moves when it is told to."""

    def __init__(self, nodes: int, *, interval: int = INTERVAL) -> None:
        self.ids = tuple(range(1, nodes + 1))
        self.configuration = Configuration(self.ids)
        self.leader = 1
        self.term = 1
        self.now_ms = 0
        self.histories = {i: DigestHistory() for i in self.ids}
        self.events: list[tuple[str, dict[str, object]]] = []
        self.watches = {
            i: DigestWatch(i, self.histories[i], self._report, interval=interval) for i in self.ids
        }
        self.stopped: dict[int, DivergedError] = {}
        self.deaf: set[int] = set()
        self.in_flight: list[StateDigest] = []
        self.sent = 0

    def _report(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))

    def apply(self, node: int, digests: Iterable[int]) -> None:
        """Let a node apply entries with these digests."""
        for digest in digests:
            self.histories[node].append(digest)

    def settle(self) -> None:
        """Flush everybody and deliver, until nothing is said."""
        busy = True
        while busy:
            busy = False
            for node in self.ids:
                if node not in self.stopped:
                    busy |= self._flush(node)
            arrived, self.in_flight = self.in_flight, []
            for message in arrived:
                busy = True
                self.deliver(message)

    def _flush(self, node: int) -> bool:
        """Do what a server does at the end of a turn."""
        said: list[StateDigest] = []
        state = SimpleNamespace(
            term=self.term,
            leader_id=self.leader,
            configurations=SimpleNamespace(newest=self.configuration),
            leadership=None,  # who is wrong and leads would step down
        )
        raft, peers = SimpleNamespace(state=state), SimpleNamespace(send=said.extend)
        watch, applied_index = self.watches[node], self.histories[node].last_index
        try:
            compare_states(
                watch, cast("Raft", raft), cast("Peers", peers), applied_index, self.now_ms
            )
        except DivergedError as error:
            self.stopped[node] = error
            return True
        self.sent += len(said)
        self.in_flight += [m for m in said if not {m.src, m.dst} & self.deaf]
        return bool(said)

    def deliver(self, message: StateDigest) -> None:
        """Let a message arrive."""
        if message.dst in self.stopped:
            return
        try:
            self.watches[message.dst].on_message(message, term=self.term)
        except DivergedError as error:
            self.stopped[message.dst] = error


def same(bench: Bench, count: int) -> None:
    """Let everybody apply the same entries."""
    for node in bench.ids:
        start = bench.histories[node].last_index + 1
        bench.apply(node, (index * 7 for index in range(start, start + count)))


def differ(bench: Bench, wrong: Iterable[int], count: int) -> None:
    """Let everybody apply the same entries, and some of them to another end."""
    for node in bench.ids:
        start = bench.histories[node].last_index + 1
        other = 1000 + node if node in wrong else 0
        bench.apply(node, (index * 7 + other for index in range(start, start + count)))


def test_equal_states_cost_one_message_a_node_and_interval() -> None:
    """And afterwards there is nothing to wait for."""
    bench = Bench(5)
    same(bench, 3 * INTERVAL + 1)
    bench.settle()
    assert bench.sent == 4
    assert bench.watches[1].compared == 1
    assert {watch.next_deadline_ms() for watch in bench.watches.values()} == {FAR_MS}
    assert bench.events == []


@pytest.mark.parametrize("wrong", [2, 1, 5])
@pytest.mark.parametrize("right_entries", [0, 3, 11, 23])
def test_the_one_that_differs_stops_and_names_the_first_index(
    wrong: int, right_entries: int
) -> None:
    """A follower or the leader itself; nobody else stops."""
    bench = Bench(5)
    same(bench, right_entries)
    differ(bench, [wrong], 2 * INTERVAL)
    bench.settle()
    assert set(bench.stopped) == {wrong}
    error = bench.stopped[wrong]
    assert error.index == right_entries + 1
    assert error.exact
    assert error.exit_code == 70
    assert bench.events[0][0] == "digest.differed"
    assert bench.events[0][1]["peer"] == wrong


def test_two_of_five_that_differ_from_each_other_stop_both() -> None:
    """Three agree: that is a majority."""
    bench = Bench(5)
    same(bench, 4)
    differ(bench, [3, 4], INTERVAL)
    bench.settle()
    assert {node: error.index for node, error in bench.stopped.items()} == {3: 5, 4: 5}


def test_without_a_majority_the_follower_that_differs_from_the_leader_stops() -> None:
    """Of two, when the third is away: after a second; a late report could still decide."""
    bench = Bench(3)
    bench.deaf = {3}
    same(bench, 4)
    differ(bench, [2], INTERVAL)
    bench.settle()
    assert bench.stopped == {}
    assert bench.watches[1].next_deadline_ms() == WAIT_MS
    bench.now_ms = WAIT_MS
    bench.settle()
    assert bench.stopped[2].index == 5


def test_a_report_that_comes_late_makes_the_leader_the_wrong_one() -> None:
    """Two against the leader: it stops, and not they."""
    bench = Bench(3)
    bench.deaf = {3}
    same(bench, 4)
    differ(bench, [1], INTERVAL)
    bench.settle()
    bench.deaf = set()
    differ(bench, [1], INTERVAL)
    bench.settle()
    assert {node: error.index for node, error in bench.stopped.items()} == {1: 5}


def test_when_all_differ_the_leader_alone_stays() -> None:
    """A machine that reads a clock: nobody agrees with anybody; nothing is served by a majority."""
    bench = Bench(3)
    same(bench, 2)
    differ(bench, [1, 2, 3], INTERVAL)
    bench.settle()
    assert {node: error.index for node, error in bench.stopped.items()} == {2: 3, 3: 3}


def test_a_wrong_leader_stops_also_when_nobody_sends_the_page() -> None:
    """Then it can only say between which indices it happened."""
    bench = Bench(3)
    same(bench, 4)
    differ(bench, [1], INTERVAL)
    for node in (2, 3):
        bench.deliver(report(bench, node, INTERVAL))
    bench.deaf = {2, 3}
    bench.settle()
    assert bench.watches[1].is_wrong
    assert bench.stopped == {}
    bench.now_ms += PAGE_WAIT_MS
    bench.settle()
    assert bench.stopped[1].exact is False
    assert bench.stopped[1].index == 1


def report(bench: Bench, node: int, index: int) -> StateDigest:
    """Return what a node reports of an index."""
    digest = bench.histories[node].at(index)
    assert digest is not None
    return StateDigest(node, bench.leader, bench.term, DigestPurpose.REPORT, index, digest)


def test_a_lost_report_is_made_up_for_by_the_next_multiple() -> None:
    """Results stay in the running digest, so a later comparison finds the same first index."""
    bench = Bench(3)
    same(bench, 5)
    differ(bench, [3], INTERVAL)
    bench.deaf = {1}
    bench.settle()
    bench.deaf = set()
    bench.settle()
    assert bench.stopped == {}
    differ(bench, [3], INTERVAL)
    bench.settle()
    assert bench.stopped[3].index == 6


def test_a_new_leader_is_told_the_last_multiple() -> None:
    """An idle cluster that changes its leader compares again."""
    bench = Bench(3)
    differ(bench, [3], INTERVAL + 2)
    bench.deaf = {3}
    bench.settle()
    bench.deaf = set()
    bench.leader, bench.term = 2, 2
    bench.settle()
    assert set(bench.stopped) == {3}


def test_the_first_index_is_unknown_when_it_is_long_ago() -> None:
    """More entries than are kept: at the oldest common one they differ already."""
    bench = Bench(3, interval=1024)
    differ(bench, [2], 3 * KEPT)
    bench.settle()
    error = bench.stopped[2]
    assert error.exact is False
    assert error.index == 3 * KEPT - KEPT + 1
    assert "or before" in str(error)


def test_a_node_that_started_from_a_snapshot_is_compared_from_there_on() -> None:
    """Its history begins after the snapshot; earlier multiples are nobody's to tell."""
    bench = Bench(3)
    same(bench, 2 * INTERVAL)
    bench.histories[3].restart(2 * INTERVAL + 1)
    bench.settle()
    assert bench.stopped == {}
    same(bench, 3)
    differ(bench, [3], INTERVAL)
    bench.settle()
    assert bench.stopped[3].index == 2 * INTERVAL + 4


def test_strangers_and_nonsense_decide_nothing() -> None:
    """Reports of non-members, of other indices, and pages that agree with what is known."""
    bench = Bench(3)
    same(bench, INTERVAL)
    watch = bench.watches[1]
    watch.on_message(StateDigest(9, 1, 1, DigestPurpose.REPORT, INTERVAL, 13), term=1)
    watch.on_message(StateDigest(2, 1, 1, DigestPurpose.REPORT, INTERVAL - 1, 13), term=1)
    watch.on_message(StateDigest(2, 1, 1, DigestPurpose.REPORT, 0, 13), term=1)
    watch.on_message(StateDigest(2, 1, 1, DigestPurpose.PAGE, 8, 56, 8, [56]), term=1)
    watch.on_message(StateDigest(2, 1, 1, DigestPurpose.PAGE, 99, 56, 99, [56]), term=1)
    for multiple in range(1, 100):
        late = StateDigest(2, 1, 1, DigestPurpose.REPORT, multiple * INTERVAL * 9, 13)
        watch.on_message(late, term=1)
    bench.settle()
    assert bench.stopped == {}
    assert len(watch._reports) <= MAX_OPEN


def test_learners_are_told_and_do_not_decide() -> None:
    """Two voters agree, three learners agree on something else: the learners are wrong."""
    bench = Bench(5)
    bench.configuration = Configuration((1, 2), 0, (), (3, 4, 5))
    same(bench, 4)
    differ(bench, [3, 4, 5], INTERVAL)
    bench.settle()
    assert set(bench.stopped) == {3, 4, 5}


def test_whoever_is_wrong_is_found_whatever_is_lost_doubled_or_late() -> None:
    """Random weather, random victims: only they stop, all of them, with the exact index."""
    for seed in range(60):
        draws = random.Random(seed)
        nodes = draws.choice([3, 5])
        bench = Bench(nodes)
        wrong = draws.sample(bench.ids, draws.randint(1, nodes // 2))
        before = draws.randint(1, 40)
        bench.leader = draws.choice(bench.ids)
        same(bench, before)
        for _ in range(60):
            differ(bench, wrong, draws.randint(0, 5))
            for node in bench.ids:
                if node not in bench.stopped:
                    bench._flush(node)
            draws.shuffle(bench.in_flight)
            weather(bench, draws)
            bench.now_ms += draws.randint(0, 400)
            if bench.leader in bench.stopped or draws.random() < 0.05:
                left = [node for node in bench.ids if node not in bench.stopped]
                bench.leader, bench.term = draws.choice(left), bench.term + 1
        told = f"seed {seed}: wrong {wrong}, stopped {bench.stopped}"
        assert set(bench.stopped) == set(wrong), told
        assert {e.index for e in bench.stopped.values() if e.exact} <= {before + 1}, told


def weather(bench: Bench, draws: random.Random) -> None:
    """Let some messages arrive, some twice, some later, and lose some."""
    arrived, bench.in_flight = bench.in_flight, []
    for message in arrived:
        fate = draws.random()
        if fate < 0.2:
            continue
        if fate < 0.4:
            bench.in_flight.append(message)
        if fate > 0.3:
            bench.deliver(message)
