"""Exactly once on real processes (thesis §6.3): kills, expiry, resolve, and overload."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import psutil
import pytest

from tests.cluster.bare_nodes import BareNodes, bare_nodes
from tests.cluster.harness import wait_until
from zraft.api import Consistency, Reply
from zraft.client.sessions import ClientSession
from zraft.client.sync import Client
from zraft.errors import Busy, OutcomeUnknown, SessionExpired, Unavailable, Withdrawn
from zraft.machine.kv_codec import encode_put
from zraft.machine.kv_results import decode_put_result
from zraft.machine.session_ops import Fate

pytestmark = pytest.mark.cluster

TTL_MS = 4000
SETTINGS = {
    "sessions": {"ttl_ms": TTL_MS},
    "limits": {
        "max_waiting_requests": 500,
        "max_session_requests": 500,
        "max_parked_requests": 500,
        "max_uncommitted_bytes": 262144,
    },
}
WRITES = 400
GROWTH_BYTES = 16 << 20


@pytest.fixture(scope="module")
def nodes() -> Iterator[BareNodes]:
    """Three nodes whose sessions live for four seconds, and which hold little."""
    with bare_nodes(3, SETTINGS) as found:
        found.start_all()
        found.leader()
        yield found


@contextmanager
def client_of(nodes: BareNodes, timeout_s: float = 20.0) -> Iterator[Client]:
    endpoints = [f"ipc://{nodes.sockets}/{name}.client" for name in nodes.names]
    with Client(endpoints=endpoints, timeout_s=timeout_s) as client:
        yield client


def endpoint(nodes: BareNodes, name: str) -> str:
    return f"ipc://{nodes.sockets}/{name}.client"


@contextmanager
def paused_followers(nodes: BareNodes) -> Iterator[str]:
    """Stop everybody but the leader, which can't commit any more; yield its name."""
    leader = nodes.leader()
    others = [nodes.runs[name] for name in nodes.names if name != leader]
    for run in others:
        run.send(signal.SIGSTOP)
    try:
        yield leader
    finally:
        for run in others:
            run.send(signal.SIGCONT)


def test_writes_of_a_session_are_applied_once_though_their_leader_is_killed(
    nodes: BareNodes,
) -> None:
    """Every one is acknowledged, none fails, none is unknown; the key's version counts them."""
    with client_of(nodes) as client:
        session = ClientSession()
        killed = ""
        for number in range(WRITES):
            body = encode_put(b"counted", b"%d" % number)
            last_id = client.submit(body, Consistency.WRITE, session=session)
            if number == WRITES // 2:
                client.wait()
                killed = nodes.leader()
                nodes.runs[killed].process.kill()
        finished = []
        while client.outstanding:
            finished += client.wait()
        assert killed
        assert [one.outcome for one in finished if not isinstance(one.outcome, Reply)] == []
        (last,) = (one.outcome for one in finished if one.request_id == last_id)
        assert isinstance(last, Reply)
        entry = client.kv.entry("counted")
        assert entry is not None
        assert entry.version == WRITES
        repeated = client.repeat(f"{session.session_id:x}-{WRITES}").kv.put("counted", "again")
        assert repeated.revision == decode_put_result(last.body), "as the first time"
        assert client.kv.entry("counted") == entry
    nodes.start_all()
    nodes.leader()


def test_an_unknown_outcome_can_be_asked_about_and_the_word_holds(nodes: BareNodes) -> None:
    """What is withdrawn never comes; what was applied is told with its result."""
    with client_of(nodes) as client:
        session = client.session()
        session.kv.put("asked", "0")
        with paused_followers(nodes) as leader, pytest.raises(OutcomeUnknown) as caught:
            session.kv.put("asked", "1", timeout=0.4, at=endpoint(nodes, leader))
        request_id = caught.value.request_id
        assert request_id == f"{session.session_id:x}-2"
        nodes.leader()
        found = client.resolve(request_id)
        assert client.resolve(request_id) == found
        if found.fate is Fate.APPLIED:
            assert client.repeat(request_id).kv.put("asked", "2").revision
            assert client.kv["asked"] == b"1"
        else:
            with pytest.raises(Withdrawn):
                client.repeat(request_id).kv.put("asked", "2")
            assert client.kv["asked"] == b"0"

        never_sent = f"{session.session_id:x}-77"
        assert client.resolve(never_sent).fate is Fate.WITHDRAWN
        with pytest.raises(Withdrawn):
            client.repeat(never_sent).kv.put("asked", "3")


def test_an_expired_session_is_refused_on_every_node_and_executes_nothing(
    nodes: BareNodes,
) -> None:
    """Log time decides: writes of others let it pass."""
    with client_of(nodes) as client:
        session = client.session()
        session.kv.put("expiring", "1")
        request_id = f"{session.session_id:x}-1"
        before = client.kv.entry("expiring")
        numbers = count()

        def all_over() -> bool | None:
            client.kv.put("other", str(next(numbers)))
            return nodes.status(nodes.leader()).sessions == 0 or None

        wait_until("the sessions to expire", all_over, timeout_ms=30_000)
        for name in nodes.names:
            repeat = client.repeat(request_id)
            with pytest.raises(SessionExpired) as caught:
                repeat.kv.put("expiring", "2", at=endpoint(nodes, name))
            assert caught.value.request_id == request_id
        with pytest.raises(SessionExpired):
            client.resolve(request_id)
        assert client.kv.entry("expiring") == before
        session.kv.put("expiring", "3")
        assert session.session_id != int(request_id.split("-", maxsplit=1)[0], 16)


def test_overload_is_answered_with_busy_and_memory_stays_flat(nodes: BareNodes) -> None:
    """A leader that can't commit takes up to its bounds; the rest hears "busy" and when to come."""
    with client_of(nodes) as client, paused_followers(nodes) as leader:
        process = psutil.Process(nodes.runs[leader].pid)
        body = encode_put(b"big", bytes(2000))
        told: Counter[str] = Counter()
        before = 0
        for _ in range(4):
            for _ in range(1500):
                to = endpoint(nodes, leader)
                client.submit(body, Consistency.WRITE, timeout_s=0.15, at=to)
            while client.outstanding:
                told.update(type(finished.outcome).__name__ for finished in client.wait())
            before = before or process.memory_info().rss
        assert process.memory_info().rss - before < GROWTH_BYTES
    assert told[Busy.__name__] > 1000
    assert set(told) <= {Busy.__name__, OutcomeUnknown.__name__, Unavailable.__name__}
    nodes.leader()
    with client_of(nodes) as client:
        client.kv.put("after", "1")
