"""Who answers which read, what a bound refuses, and what waits while leadership moves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from tests.server_bench import ServerBench
from zraft.api import STALENESS_UNKNOWN_MS, Code, Consistency, Flag, Reply
from zraft.core.messages import AppendEntries, ReadIndexResponse, RequestVote
from zraft.core.model import Role
from zraft.core.raft import Raft
from zraft.core.transfer import TransferRefusal
from zraft.machine.kv_codec import encode_get, encode_put
from zraft.node.ports import Limits
from zraft.node.reading import Reading

WITH_LEASES = Limits(lease_reads=True)


def elected(nodes: int = 3, limits: Limits | None = None) -> ServerBench:
    """Return a bench that has a leader, and a key."""
    bench = ServerBench(nodes, limits)
    bench.run_for(1000)
    bench.request(bench.leader(), encode_put(b"k", b"v"))
    bench.run_for(100)
    return bench


# Linearizable: any node


def test_follower_serves_a_linearizable_read_itself() -> None:
    """It asks the leader for the index only, and answers from its own state (thesis §6.4)."""
    bench = elected()
    follower = bench.follower()
    read = bench.request(follower, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    assert bench.answers[read] == []
    bench.settle()
    reply = bench.only_answer(read)
    assert (reply.code, reply.member_id, reply.staleness_ms) == (Code.OK, follower, 0)
    assert b"v" in reply.body


def test_follower_that_lags_waits_until_it_has_applied_the_index() -> None:
    """The leader's index is ahead of the follower's state: the answer waits for the entries."""
    bench = elected()
    follower = bench.follower()
    server = bench.servers[follower]
    bench.cut = {follower}
    bench.request(bench.leader(), encode_put(b"k", b"new"))
    bench.settle()
    bench.cut = set()
    assert server.applied_index < bench.servers[bench.leader()].applied_index
    read = bench.request(follower, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.settle()
    bench.run_for(100)
    reply = bench.only_answer(read)
    assert b"new" in reply.body
    assert reply.index == server.applied_index


def test_follower_that_is_cut_off_answers_no_linearizable_read() -> None:
    """Nobody confirms the index: the read ends as not answered."""
    bench = elected()
    follower = bench.follower()
    bench.cut = {follower}
    read = bench.request(follower, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.run_for(3000)
    assert bench.only_answer(read).code == Code.UNAVAILABLE
    assert bench.servers[follower].waiting == 0


# Lease: only if allowed, only by the leader


def test_lease_read_is_refused_where_leases_are_off() -> None:
    """Off by default, and the refusal says what they trust."""
    bench = elected()
    read = bench.request(bench.leader(), encode_get(b"k"), consistency=Consistency.LEASE)
    reply = bench.only_answer(read)
    assert reply.code == Code.UNSUPPORTED
    assert b"clocks" in reply.body


def test_leader_answers_a_lease_read_without_a_message() -> None:
    """Its lease says that nobody else leads: it asks nobody."""
    bench = elected(3, WITH_LEASES)
    leader = bench.leader()
    bench.network.clear()
    read = bench.request(leader, encode_get(b"k"), consistency=Consistency.LEASE)
    bench.servers[leader].flush(now_ms=bench.now_ms)
    assert b"v" in bench.only_answer(read).body
    assert bench.network == []


def test_follower_passes_a_lease_read_on() -> None:
    """A follower has no lease; the leader answers."""
    bench = elected(3, WITH_LEASES)
    read = bench.request(bench.follower(), encode_get(b"k"), consistency=Consistency.LEASE)
    bench.settle()
    reply = bench.only_answer(read)
    assert (reply.code, reply.member_id) == (Code.OK, bench.leader())


def test_leader_without_a_lease_asks_before_it_answers() -> None:
    """A stall took the lease: the read is answered all the same, by a round of messages."""
    bench = elected(3, WITH_LEASES)
    leader = bench.leader()
    bench.servers[leader].on_stall(100, now_ms=bench.now_ms)
    bench.network.clear()
    read = bench.request(leader, encode_get(b"k"), consistency=Consistency.LEASE)
    bench.servers[leader].flush(now_ms=bench.now_ms)
    assert bench.answers[read] == []
    assert any(isinstance(message, AppendEntries) for message in bench.network)
    bench.settle()
    assert bench.only_answer(read).code == Code.OK


def test_isolated_leader_answers_no_lease_read_after_its_lease() -> None:
    """135 ms after the last confirmed heartbeat left it can't answer alone any more."""
    bench = elected(3, WITH_LEASES)
    leader = bench.leader()
    bench.cut = {leader}
    bench.run_for(140)
    assert bench.servers[leader].raft.role is Role.LEADER
    read = bench.request(leader, encode_get(b"k"), consistency=Consistency.LEASE)
    bench.settle()
    assert bench.answers[read] == []


# Stale: how old?


def test_stale_read_tells_its_age() -> None:
    """A follower counts from when it last heard its leader; the leader from its quorum."""
    bench = elected()
    follower = bench.follower()
    bench.cut = {follower}
    bench.run_for(80)
    read = bench.request(follower, encode_get(b"k"), consistency=Consistency.STALE)
    assert 80 <= bench.only_answer(read).staleness_ms <= 130
    at_leader = bench.request(bench.leader(), encode_get(b"k"), consistency=Consistency.STALE)
    assert bench.only_answer(at_leader).staleness_ms <= 50


def test_age_of_a_node_that_heard_no_leader_is_unknown() -> None:
    """Nobody knows what the others wrote since: the answer says so, and is no number of its own."""
    bench = ServerBench(3)
    read = bench.request(1, encode_get(b"k"), consistency=Consistency.STALE)
    assert bench.only_answer(read).staleness_ms == STALENESS_UNKNOWN_MS


def test_age_counts_from_a_commit_index_that_is_applied() -> None:
    """A node that hears its leader and lags is as old as the state it has, not as the heartbeat."""
    bench = elected()
    follower = bench.follower()
    server = bench.servers[follower]
    before_ms = server.reading.staleness_ms(bench.now_ms)
    state = server.raft.state
    state.told_commit, state.told_ms = state.told_commit + 5, bench.now_ms + 60
    server.reading.note_heard(server.applied_index)
    assert server.reading.staleness_ms(bench.now_ms + 60) >= before_ms + 60


def test_age_does_not_count_from_what_is_in_the_log_and_not_applied() -> None:
    """A state is as old as what it holds, however much waits to be applied."""
    log = SimpleNamespace(term=lambda index: 2)
    state = SimpleNamespace(told_commit=5, told_ms=100, term=2, leadership=None, log=log)
    reading = Reading(cast("Raft", SimpleNamespace(state=state)))
    reading.note_heard(4)
    assert reading.staleness_ms(150) == STALENESS_UNKNOWN_MS
    state.told_commit, state.told_ms = 9, 140
    reading.note_heard(5)
    assert reading.staleness_ms(150) == 50
    reading.note_heard(8)
    assert reading.staleness_ms(150) == 50
    reading.note_heard(9)
    assert reading.staleness_ms(150) == 10


def test_bounded_stale_read_is_answered_at_once_after_a_recent_proof() -> None:
    """A confirmed read proves the state's age; within the bound nobody is asked again."""
    bench = elected()
    follower = bench.follower()
    first = bench.request(
        follower, encode_get(b"k"), consistency=Consistency.STALE, max_staleness_ms=200
    )
    assert bench.answers[first] == []  # nothing is proven yet: it asks
    bench.settle()
    assert bench.only_answer(first).staleness_ms == 0
    bench.cut = {follower}
    bench.run_for(150)
    second = bench.request(
        follower, encode_get(b"k"), consistency=Consistency.STALE, max_staleness_ms=200
    )
    assert bench.only_answer(second).staleness_ms == 150


def test_bound_is_not_met_by_having_heard_a_leader() -> None:
    """A heartbeat may have been long on its way, or from a leader that was replaced: no proof."""
    bench = elected()
    follower = bench.follower()
    bench.cut = {follower}
    read = bench.request(
        follower, encode_get(b"k"), consistency=Consistency.STALE, max_staleness_ms=1000
    )
    assert bench.servers[follower].reading.staleness_ms(bench.now_ms) <= 50
    bench.run_for(2000)
    assert bench.only_answer(read).code == Code.UNAVAILABLE


def test_late_answer_about_an_index_serves_no_later_read() -> None:
    """One id per attempt: an answer to a question that was given up finds nobody (pitfalls 35)."""
    bench = elected()
    follower = bench.follower()
    first = bench.request(follower, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.servers[follower].flush(now_ms=bench.now_ms)
    bench.network.clear()  # the question is lost
    server, state = bench.servers[follower], bench.servers[follower].raft.state
    lost_id = state.asked_reads[0].read_id
    bench.run_for(160)
    assert bench.only_answer(first).code == Code.OK  # asked again, under another id
    bench.cut = {follower}
    second = bench.request(follower, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    server.flush(now_ms=bench.now_ms)
    late = ReadIndexResponse(bench.leader(), follower, state.term, lost_id, 1)
    server.on_message(late, now_ms=bench.now_ms)
    server.flush(now_ms=bench.now_ms)
    assert bench.answers[second] == []


# While leadership moves


def test_writes_wait_for_the_next_leader_while_a_transfer_runs() -> None:
    """Nothing is refused: what comes in meanwhile goes to the leader that takes over."""
    bench = elected()
    old = bench.leader()
    target = bench.follower()
    assert bench.servers[old].transfer(target, now_ms=bench.now_ms) is None
    at_old = bench.request(old, encode_put(b"a", b"1"))
    other = next(node for node in bench.ids if node not in (old, target))
    through = bench.request(other, encode_put(b"b", b"2"))
    assert bench.servers[old].parked == 1
    assert bench.servers[old].handing_over
    bench.run_for(100)
    assert bench.leader() == target
    assert bench.only_answer(at_old).code == Code.OK
    assert bench.only_answer(through).code == Code.OK
    assert not bench.servers[old].handing_over


def test_reads_are_answered_while_a_transfer_runs() -> None:
    """A transfer takes no proposals; the leader still leads, and reads need nothing else."""
    bench = elected()
    old, target = bench.leader(), bench.follower()
    bench.cut = {target}
    assert bench.servers[old].transfer(target, now_ms=bench.now_ms) is None
    read = bench.request(old, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.settle()
    assert bench.only_answer(read).code == Code.OK


def test_parked_writes_are_proposed_when_a_transfer_is_given_up() -> None:
    """The target is gone: the leader leads on, and the writes go into its log."""
    bench = elected()
    old, target = bench.leader(), bench.follower()
    bench.cut = {target}
    assert bench.servers[old].transfer(target, now_ms=bench.now_ms) is None
    write = bench.request(old, encode_put(b"a", b"1"))
    bench.run_for(250)
    assert bench.answers[write] == []
    bench.run_for(100)
    assert bench.only_answer(write).code == Code.OK
    assert bench.servers[old].raft.role is Role.LEADER


def test_follower_sends_a_write_that_met_a_deposed_leader_to_the_next_one() -> None:
    """The leader it was passed to leads no more: certainly not applied, so it goes on by itself."""
    bench = elected()
    old, target = bench.leader(), bench.follower()
    other = next(node for node in bench.ids if node not in (old, target))
    write = bench.request(other, encode_put(b"a", b"1"))
    assert bench.servers[old].transfer(target, now_ms=bench.now_ms) is None
    bench.run_for(100)
    reply = bench.only_answer(write)
    assert (reply.code, reply.member_id) == (Code.OK, target)


@pytest.mark.parametrize(
    ("who", "to", "refusal"),
    [
        ("follower", "leader", TransferRefusal.NOT_LEADER),
        ("leader", "leader", TransferRefusal.MYSELF),
        ("leader", "nobody", TransferRefusal.UNKNOWN),
    ],
)
def test_transfer_that_can_not_be_is_refused_with_the_reason(
    who: str, to: str, refusal: TransferRefusal
) -> None:
    """Nothing changes, and the operator hears why."""
    bench = elected()
    nodes = {"leader": bench.leader(), "follower": bench.follower(), "nobody": 99}
    server = bench.servers[nodes[who]]
    assert server.transfer(nodes[to], now_ms=bench.now_ms) is refusal


def test_forwarded_write_at_a_deposed_leader_goes_back_with_a_hint() -> None:
    """It was passed on once already; whoever sent it knows better where to go."""
    bench = elected()
    old, target = bench.leader(), bench.follower()
    assert bench.servers[old].transfer(target, now_ms=bench.now_ms) is None
    write = bench.request(old, encode_put(b"a", b"1"), flags=Flag.FORWARDED)
    bench.run_for(100)
    reply = bench.only_answer(write)
    assert (reply.code, reply.leader) == (Code.NOT_LEADER, target)


def test_write_that_comes_back_from_a_deposed_leader_to_a_stopping_node_is_refused() -> None:
    """It was passed on, it is certainly not applied, and it can't wait here any more."""
    bench = elected()
    old, follower = bench.leader(), bench.follower()
    write = bench.request(follower, encode_put(b"a", b"1"))
    server = bench.servers[follower]
    server.prepare_stop(now_ms=bench.now_ms)
    state = server.raft.state
    server.raft.step(
        RequestVote(old, follower, state.term + 1, False, state.term + 1, 0, 0, True),
        now_ms=bench.now_ms,
    )
    (sent,) = bench.forwards
    bench.forwards.clear()
    refusal = Reply(sent[2][0].request_id, Code.NOT_LEADER, old, state.term, 0, 0, b"")
    server.on_forward_replies(old, [refusal], now_ms=bench.now_ms)
    assert bench.only_answer(write).code == Code.NOT_LEADER
    assert server.drained
    assert server.waiting == 0
