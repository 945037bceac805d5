"""A cluster with one node of the first protocol version, in real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.first_version import OLD_NODE, notes
from tests.cluster.harness import LiveCluster, live_cluster, wait_until
from zraft import wire
from zraft.api import Accepted, Campaign, ControlDone, StepDown
from zraft.client.control import Settings
from zraft.client.sync import Client
from zraft.node.digests import INTERVAL

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
MACHINE: Settings = {"machine": {"name": "tests.cluster.first_version:Kv", "directory": str(ROOT)}}


def cut(live: LiveCluster) -> set[tuple[str, int]]:
    """Return what the old node did not say and did not read so far."""
    lines = notes(live.directory).read_text().splitlines()
    return {(verb, int(kind)) for verb, kind in (line.split() for line in lines)}


def have_lead(live: LiveCluster, to: str) -> None:
    """Have `to` lead, unless it does: the leader goes, and it stands before anybody else does.

    Not by a hand-over: the first version's request for votes could not say that it was told to.
    """
    leader = live.leader()
    if leader != to:
        (other,) = set(live.names) - {leader, to}
        live.cluster.act("pause", [other])
        for name, order in ((leader, StepDown()), (to, Campaign())):
            reply = live.cluster.ask(name, order)
            assert isinstance(reply, ControlDone | Accepted), reply
        wait_until(f"{to} leads", lambda: live.leader_now() == to or None, timeout_ms=10_000)
        live.cluster.act("resume", [other])


def test_each_node_leads_and_comes_back_while_one_is_of_the_first_version() -> None:
    """Writes with names, reads, new leaders and kills, the old node's, too; then equal states."""
    with live_cluster(3, settings=MACHINE) as live:
        wanted: dict[str, str] = {}
        with Client(live.cluster.name, environ=live.environ) as client:
            for leader in (OLD_NODE, "n1", "n3", OLD_NODE):
                have_lead(live, leader)
                for number in range(INTERVAL // 3):
                    key, value = f"k{number}", f"{leader} {len(wanted)}"
                    client.kv.put(key, value)
                    wanted[key] = value
                assert client.kv.get("k0") == wanted["k0"].encode()
                live.cluster.act("kill", [leader])
                client.kv.put("killed", leader)
                live.cluster.act("start", [leader])
                wanted["killed"] = leader
                live.converged()
            for key, value in wanted.items():
                assert client.kv.get(key) == value.encode()
        agreed = live.converged()
        assert set(agreed) == set(live.names)
        noted = cut(live)
    assert {("write", wire.KIND_REQUEST_VOTE), ("read", wire.KIND_REQUEST_VOTE)} <= noted
    assert ("write", wire.KIND_CLIENT_REPLIES) in noted
    assert ("read", wire.KIND_STATE_DIGEST) in noted, "nobody compared states with it"
