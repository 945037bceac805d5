"""The synchronous client over real sockets, against nodes that answer by a plan."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client_fake_node import CLUSTER
from tests.client_fake_nodes import FakeNodes
from zraft import clock
from zraft.api import Consistency, Reply
from zraft.client.kv import PutResult
from zraft.client.sync import Client
from zraft.errors import (
    Busy,
    ControlError,
    InvalidCommand,
    NotFound,
    NotRunning,
    OutcomeUnknown,
    TooLargeError,
    Unavailable,
)
from zraft.machine.kv_codec import (
    MAX_PAGE_ITEMS,
    Compare,
    Get,
    Put,
    Relation,
    Target,
    Txn,
    encode_get,
    encode_put,
)
from zraft.machine.kv_results import KeyValue, decode_get_result

pytestmark = pytest.mark.cluster


@pytest.fixture
def nodes() -> Iterator[FakeNodes]:
    directory = Path(tempfile.mkdtemp(prefix="zf"))
    found = FakeNodes(directory)
    yield found
    found.close()
    shutil.rmtree(directory)


def client_of(nodes: FakeNodes, timeout_s: float = 5.0) -> Client:
    return Client(environ=nodes.environ, timeout_s=timeout_s)


def see_loss(client: Client, key: int) -> None:
    """Wait until the loss of a connection is known to ZeroMQ, though not yet to the client."""
    assert client._sockets.links[key].monitor.poll(10_000)


# The store


def test_put_get_entry_delete_cas_scan(nodes: FakeNodes) -> None:
    """Texts go as UTF-8, answers are bytes, a missing key is None."""
    nodes.start(1)
    with Client(endpoints=nodes.endpoint(1)) as client:
        kv = client.kv
        assert kv.put("grüße", "wörld") == PutResult(2)
        assert kv.get("grüße") == "wörld".encode()
        assert kv.get(b"gr\xc3\xbc\xc3\x9fe") == "wörld".encode()
        assert kv.get("missing") is None
        assert kv.entry("missing") is None
        assert kv.entry("grüße") == KeyValue("grüße".encode(), "wörld".encode(), 2, 2, 1, 0)
        assert kv.delete("grüße") is True
        assert kv.delete("grüße") is False
        assert kv.cas("x", expect=None, set="1") is True
        assert kv.cas("x", expect=None, set="2") is False
        assert kv.cas("x", expect="1", set=b"2") is True
        current = kv.compare_and_set("x", expect="1", set="3").current
        assert current is not None
        assert current.value == b"2"
        assert kv["x"] == b"2"
        with pytest.raises(NotFound, match="missing"):
            kv["missing"]
        assert kv.get("x", consistency="stale") == b"2"


def test_an_answer_tells_where_it_came_from(nodes: FakeNodes) -> None:
    """`info`: who wrote it, through whom, term, index and the store's revision."""
    nodes.start(1, leader=1)
    with client_of(nodes) as client:
        nothing_yet = client.info
        assert nothing_yet is None
        client.kv.put("x", "1", at="n1")
        assert tuple(client.info or ()) == ("n1", "n1", 1, CLUSTER.hex(), 3, 1, 2, 0)
        client.kv.get("x", at="n1")
        assert client.info is not None
        assert client.info.revision == 2
        assert client.barrier(at="n1").index == 2


def test_scan_reads_page_by_page(nodes: FakeNodes) -> None:
    """More keys than fit into one answer, in order, up to the limit; other prefixes not."""
    nodes.start(1)
    count = MAX_PAGE_ITEMS + 250
    with Client(endpoints=nodes.endpoint(1)) as client:
        for number in range(count):
            client.submit(encode_put(b"k/%05d" % number, b"v"), Consistency.WRITE)
        client.submit(encode_put(b"other", b"v"), Consistency.WRITE)
        while client.outstanding:
            client.wait()
        found = client.kv.scan("k/")
        assert [item.key for item in found] == [b"k/%05d" % number for number in range(count)]
        assert client.kv.count("k/") == count
        assert len(client.kv.scan("k/", limit=MAX_PAGE_ITEMS + 7)) == MAX_PAGE_ITEMS + 7
        assert len(client.kv.scan("k/", limit=3)) == 3
        assert client.kv.scan("k/", limit=0) == []
        assert client.kv.scan("none") == []
        keys = client.kv.scan("k/0000", keys_only=True)
        assert {item.value for item in keys} == {b""}
        assert len(keys) == 10
        assert len(client.kv.scan()) == count + 1


def test_a_transaction_over_the_wire(nodes: FakeNodes) -> None:
    """Compares, a branch, and a response for each of its operations."""
    nodes.start(1)
    with Client(endpoints=nodes.endpoint(1)) as client:
        absent = Compare(Target.VERSION, Relation.EQUAL, b"x", 0)
        txn = Txn([absent], [Put(b"x", b"1"), Get(b"x")], [Get(b"x")])
        item = KeyValue(b"x", b"1", 2, 2, 1, 0)
        assert client.kv.transact(txn) == (2, True, [None, item])
        assert client.kv.transact(txn) == (2, False, [item])


def test_what_the_machine_refuses_is_invalid(nodes: FakeNodes) -> None:
    """Its own words are in the error."""
    nodes.start(1)
    with (
        Client(endpoints=nodes.endpoint(1)) as client,
        pytest.raises(InvalidCommand, match="not a command of the key-value store"),
    ):
        client.call(b"poison", Consistency.WRITE)


def test_what_is_too_large_or_impossible_is_refused_before_sending(nodes: FakeNodes) -> None:
    """No socket is even made."""
    with client_of(nodes) as client:
        with pytest.raises(TooLargeError):
            client.kv.put("x", bytes(1 << 20))
        with pytest.raises(TooLargeError):
            client.kv.get("x" * 9000)
        with pytest.raises(InvalidCommand):
            client.kv.put("", "1")
        with pytest.raises(ControlError, match="max_staleness=2 is impossible") as caught:
            client.kv.get("x", max_staleness=2.0)
        assert caught.value.why
        assert caught.value.try_
        with pytest.raises(ControlError, match="no consistency"):
            client.kv.get("x", consistency="eventual")  # type: ignore[arg-type]  # on purpose
        with pytest.raises(ControlError, match='no node "n7"'):
            client.kv.get("x", at="n7")
        assert client._sockets.links == {}
        assert client.outstanding == 0


# Failures


def test_a_killed_node_is_left_at_once(nodes: FakeNodes) -> None:
    """A put after the kill goes to another node, long before any timeout."""
    nodes.start(1, leader=1)
    nodes.start(2, leader=2)
    with client_of(nodes, 20.0) as client:
        client.kv.put("x", "1", at="n1")
        nodes.kill(1)
        see_loss(client, 1)
        started_ms = clock.now_ms()
        client.kv.put("x", "2")
        assert clock.now_ms() - started_ms < 5000
        assert client.info is not None
        assert client.info.node == "n2"


def test_a_write_in_flight_to_a_killed_node_is_unknown_at_once(nodes: FakeNodes) -> None:
    """It was sent and may be applied: not sent again to the living node, and no waiting."""
    nodes.start(1, "ok,die", leader=1)
    nodes.start(2)
    with client_of(nodes, 20.0) as client:
        client.kv.put("x", "1", at="n1")
        started_ms = clock.now_ms()
        with pytest.raises(OutcomeUnknown, match="may or may not have been applied") as caught:
            client.kv.put("x", "2")
        assert clock.now_ms() - started_ms < 5000
        assert "connection to n1 was lost" in caught.value.why
        assert caught.value.request_id is not None
    assert nodes.frames(2) == []


def test_a_read_in_flight_to_a_killed_node_moves_on(nodes: FakeNodes) -> None:
    """Reads change nothing."""
    nodes.start(1, "ok,die", leader=1)
    nodes.start(2)
    with client_of(nodes, 20.0) as client:
        client.kv.put("x", "1", at="n1")
        assert client.kv.get("x") is None
        assert client.info is not None
        assert client.info.node == "n2"


def test_answers_that_arrived_before_the_connection_was_lost_count(nodes: FakeNodes) -> None:
    """The node answers all and dies before the client reads: none of it is unknown."""
    for _ in range(8):
        nodes.start(1, "ok,last-words")
        with Client(endpoints=nodes.endpoint(1)) as client:
            client.kv.put("x", "1")
            for number in range(50):
                client.submit(encode_put(b"k%d" % number, b"v"), Consistency.WRITE)
            ended = client.wait(timeout_s=0)  # sends them; a quick node may have answered by then
            nodes.processes[1].wait(10)
            while client.outstanding:
                ended += client.wait()
            assert len(ended) == 50
            assert all(isinstance(finished.outcome, Reply) for finished in ended)
        nodes.output(1).close()


def test_a_node_that_comes_back_serves_again(nodes: FakeNodes) -> None:
    """The same client goes on with the same node after its restart."""
    nodes.start(1)
    with Client(endpoints=nodes.endpoint(1), timeout_s=20.0) as client:
        client.kv.put("x", "1")
        nodes.kill(1)
        see_loss(client, -1)
        nodes.output(1).close()
        with pytest.raises(Unavailable, match="no node was reached"):
            client.kv.put("x", "2", timeout=0.2)
        nodes.start(1)
        assert client.kv.put("x", "3") == PutResult(2)


def test_a_hint_at_the_leader_is_followed(nodes: FakeNodes) -> None:
    """And remembered: the next request goes there directly."""
    nodes.start(1, "ok,not-leader", leader=2)
    nodes.start(2, leader=2)
    with client_of(nodes) as client:
        client.kv.get("x", at="n1", consistency="stale")
        client.core.nodes.leader = client.core.nodes.named("n1")
        client.kv.put("x", "1")
        client.kv.put("x", "2")
        assert client.info is not None
        assert client.info.via == "n2"
    assert nodes.frames(1) == [(1, 0), (1, 1)]
    assert nodes.frames(2) == [(1, 1), (1, 1)]


def test_a_busy_node_is_asked_again(nodes: FakeNodes) -> None:
    """Busy means not applied; if it stays so, that is the error."""
    nodes.start(1, "busy,busy,ok")
    nodes.start(2, "busy")
    with Client(endpoints=nodes.endpoint(1)) as client:
        assert client.kv.put("x", "1") == PutResult(2)
    with Client(endpoints=nodes.endpoint(2)) as client:
        with pytest.raises(Busy, match="nothing changed") as caught:
            client.kv.put("x", "1", timeout=0.3)
        assert caught.value.retryable


def test_garbage_is_counted_and_changes_nothing(nodes: FakeNodes) -> None:
    """Junk, frames of another cluster, answers to nobody: the right answer still counts."""
    nodes.start(1, "ok,garbage,ok")
    with client_of(nodes) as client:
        client.kv.put("x", "1", at="n1")
        assert client.kv.put("x", "2", at="n1") == PutResult(3)
        assert client.kv.put("x", "3", at="n1") == PutResult(4)
        assert client.core.counters["frames_bad"] == 5
        assert client.core.counters["replies_foreign"] == 1
        assert client.core.counters["replies_late"] == 1


def test_a_node_that_says_nothing_makes_writes_unknown_and_reads_unavailable(
    nodes: FakeNodes,
) -> None:
    """Each at its deadline, not before and not long after."""
    nodes.start(1, "silent")
    with Client(endpoints=nodes.endpoint(1)) as client:
        started_ms = clock.now_ms()
        with pytest.raises(OutcomeUnknown, match=r"no reply in 0\.3s"):
            client.kv.put("x", "1", timeout=0.3)
        with pytest.raises(Unavailable):
            client.kv.get("x", timeout=0.3)
        assert 600 <= clock.now_ms() - started_ms < 5000


def test_a_paused_node_is_passed_over(nodes: FakeNodes) -> None:
    """Its kernel accepts the connection, but there is no handshake: nothing is sent there."""
    for number in (1, 2):
        nodes.start(number)
    nodes.send_signal(1, signal.SIGSTOP)
    for _ in range(6):  # each begins at a node of its own choice
        with Client(endpoints=[nodes.endpoint(1), nodes.endpoint(2)]) as client:
            client.kv.put("x", "1")
            assert client.info is not None
            assert client.info.via == nodes.endpoint(2)
    nodes.send_signal(1, signal.SIGCONT)
    assert nodes.frames(1) == []


def test_one_node_only_means_no_fail_over(nodes: FakeNodes) -> None:
    """A dead one is Unavailable at once, though others live."""
    nodes.start(1)
    with client_of(nodes, 20.0) as client:
        started_ms = clock.now_ms()
        with pytest.raises(Unavailable, match="only n3 was to be asked"):
            client.kv.get("x", at="n3")
        assert clock.now_ms() - started_ms < 5000
        assert client.kv.get("x", at="n1") is None


# Many requests, threads, processes


def test_many_requests_share_few_frames(nodes: FakeNodes) -> None:
    """500 outstanding on one socket; each ends once, with its own answer."""
    nodes.start(1)
    with Client(endpoints=nodes.endpoint(1)) as client:
        client.kv.put("x", "1")
        ids = [
            client.submit(encode_put(b"k%d" % number, b"%d" % number), Consistency.WRITE)
            for number in range(500)
        ]
        ended: list[int] = []
        while client.outstanding:
            ended += [finished.request_id for finished in client.wait()]
        assert sorted(ended) == ids
        reads = {
            client.submit(encode_get(b"k%d" % number), Consistency.LINEARIZABLE): number
            for number in range(500)
        }
        assert client.kv.get("k7") == b"7"  # a call in between takes no answer of others
        while reads:
            for finished in client.wait():
                number = reads.pop(finished.request_id)
                assert isinstance(finished.outcome, Reply)
                item = decode_get_result(finished.outcome.body).item
                assert item is not None
                assert item.value == b"%d" % number
        assert client.wait() == []
    assert len(nodes.frames(1)) < 50


def test_wait_comes_back_in_time_with_nothing(nodes: FakeNodes) -> None:
    """`timeout_s` bounds the waiting, not the request."""
    nodes.start(1, "silent")
    with Client(endpoints=nodes.endpoint(1)) as client:
        assert client.wait(timeout_s=5) == []
        client.submit(encode_put(b"x", b"1"), Consistency.WRITE, timeout_s=0.5)
        assert client.wait(timeout_s=0.05) == []
        (finished,) = client.wait()
        assert isinstance(finished.outcome, OutcomeUnknown)


def test_a_client_belongs_to_its_thread(nodes: FakeNodes) -> None:
    """Another thread is refused before it touches a socket."""
    nodes.start(1)
    with Client(endpoints=nodes.endpoint(1)) as client:
        client.kv.put("x", "1")
        with pytest.raises(ControlError, match="another thread"):
            asyncio.run(asyncio.to_thread(client.kv.get, "x"))
        assert client.kv.get("x") == b"1"


def test_a_client_does_not_work_after_a_fork(nodes: FakeNodes) -> None:
    """The child is refused, and its end does not hurt the parent's sockets."""
    nodes.start(1)
    with Client(endpoints=nodes.endpoint(1)) as client:
        client.kv.put("x", "1")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                client.kv.get("x")
            except ControlError:
                client.close()
                status = 42
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
        assert client.kv.get("x") == b"1"


def test_a_closed_client_says_so(nodes: FakeNodes) -> None:
    """Closing twice is fine, using it is not."""
    client = client_of(nodes)
    client.close()
    client.close()
    with pytest.raises(ControlError, match="closed"):
        client.kv.get("x")


# Finding a cluster


def test_a_cluster_is_found_by_name_by_environment_or_by_default(nodes: FakeNodes) -> None:
    """Also through a link, as for a cluster whose directory was chosen."""
    nodes.start(1)
    home = nodes.write_cluster_file("moved")
    elsewhere = nodes.directory / "elsewhere"
    home.rename(elsewhere)
    home.symlink_to(elsewhere)
    for client in (
        Client("moved", environ=nodes.environ),
        Client(environ={**nodes.environ, "ZRAFT_CLUSTER": "moved"}),
        Client(environ=nodes.environ),
        Client(nodes.endpoint(1)),
        Client(endpoints=[nodes.endpoint(1)]),
    ):
        with client:
            assert client.kv.get("x") is None
    with pytest.raises(NotRunning, match='no cluster "other"'):
        Client("other", environ=nodes.environ)
    with pytest.raises(ControlError, match="can not name a cluster"):
        Client("../x", environ=nodes.environ)


@pytest.mark.parametrize("endpoints", ["", ",", [], "http://x", "tcp://127.0.0.1:1,n2"])
def test_malformed_endpoints_are_refused(endpoints: str | list[str]) -> None:
    """With what an endpoint looks like."""
    with pytest.raises(ControlError) as caught:
        Client(endpoints=endpoints)
    assert "tcp://HOST:PORT" in caught.value.why
