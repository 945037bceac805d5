"""The server and sessions: repeated writes, and what is too much."""

from __future__ import annotations

import pytest

from tests.server_bench import ServerBench
from zraft.api import Code, Consistency, Flag, Reply
from zraft.core.model import MemberId
from zraft.machine.kv import KV
from zraft.machine.kv_codec import encode_get, encode_put
from zraft.machine.session_ops import (
    Fate,
    SessionOp,
    Terms,
    decode_opened,
    decode_resolution,
    encode_op,
    encode_open,
)
from zraft.node.ports import Limits
from zraft.wire_entry import pack

PUT = encode_put(b"k", b"v")


class Bench:
    """Three servers, and a session of one client."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.servers = ServerBench(3, limits)
        self.servers.run_for(1000)
        opened = self.ask(self.leader, encode_op(SessionOp.OPEN), flags=Flag.SESSION)
        assert opened.code == Code.OK
        self.session, self.ttl_ms = opened.index, decode_opened(opened.body)

    @property
    def leader(self) -> MemberId:
        """The present leader."""
        return self.servers.leader()

    def send(self, node: MemberId, sequence: int, body: bytes = PUT, ack_below: int = 1) -> int:
        """Send a named write and return its id."""
        return self.servers.request(node, body, named=(self.session, sequence, ack_below))

    def ask(
        self,
        node: MemberId,
        body: bytes,
        *,
        flags: Flag = Flag.NONE,
        named: tuple[int, int, int] = (0, 0, 0),
    ) -> Reply:
        """Send a request and return its answer."""
        request_id = self.servers.request(node, body, flags=flags, named=named)
        self.servers.settle()
        return self.servers.only_answer(request_id)

    def revisions(self) -> set[int]:
        """Return the revisions of all stores: one more than the puts that were run."""
        machines = [server.replica.machine for server in self.servers.servers.values()]
        return {machine.revision for machine in machines if isinstance(machine, KV)}

    def last_index(self) -> int:
        """Return the last index of the leader's log."""
        return self.servers.servers[self.leader].raft.last_id.index


def test_a_session_is_opened_through_the_log_under_the_leaders_terms() -> None:
    """What a client or another node's configuration says about the ttl does not count."""
    bench = Bench(Limits(session_terms=Terms(1234)))
    assert bench.ttl_ms == 1234
    body = encode_open(Terms(9_999_999))
    follower = bench.servers.follower()
    opened = bench.ask(follower, body, flags=Flag.SESSION)
    assert decode_opened(opened.body) == 1234
    for server in bench.servers.servers.values():
        assert [s.session_id for s in server.replica.sessions] == [bench.session, opened.index]
        assert {s.ttl_ms for s in server.replica.sessions} == {1234}


def test_a_repeated_write_is_answered_by_any_node_that_applied_it() -> None:
    """From the kept result, at once, with the first index; nothing is proposed for it."""
    bench = Bench()
    first = bench.send(bench.leader, 1)
    bench.servers.settle()
    answer, last_index = bench.servers.only_answer(first), bench.last_index()
    for node in bench.servers.ids:
        again = bench.send(node, 1)
        reply = bench.servers.only_answer(again)
        assert (reply.code, reply.body, reply.index) == (Code.OK, answer.body, answer.index)
    assert bench.last_index() == last_index
    assert bench.revisions() == {2}


def test_a_write_that_is_under_way_is_joined_not_proposed_again() -> None:
    """Retry loops that propose their own command again (redisraft #13) grow the log for ever."""
    bench = Bench()
    before = bench.last_index()
    ids = [bench.send(bench.leader, 1) for _ in range(5)]
    ids.append(bench.send(bench.servers.follower(), 1))
    bench.servers.settle()
    replies = [bench.servers.only_answer(request_id) for request_id in ids]
    assert {(reply.code, reply.index) for reply in replies} == {(Code.OK, before + 1)}
    assert bench.last_index() == before + 1
    assert bench.revisions() == {2}
    assert all(server.waiting == 0 for server in bench.servers.servers.values())


def test_who_joined_a_write_has_a_deadline_of_its_own() -> None:
    """The first may give up, the middle one, or the last; the others stay, and nothing leaks."""
    for impatient in range(3):
        bench = Bench()
        leader = bench.leader
        bench.servers.cut = {node for node in bench.servers.ids if node != leader}
        ids = [
            bench.servers.request(
                leader,
                PUT,
                named=(bench.session, 1, 1),
                deadline_ms=50 if number == impatient else 5000,
            )
            for number in range(3)
        ]
        bench.servers.run_for(80)
        assert bench.servers.only_answer(ids[impatient]).code == Code.UNKNOWN
        assert bench.servers.servers[leader].waiting == 2
        bench.servers.cut = set()
        bench.servers.run_for(1000)
        for number in {0, 1, 2} - {impatient}:
            assert bench.servers.only_answer(ids[number]).code == Code.OK
        assert bench.servers.servers[leader].waiting == 0
        assert bench.servers.servers[leader].drained


def test_a_retry_at_the_next_leader_is_applied_once() -> None:
    """Did my write commit? The old leader can't say; the same name asked again tells."""
    bench = Bench()
    old = bench.leader
    bench.send(old, 1)
    for server in bench.servers.servers.values():
        server.flush(now_ms=bench.servers.now_ms)  # it is on its way to the followers
    network, bench.servers.network = bench.servers.network, []
    for message in network:
        bench.servers.servers[message.dst].on_message(message, now_ms=bench.servers.now_ms)
    bench.servers.network.clear()
    bench.servers.down = {old}
    bench.servers.run_for(2000)
    assert bench.leader != old
    again = bench.send(bench.leader, 1)
    bench.servers.settle()
    assert bench.servers.only_answer(again).code == Code.OK
    bench.servers.down = set()
    bench.servers.run_for(1000)
    assert bench.revisions() == {2}


def test_names_of_a_lost_leadership_are_not_joined() -> None:
    """What a replaced proposal held is proposed anew; the counters start again (etcd a370b6f)."""
    bench = Bench()
    old = bench.leader
    bench.servers.cut = {old}
    lost = bench.send(old, 1)
    bench.servers.settle()
    assert bench.servers.servers[old]._proposals.uncommitted_bytes == len(PUT)
    bench.servers.run_for(1000)
    bench.ask(bench.leader, PUT)  # takes the lost one's index
    bench.servers.cut = set()
    bench.servers.run_for(1000)
    assert bench.servers.only_answer(lost).code == Code.UNAVAILABLE
    bench.servers.servers[old].campaign(now_ms=bench.servers.now_ms)
    bench.servers.run_for(2000)
    again = bench.send(bench.leader, 1)
    bench.servers.settle()
    assert bench.servers.only_answer(again).code == Code.OK
    assert bench.revisions() == {3}
    leader = bench.servers.servers[bench.leader]
    assert leader._proposals.uncommitted_bytes == 0
    assert not leader._proposals._names


def test_an_expired_session_is_refused_by_all_and_runs_nothing() -> None:
    """The log's time decides; the answer says so."""
    bench = Bench(Limits(session_terms=Terms(500)))
    bench.servers.run_for(700)
    reply = bench.ask(bench.leader, PUT, named=(bench.session, 1, 1))
    assert reply.code == Code.SESSION_EXPIRED
    assert bench.revisions() == {1}


def test_resolve_goes_through_the_log() -> None:
    """Applied, or withdrawn for good; asked of any node."""
    bench = Bench()
    bench.send(bench.leader, 1)
    bench.servers.settle()
    fates = []
    for sequence in (1, 2, 2):
        named = bench.session, sequence, 0
        body = encode_op(SessionOp.RESOLVE)
        reply = bench.ask(bench.servers.follower(), body, flags=Flag.SESSION, named=named)
        fates.append(decode_resolution(reply.body).fate)
    assert fates == [Fate.APPLIED, Fate.WITHDRAWN, Fate.WITHDRAWN]
    assert bench.ask(bench.leader, PUT, named=(bench.session, 2, 2)).code == Code.WITHDRAWN
    assert bench.revisions() == {2}


@pytest.mark.parametrize(
    ("body", "flags", "named", "consistency"),
    [
        (PUT, Flag.NONE, (5, 0, 0), Consistency.WRITE),
        (PUT, Flag.SESSION, (0, 0, 0), Consistency.WRITE),
        (pack([99]), Flag.SESSION, (0, 0, 0), Consistency.WRITE),
        (encode_get(b"k"), Flag.NONE, (5, 1, 1), Consistency.LINEARIZABLE),
        (encode_get(b"k"), Flag.NONE, (5, 1, 1), Consistency.STALE),
    ],
)
def test_what_makes_no_sense_with_a_session_is_refused(
    body: bytes, flags: Flag, named: tuple[int, int, int], consistency: Consistency
) -> None:
    """Before anything is proposed."""
    bench = Bench()
    before = bench.last_index()
    request_id = bench.servers.request(
        bench.leader, body, flags=flags, named=named, consistency=consistency
    )
    assert bench.servers.only_answer(request_id).code == Code.INVALID
    bench.servers.settle()
    assert bench.last_index() == before


def test_too_many_uncommitted_bytes_are_busy_with_a_delay() -> None:
    """A leader without its followers fills up to the bound, and is empty again afterwards."""
    bench = Bench(Limits(max_uncommitted_bytes=4 * len(PUT)))
    leader = bench.leader
    bench.servers.cut = {node for node in bench.servers.ids if node != leader}
    ids = [bench.servers.request(leader, PUT) for _ in range(4)]
    bench.servers.run_for(100)
    refused = bench.servers.only_answer(bench.servers.request(leader, PUT))
    assert refused.code == Code.BUSY
    assert b"not applied" in refused.body
    assert 90 <= refused.delay_ms <= 110, "as long as the oldest has been waiting"
    read = bench.servers.request(leader, encode_get(b"k"), consistency=Consistency.LINEARIZABLE)
    bench.servers.cut = set()
    bench.servers.run_for(500)
    for request_id in (*ids, read):
        assert bench.servers.only_answer(request_id).code == Code.OK
    assert bench.servers.servers[leader]._proposals.uncommitted_bytes == 0
    assert bench.ask(bench.leader, PUT).code == Code.OK


def test_a_session_may_not_take_all_the_room() -> None:
    """Beyond its bound it is busy; others are not."""
    bench = Bench(Limits(max_session_requests=3))
    leader = bench.leader
    ids = [bench.send(leader, sequence) for sequence in (1, 2, 3)]
    refused = bench.servers.only_answer(bench.send(leader, 4))
    assert (refused.code, refused.delay_ms > 0) == (Code.BUSY, True)
    other = bench.servers.request(leader, PUT)
    bench.servers.settle()
    assert {bench.servers.only_answer(i).code for i in (*ids, other)} == {Code.OK}
    assert bench.ask(leader, PUT, named=(bench.session, 4, 4)).code == Code.OK
    assert not bench.servers.servers[leader]._admission._of_session
