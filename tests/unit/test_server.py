"""The server: where requests go, what clients are told, what is applied when."""

from __future__ import annotations

from typing import cast

from tests.server_bench import ServerBench
from zraft.api import Code, Consistency, Flag
from zraft.core.model import Role
from zraft.machine.kv_codec import encode_get, encode_put
from zraft.node.ports import Limits


def elected(nodes: int, limits: Limits | None = None) -> ServerBench:
    """Return a bench that has a leader."""
    bench = ServerBench(nodes, limits)
    bench.run_for(1000)
    return bench


def test_write_to_leader_is_answered_after_it_is_applied() -> None:
    """The leader answers ok with the entry's index once its own machine has applied it."""
    bench = elected(3)
    leader = bench.leader()
    request_id = bench.request(leader, encode_put(b"k", b"v"))
    assert bench.answers[request_id] == []
    bench.settle()
    reply = bench.only_answer(request_id)
    assert (reply.code, reply.index) == (Code.OK, 2)
    assert bench.servers[leader].applied_index == 2


def test_write_to_follower_is_forwarded_and_answered_by_the_leader() -> None:
    """Any node takes any request; the answer names the leader as the one who served it."""
    bench = elected(3)
    request_id = bench.request(bench.follower(), encode_put(b"k", b"v"))
    bench.settle()
    reply = bench.only_answer(request_id)
    assert (reply.code, reply.member_id) == (Code.OK, bench.leader())


def test_an_answered_request_is_not_kept_until_its_deadline() -> None:
    """On the leader and on who forwarded it: memory must not grow with rate times deadline."""
    bench = elected(3)
    leader, follower = bench.leader(), bench.follower()
    for node in (leader, follower):
        for value in (b"1", b"2", b"3"):
            bench.request(node, encode_put(b"k", value), deadline_ms=600_000)
    assert len(bench.servers[leader]._deadlines) == 3
    bench.settle()
    assert [len(bench.servers[node]._deadlines) for node in (leader, follower)] == [0, 0]


def test_request_is_forwarded_once_only() -> None:
    """A forwarded request that meets a follower goes back with a hint, not around in circles."""
    bench = elected(3)
    request_id = bench.request(bench.follower(), encode_put(b"k", b"v"), flags=Flag.FORWARDED)
    bench.settle()
    reply = bench.only_answer(request_id)
    assert (reply.code, reply.leader) == (Code.NOT_LEADER, bench.leader())


def test_request_without_leader_is_parked_and_answered_after_the_election() -> None:
    """A node that knows no leader keeps the request and passes it on when there is one."""
    bench = ServerBench(3)
    request_id = bench.request(1, encode_put(b"k", b"v"))
    bench.settle()
    assert bench.answers[request_id] == []
    assert bench.servers[1].parked == 1
    bench.run_for(1000)
    assert bench.only_answer(request_id).code == Code.OK
    assert bench.servers[1].parked == 0


def test_parked_request_ends_as_not_applied_at_its_deadline() -> None:
    """Without a leader until the deadline the answer is unavailable: certainly not applied."""
    bench = ServerBench(3)
    bench.down = {2, 3}
    request_id = bench.request(1, encode_put(b"k", b"v"), deadline_ms=700)
    bench.run_for(1000)
    assert bench.only_answer(request_id).code == Code.UNAVAILABLE
    assert bench.servers[1].waiting == bench.servers[1].parked == 0


def test_parking_is_bounded_by_busy() -> None:
    """Beyond the bound of parked requests the answer is busy, at once."""
    bench = ServerBench(3, Limits(max_parked_requests=2))
    ids = [bench.request(1, encode_put(b"k", b"v")) for _ in range(3)]
    assert [bench.answers[i] and bench.answers[i][0].code for i in ids] == [[], [], Code.BUSY]


def test_waiting_requests_are_bounded_by_busy() -> None:
    """A node holds a bounded number of unanswered requests; the next one is refused, not kept."""
    bench = elected(3, Limits(max_waiting_requests=2))
    leader = bench.leader()
    bench.down = set(bench.ids) - {leader}
    ids = [bench.request(leader, encode_put(b"k", b"v")) for _ in range(3)]
    bench.settle()
    assert bench.only_answer(ids[2]).code == Code.BUSY
    assert bench.servers[leader].waiting == 2


def test_write_to_isolated_leader_is_never_ok() -> None:
    """A leader without a quorum can't commit: its client hears unknown when the deadline passes."""
    bench = elected(5)
    leader = bench.leader()
    bench.cut = {leader}
    request_id = bench.request(leader, encode_put(b"k", b"old"), deadline_ms=2000)
    bench.run_for(3000)
    assert bench.servers[leader].raft.role is not Role.LEADER
    assert bench.only_answer(request_id).code == Code.UNKNOWN


def test_replaced_proposal_is_failed_for_certain_after_healing() -> None:
    """Another leader's entry at the same index decides an old proposal: it is not applied."""
    bench = elected(5)
    old = bench.leader()
    bench.cut = {old}
    request_id = bench.request(old, encode_put(b"k", b"old"), deadline_ms=60_000)
    bench.run_for(1000)
    winner = bench.request(bench.leader(), encode_put(b"k", b"new"))
    bench.run_for(100)
    assert bench.only_answer(winner).code == Code.OK
    assert bench.answers[request_id] == []
    bench.cut = set()
    bench.run_for(1000)
    assert bench.only_answer(request_id).code == Code.UNAVAILABLE
    read = bench.request(old, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.settle()
    assert b"new" in bench.only_answer(read).body


def test_surviving_proposal_of_a_lost_leadership_is_ok() -> None:
    """A proposal that the next leader commits is answered ok by the node that was asked."""
    bench = elected(3)
    old = bench.leader()
    request_id = bench.request(old, encode_put(b"k", b"v"))
    server = bench.servers[old]
    server.flush(now_ms=bench.now_ms)  # the appends are on their way
    server.step_down(now_ms=bench.now_ms)
    assert bench.answers[request_id] == []
    bench.run_for(2000)
    assert bench.only_answer(request_id).code == Code.OK


def test_linearizable_read_needs_a_quorum() -> None:
    """A leader that can't reach a quorum does not answer a linearizable read."""
    bench = elected(3)
    leader = bench.leader()
    bench.cut = {leader}
    read = bench.request(
        leader, encode_get(b"k"), consistency=Consistency.LINEARIZABLE, deadline_ms=900
    )
    bench.run_for(200)
    assert bench.answers[read] == []
    bench.run_for(1500)
    assert bench.only_answer(read).code == Code.UNAVAILABLE


def test_read_of_a_lost_leadership_moves_on_to_the_next_leader() -> None:
    """A read changed nothing, so it is tried again elsewhere and not failed."""
    bench = elected(3)
    old = bench.leader()
    bench.cut = {old}
    read = bench.request(old, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.run_for(600)
    bench.cut = set()
    bench.run_for(1000)
    assert bench.only_answer(read).code == Code.OK


def test_stale_read_is_answered_by_any_node_at_once() -> None:
    """A stale read needs no leader; it says as of which index it is."""
    bench = elected(3)
    bench.request(bench.leader(), encode_put(b"k", b"v"))
    bench.run_for(100)
    follower = bench.follower()
    bench.cut = {follower}
    read = bench.request(follower, encode_get(b"k"), consistency=Consistency.STALE)
    reply = bench.only_answer(read)
    assert (reply.code, reply.index) == (Code.OK, 2)


def test_forwarded_write_is_unknown_when_the_connection_to_the_leader_is_lost() -> None:
    """A write that was passed on may be applied; a read that was passed on is tried again."""
    bench = elected(3)
    leader, follower = bench.leader(), bench.follower()
    write = bench.request(follower, encode_put(b"k", b"v"))
    read = bench.request(follower, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.down = {leader}
    bench.servers[follower].on_forward_lost(leader, now_ms=bench.now_ms)
    assert bench.only_answer(write).code == Code.UNKNOWN
    assert bench.answers[read] == []
    bench.run_for(2000)
    assert bench.only_answer(read).code == Code.OK


def test_poison_command_is_a_replicated_error_and_applied_index_moves_on() -> None:
    """A command that the machine refuses has an error as its result on every node (pitfalls 52)."""
    bench = elected(3)
    poison = bench.request(bench.leader(), b"\xc1 no command")
    good = bench.request(bench.leader(), encode_put(b"k", b"v"))
    bench.run_for(200)
    assert bench.only_answer(poison).code == Code.INVALID
    assert bench.only_answer(good).code == Code.OK
    assert {server.applied_index for server in bench.servers.values()} == {3}
    assert len({server.replica.digest() for server in bench.servers.values()}) == 1


def test_barrier_goes_through_the_log_and_changes_nothing() -> None:
    """A barrier is answered once it is applied; the state machine never sees it."""
    bench = elected(3)
    leader = bench.leader()
    before = bench.servers[leader].replica.machine.digest()
    barrier = bench.request(leader, b"", flags=Flag.BARRIER)
    bench.settle()
    assert bench.only_answer(barrier).code == Code.OK
    assert bench.servers[leader].replica.machine.digest() == before


def test_stop_answers_everyone() -> None:
    """A node that stops refuses new requests, and tells everyone who waits what is known."""
    bench = elected(3)
    leader = bench.leader()
    bench.down = set(bench.ids) - {leader}
    undecided = bench.request(leader, encode_put(b"k", b"v"))
    read = bench.request(leader, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.settle()
    server = bench.servers[leader]
    server.prepare_stop(now_ms=bench.now_ms)
    late = bench.request(leader, encode_put(b"k", b"w"))
    assert not server.drained
    server.finish_stop(now_ms=bench.now_ms)
    codes = [bench.only_answer(i).code for i in (undecided, read, late)]
    assert codes == [Code.UNKNOWN, Code.NOT_LEADER, Code.NOT_LEADER]
    assert server.waiting == 0
    assert server.raft.role is Role.FOLLOWER


def test_unknown_consistency_is_refused_not_guessed() -> None:
    """A level that a newer client knows, and this node does not, is not taken for another one."""
    bench = elected(1)
    newer = bench.request(1, encode_get(b"k"), consistency=cast("Consistency", 9))
    assert bench.only_answer(newer).code == Code.UNSUPPORTED


def test_single_node_serves_alone() -> None:
    """A cluster of one elects itself, writes and reads."""
    bench = elected(1)
    write = bench.request(1, encode_put(b"k", b"v"))
    read = bench.request(1, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.settle()
    assert bench.only_answer(write).code == Code.OK
    assert b"v" in bench.only_answer(read).body


def test_parking_ends_while_the_client_has_time_to_ask_another_node() -> None:
    """A node that is cut off gives requests back as not applied after two election timeouts."""
    bench = ServerBench(3)
    bench.down = {2, 3}
    request_id = bench.request(1, encode_put(b"k", b"v"), deadline_ms=60_000)
    bench.run_for(599)
    assert bench.answers[request_id] == []
    bench.run_for(2)
    assert bench.only_answer(request_id).code == Code.UNAVAILABLE
    assert bench.servers[1].waiting == bench.servers[1].parked == 0
