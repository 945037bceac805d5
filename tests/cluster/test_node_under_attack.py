"""Real nodes and what is done to them: hostile bytes, faults on purpose, stalls and signals."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
from pathlib import Path

import msgpack
import pytest

from tests.cluster.bare_nodes import BareNodes
from tests.cluster.harness import read_events, wait_until
from zraft import clock, wire
from zraft.api import (
    Block,
    Campaign,
    Code,
    Consistency,
    ControlDone,
    ControlFailure,
    Flag,
    Heal,
    Isolate,
    StepDown,
    Whoami,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def pause(ms: int) -> None:
    """Let time pass that is itself the subject of a test."""
    select.poll().poll(ms)


# ------------------------------------------------------------------------------- hostile input


def deep_json() -> bytes:
    """JSON that is 5,000 arrays deep."""
    return b'{"type":"isolate","peers":' + b"[" * 5_000 + b"]" * 5_000 + b"}"


def deep_msgpack() -> bytes:
    """MessagePack that is 500 arrays deep."""
    return b"\x91" * 500 + b"\xc0"


def test_garbage_at_every_socket_raises_counters_and_nothing_else(three: BareNodes) -> None:
    """Junk, wrong shapes, other clusters, deep nesting, oversize: no term and no pid changes."""
    leader = three.leader()
    before = {name: three.status(name) for name in three.names}
    own = three.cluster_id.to_bytes(8, "big")
    frames = [
        b"",
        b"\xff" * 64,
        deep_msgpack(),
        deep_json(),
        msgpack.packb([1, 32, own]),
        msgpack.packb([1, 32, own, [[1, 0, 0, 0, 5000, 0, 0]]]),
        msgpack.packb([1, 32, own, [[1, 0, 0, 0, 5000, 0, 0, "text"]]]),
        msgpack.packb([99, 32, own, []]),
        msgpack.packb([1, 77, own, []]),
        wire.encode_requests(b"othercl8", []),
        os.urandom(4096),
    ]
    for kind in ("client", "peer", "ctl"):
        with three.dealer(f"{leader}.{kind}") as dealer:
            for frame in frames:
                dealer.send(frame)
            dealer.send_multipart([b"two", b"parts"])
            wait_for_rejects(three, leader, kind, len(frames) + 1)
        with three.dealer(f"{leader}.{kind}") as dealer:
            dealer.send(bytes(5 << 20))  # beyond every socket's limit: only cuts the connection
            with socket.socket(socket.AF_UNIX) as plain:
                plain.connect(f"{three.sockets}/{leader}.{kind}")
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n" + os.urandom(512))
            three.ask(leader, Whoami())
    after = {name: three.status(name) for name in three.names}
    for name in three.names:
        assert (after[name].pid, after[name].term) == (before[name].pid, before[name].term)
    assert after[leader].role == "leader"
    assert three.put(leader, b"a", b"1").code == Code.OK
    garbage = [e for e in read_events(three.directory / leader) if e["event"] == "peer.garbage"]
    assert {event["socket"] for event in garbage} == {"client", "peer", "ctl"}


def wait_for_rejects(nodes: BareNodes, name: str, kind: str, count: int) -> None:
    """Wait until so many frames were dropped on a socket of a node."""

    def dropped() -> bool | None:
        counters = nodes.status(name).counters
        found = sum(n for key, n in counters.items() if key.startswith(f"{kind}.dropped"))
        return found >= count or None

    wait_until(f"{count} frames dropped on the {kind} socket", dropped, timeout_ms=10_000)


def test_a_session_request_that_makes_no_sense_is_refused(three: BareNodes) -> None:
    """Where a number belongs stands an array: an answer, from leader and follower, no dead node."""
    leader, follower = three.leader(), three.follower()
    before = {name: three.status(name).pid for name in three.names}
    values: list[object] = [[[1]], [{}], [1.0], [True], [], 7]
    bodies = [msgpack.packb(value) for value in values]
    for name in (leader, follower):
        for body in bodies:
            reply = three.request(name, body, Consistency.WRITE, flags=Flag.SESSION)
            assert reply.code == Code.INVALID, (name, body, reply)
    assert {name: three.status(name).pid for name in three.names} == before


def test_a_control_request_that_makes_no_sense_gets_an_answer(one: BareNodes) -> None:
    """Whoever asks nonsense is told so, in the form of every refusal."""
    for body in (b"", b"{", b'{"type":"explode"}', b'{"type":"block","ms":"x"}', deep_json()):
        reply = json.loads(one.ask_bytes("n1", body))
        assert (reply["type"], reply["code"]) == ("error", "usage")
    for request in (Block(0), Block(10_001), Isolate(["n9"]), Isolate([], 0), Campaign()):
        reply = one.ask("n1", request)
        assert isinstance(reply, ControlFailure), (request, reply)
        assert reply.exit_code == 2


# ---------------------------------------------------------------------------- control and faults


def test_an_election_can_be_forced_and_leadership_given_up_by_hand(three: BareNodes) -> None:
    """`campaign` ends the term: those who hear the leader refuse the one that stands, but its term
    makes the leader step down, and somebody leads a later one. `step-down` ends one, too."""

    def leader_after(term: int) -> str | None:
        leader = three.leader()
        return leader if three.status(leader).term > term else None

    follower = three.follower()
    term = three.status(follower).term
    assert isinstance(three.ask(follower, Campaign()), ControlDone)
    leader = wait_until("a later term", lambda: leader_after(term), timeout_ms=10_000)
    term = three.status(leader).term
    assert isinstance(three.ask(leader, StepDown()), ControlDone)
    wait_until("a later term", lambda: leader_after(term), timeout_ms=10_000)
    other = three.follower()
    assert isinstance(three.ask(other, StepDown()), ControlFailure)


def test_isolation_is_shown_ends_and_heals(three: BareNodes) -> None:
    """`isolate` drops all to and from the named peers until it is healed or its time is up."""
    follower = three.follower()
    assert isinstance(three.ask(follower, Isolate([], 60_000)), ControlDone)
    pause(200)
    (fault,) = three.status(follower).faults
    assert fault.kind == "isolate"
    assert fault.hits > 0
    assert fault.left_ms is not None
    assert 0 < fault.left_ms < 60_000
    assert isinstance(three.ask(follower, Heal()), ControlDone)
    assert three.status(follower).faults == []
    assert isinstance(three.ask(follower, Isolate(["n1", "n2", "n3"], 50)), ControlDone)
    wait_until(
        "the fault ends by itself",
        lambda: three.status(follower).faults == [] or None,
        timeout_ms=5_000,
    )
    three.leader()
    events = [e["event"] for e in read_events(three.directory / follower)]
    assert events.count("fault.injected") == events.count("fault.cleared") == 2


# ----------------------------------------------------------------------------------------- time


def test_a_blocked_follower_does_not_start_an_election(three: BareNodes) -> None:
    """Five stalls of 400 ms, longer than any election timeout: the term stays."""
    follower = three.follower()
    term = three.status(follower).term
    for _ in range(5):
        assert isinstance(three.ask(follower, Block(400)), ControlDone)
        three.ask(follower, Whoami())  # answered once it runs again
        pause(100)
    assert {three.status(name).term for name in three.names} == {term}
    assert three.status(follower).counters["loop.stalls"] >= 5
    assert "loop.stalled" in [e["event"] for e in read_events(three.directory / follower)]


def test_a_paused_follower_does_not_start_an_election(three: BareNodes) -> None:
    """SIGSTOP stops the I/O thread, too: nothing is in the inbox yet when the deadline is seen."""
    follower = three.follower()
    term = three.status(follower).term
    for _ in range(5):
        three.runs[follower].send(signal.SIGSTOP)
        pause(400)
        three.runs[follower].send(signal.SIGCONT)
        three.ask(follower, Whoami())
        pause(100)
    assert {three.status(name).term for name in three.names} == {term}


def test_signals_do_not_disturb_the_timers(three: BareNodes) -> None:
    """20 signals a second: heartbeats keep their pace, nobody starts an election, nobody dies."""
    leader = three.leader()
    before = three.status(leader)
    start_ms = clock.now_ms()
    for number in range(40):
        for run in three.runs.values():
            run.send(signal.SIGUSR1 if number % 2 else signal.SIGHUP)
        pause(50)
    elapsed_ms = clock.now_ms() - start_ms
    after = three.status(leader)
    assert after.term == before.term
    assert after.role == "leader"
    sent = after.counters["peer.sent"] - before.counters["peer.sent"]
    expected = 2 * elapsed_ms // 50  # one heartbeat to each of two peers
    assert sent >= expected * 0.7, f"{sent} heartbeats, {expected} expected"


def cpu_s(pid: int) -> float:
    """Return the processor time of all threads of a process, in seconds."""
    return sum(
        int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0]) / 1e9
        for task in os.listdir(f"/proc/{pid}/task")
    )


def resident_bytes(pid: int) -> int:
    """Return the memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_idle_nodes_cost_little(three: BareNodes) -> None:
    """Exact deadlines instead of ticks: an idle node wakes for heartbeats and for nothing else."""
    pause(500)
    pids = {name: run.pid for name, run in three.runs.items()}
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    turns = {name: three.status(name).counters["loop.turns"] for name in three.names}
    start_ms = clock.now_ms()
    pause(3_000)
    elapsed_s = (clock.now_ms() - start_ms) / 1000
    used = {name: (cpu_s(pid) - before[name]) / elapsed_s for name, pid in pids.items()}
    assert max(used.values()) < 0.10, used
    woke = {
        name: (three.status(name).counters["loop.turns"] - turns[name]) / elapsed_s
        for name in three.names
    }
    assert max(woke.values()) < 120, woke


def test_requests_leave_nothing_behind(three: BareNodes) -> None:
    """Descriptors are the same and memory hardly more after many clients came, wrote and went."""

    def load(count: int) -> None:
        for number in range(count):
            reply = three.put(three.names[number % 3], b"same key", b"v")
            assert reply.code == Code.OK

    load(100)
    pids = [run.pid for run in three.runs.values()]
    descriptors = [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]
    memory = [resident_bytes(pid) for pid in pids]
    load(300)
    wait_until(
        "closed clients' descriptors are closed",
        lambda: [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids] <= descriptors or None,
        timeout_ms=5_000,
    )
    grown = [resident_bytes(pid) - old for pid, old in zip(pids, memory, strict=True)]
    assert max(grown) < 8 << 20, grown
