"""A cluster over tcp on loopback: it serves, fails over, comes back to its ports, and says who has
them when they are taken."""

from __future__ import annotations

import socket

import pytest

from tests.cluster.harness import LiveCluster, live_cluster
from zraft.client.sync import Client
from zraft.errors import EXIT_LOCKED, SupervisorError
from zraft.paths import EndpointKind

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def ports(live: LiveCluster) -> list[int]:
    """Return the tcp ports of all nodes, from the cluster file."""
    file = live.cluster.file
    kinds: tuple[EndpointKind, ...] = ("peer", "client", "bulk")
    return [int(file.endpoint(n, k).rpartition(":")[2]) for n in file.names for k in kinds]


def listens_only_on_loopback(port: int) -> bool:
    """Tell from the kernel's table of tcp sockets where a port is bound."""
    addresses = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as lines:
            for line in list(lines)[1:]:
                fields = line.split()
                address, _, number = fields[1].rpartition(":")
                if int(number, 16) == port and fields[3] == "0A":
                    addresses.add(address)
    return addresses == {"0100007F"}


def test_a_tcp_cluster_serves_fails_over_and_comes_back_to_its_ports() -> None:
    """Writes survive kill -9 of the leader and of all; the ports are below the ephemeral range."""
    with live_cluster(3, transport="tcp") as live:
        used = ports(live)
        assert len(set(used)) == 9
        assert all(21_000 <= port < 32_768 for port in used)
        assert all(listens_only_on_loopback(port) for port in used)
        with Client(live.cluster.name, environ=live.environ) as client:
            client.kv.put("a", "1")
            live.cluster.act("kill", [live.leader()])
            client.kv.put("b", "2", timeout=10)
        live.cluster.act("kill", live.names)
        live.bring_up()
        live.converged()
        assert ports(live) == used
        with Client(live.cluster.name, environ=live.environ) as client:
            assert [client.kv.get("a"), client.kv.get("b")] == [b"1", b"2"]


def test_a_port_in_use_is_named_with_exit_code_75() -> None:
    """A recorded port that another program has taken meanwhile is an error that says which."""
    with live_cluster(1, transport="tcp") as live:
        port = ports(live)[0]
        live.cluster.down()
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind(("127.0.0.1", port))
            squatter.listen()
            with pytest.raises(SupervisorError) as caught:
                live.bring_up(timeout_ms=15_000)
        assert caught.value.exit_code == EXIT_LOCKED
        assert str(port) in str(caught.value)
        live.bring_up()
