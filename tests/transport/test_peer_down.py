"""`downs`: a refused connection is the only proof of death; everything else is not one."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zmq

from zraft.transport.probe import Probe
from zraft.wire_entry import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from tests.transport.conftest import Net


@pytest.mark.cluster
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_killed_process_is_found_dead_at_once(
    net: Net, transport: str, encode: Callable[..., bytes]
) -> None:
    """SIGKILL closes the connections; the probe is refused; the incarnation is the one heard."""
    if transport == "tcp":
        net.use_tcp()
    child = net.child(2)
    first = net.node(1)
    net.dealer(1).send(encode(incarnation=4))
    net.run(lambda: first.sockets.connected(2) and bool(first.inbox))
    child.send_signal(signal.SIGKILL)
    took_ms = net.run(lambda: bool(first.downs), deadline_ms=10_000)
    assert first.downs == [(2, 4)]
    assert not first.sockets.connected(2)
    assert [name for name, _ in first.events][-2:] == ["peer.disconnected", "peer.down"]
    assert took_ms < 10_000


@pytest.mark.cluster
def test_a_stopped_process_is_not_dead(net: Net) -> None:
    """SIGSTOP: frames are not heard and the lane is made anew, but nobody refuses anything."""
    child = net.child(2)
    first = net.node(1)
    net.run(lambda: first.sockets.connected(2))
    child.send_signal(signal.SIGSTOP)
    assert os.waitid(os.P_PID, child.pid, os.WSTOPPED) is not None
    first.vote(2, 1)
    net.run(lambda: "unheard" in first.made_anew())
    probe = Probe(net.endpoints[2], deadline_ms=1000)
    assert state(probe) == (None, False)
    probe.on_timer(1000)
    assert state(probe) == ("silent", False)
    assert first.downs == []


def test_a_living_peer_that_cuts_the_connection_is_not_dead(net: Net) -> None:
    """An oversize frame makes a living peer disconnect: an event, and messages go on."""
    first, second = net.pair()
    first.sockets._lanes[2].socket.send(bytes(MAX_FRAME_BYTES + 1))
    net.run(lambda: bool(first.told("peer.probed")))
    assert first.told("peer.probed") == [{"peer": "2", "outcome": "greeted"}]
    net.run(lambda: first.sockets.connected(2))
    first.vote(2, 1)
    net.run(lambda: second.numbers(1) == [1])
    assert first.downs == []


def test_a_vanished_path_means_a_dead_process(net: Net) -> None:
    """ENOENT on ipc counts like a refusal: `cluster down` removes the sockets' files."""
    first, second = net.pair()
    Path(net.endpoints[2].removeprefix("ipc://")).unlink()
    net.kill(second)
    net.run(lambda: bool(first.downs))
    assert first.downs == [(2, 0)]


def test_downs_tells_each_death_once(net: Net) -> None:
    """The list is empty after it was read, until the next life of the peer ends."""
    first, second = net.pair()
    for incarnation in (2, 3):
        net.kill(second)
        net.run(lambda: bool(first.downs))
        assert len(first.downs) == 1
        first.downs.clear()
        second = net.node(2, incarnation)
        net.run(lambda: first.sockets.connected(2))
    assert first.downs == []


def test_a_full_backlog_proves_nothing(net: Net) -> None:
    """A Unix socket whose queue is full answers EAGAIN: somebody listens there."""
    listener = net.listener(2)
    listener.listen(0)
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    outcomes = []
    for plain in waiting:
        plain.setblocking(False)
        outcomes.append(plain.connect_ex(net.endpoints[2].removeprefix("ipc://")))
    assert outcomes[-1] == errno.EAGAIN
    probe = Probe(net.endpoints[2], deadline_ms=0)
    assert state(probe) == ("EAGAIN", False)
    assert probe.pollable() is None
    for plain in waiting:
        plain.close()


def test_a_dying_process_is_found_dead_although_it_accepted(net: Net) -> None:
    """The listener takes the probe and closes: hung up on without a word, it asks once more."""
    listener = net.listener(2)
    probe = Probe(net.endpoints[2], deadline_ms=1000)
    assert state(probe) == (None, False)
    listener.close()
    wait_for(probe)
    probe.on_ready()
    assert state(probe) == ("refused", True)
    assert probe.pollable() is None


def test_a_listener_that_only_hangs_up_is_not_dead(net: Net) -> None:
    """A program that accepts and closes, again and again, lives: the probe ends after a few."""
    listener = net.listener(2)
    probe = Probe(net.endpoints[2], deadline_ms=1000)
    hung_up = 0
    while probe.outcome is None:
        listener.accept()[0].close()
        hung_up += 1
        wait_for(probe)
        probe.on_ready()
    assert state(probe) == ("hung_up", False)
    assert hung_up == 5


def state(probe: Probe) -> tuple[str | None, bool]:
    """Return the outcome, and whether it proves that the process is gone."""
    return probe.outcome, probe.refused


def wait_for(probe: Probe) -> None:
    """Wait until the descriptor of a probe is ready."""
    waiting = probe.pollable()
    assert waiting is not None
    poller = zmq.Poller()
    poller.register(*waiting)
    assert poller.poll(10_000)


def test_a_probe_that_nobody_decides_ends_at_its_time() -> None:
    """A tcp connect under way is a descriptor to poll, and proves nothing at its deadline."""
    probe = Probe("tcp://192.0.2.1:9", deadline_ms=1000)
    if probe.outcome is None:
        assert probe.pollable() is not None
        probe.on_timer(999)
        assert probe.outcome is None
        probe.on_timer(1000)
    assert not probe.refused
    assert probe.pollable() is None


def test_a_host_name_is_not_probed() -> None:
    """Asking a name server would block the loop: the outcome proves nothing."""
    probe = Probe("tcp://node2.example:21000", deadline_ms=1000)
    assert (probe.refused, probe.pollable()) == (False, None)
