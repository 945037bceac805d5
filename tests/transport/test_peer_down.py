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

from zraft.transport.probe import Probe
from zraft.wire import MAX_FRAME_BYTES

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
    net.run(lambda: first.made_anew() == ["unheard"])
    probe = Probe(net.endpoints[2], deadline_ms=0)
    assert (probe.outcome, probe.refused) == (0, False)
    assert first.downs == []


def test_a_living_peer_that_cuts_the_connection_is_not_dead(net: Net) -> None:
    """An oversize frame makes a living peer disconnect: an event, and messages go on."""
    first, second = net.pair()
    first.sockets._lanes[2].socket.send(bytes(MAX_FRAME_BYTES + 1))
    net.run(lambda: bool(first.told("peer.probed")))
    assert first.told("peer.probed") == [{"peer": "2", "outcome": "accepted"}]
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
    assert (probe.meaning, probe.refused, probe.fileno()) == ("EAGAIN", False, -1)
    for plain in waiting:
        plain.close()


def test_a_probe_that_nobody_decides_ends_at_its_time() -> None:
    """A tcp connect under way is a descriptor to poll, and proves nothing at its deadline."""
    probe = Probe("tcp://192.0.2.1:9", deadline_ms=1000)
    if probe.outcome is None:
        assert probe.fileno() >= 0
        probe.on_timer(999)
        assert probe.outcome is None
        probe.on_timer(1000)
    assert not probe.refused
    assert probe.fileno() == -1


def test_a_host_name_is_not_probed() -> None:
    """Asking a name server would block the loop: the outcome proves nothing."""
    probe = Probe("tcp://node2.example:21000", deadline_ms=1000)
    assert (probe.refused, probe.fileno()) == (False, -1)
