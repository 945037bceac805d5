"""`zraft fault` as users run it: real processes, words, documents and exit codes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.harness import LiveCluster, live_cluster, wait_until
from tests.cluster.test_cli import Shell
from zraft.crashpoints import POINTS

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


NONSENSE = (
    ("partition", "all"),
    ("partition", "n1,n2", "n2"),
    ("isolate", "n9"),
    ("one-way", "--from", "n1"),
    ("drop", "--link", "n1", "--rate", "30%"),
    ("drop", "--link", "n1:n2", "--rate", "130%"),
    ("drop", "--rate", "30%"),
    ("delay", "--link", "n1:n2", "--ms", "5", "--dist", "pareto"),
    ("corrupt", "--link", "n1:n2", "--rate", "5%", "--rpc", "gossip"),
    ("heal",),
    ("heal", "f1", "--all"),
    ("heal", "--kind", "partitoin"),
    ("crash-at", "n1"),
    ("crash-at", "n1", "nowhere"),
    ("slow-disk", "n4"),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveCluster]:
    """Five nodes, of which every test takes care."""
    with live_cluster(5) as live:
        yield live


@pytest.fixture
def zraft(shared: LiveCluster) -> Iterator[Shell]:
    """A shell, and afterwards a cluster without faults."""
    shell = Shell(shared)
    yield shell
    shell.run("fault", "heal", "--all")
    shell.run("cluster", "wait", "--for", "up=5", "--for", "converged")


def test_a_partition_is_said_shown_listed_replaced_and_healed(zraft: Shell) -> None:
    """The newcomer's scene: the leader and one more against the rest."""
    old = zraft.json("cluster", "status")["leader"]
    text = zraft.run("fault", "partition", "leader+1").stdout.decode()
    assert text.startswith("f1 partition {")
    assert "heal: zraft fault heal f1" in text
    assert f"leader {old} is in the minority; expect a new leader among" in text

    def replaced() -> str | None:
        leader = zraft.json("cluster", "status")["leader"]
        return leader if leader not in {None, old} else None

    wait_until("another leader", replaced, timeout_ms=15_000)
    status = zraft.run("cluster", "status").stdout.decode()
    assert "1 fault active" in status
    assert "\nfaults  f1 partition " in status
    (fault,) = zraft.json("cluster", "status")["faults"]
    assert (fault["id"], fault["kind"], fault["expires_s"]) == ("f1", "partition", None)
    (listed,) = zraft.json("fault", "list")["faults"]
    assert listed["groups"][0] == sorted(listed["groups"][0])
    assert listed["hits"] > 0
    assert listed["by"] == "cli"
    table = zraft.run("fault", "list").stdout.decode().splitlines()
    assert table[0].split() == ["ID", "KIND", "WHERE", "PARAMS", "BY", "AGE", "LEFT", "HITS"]
    assert table[1].startswith("f1  partition  ")
    document = zraft.json("fault", "partition", "n1,n2", "n3", "--for", "1m")
    assert (document["schema"], document["id"], document["replaced"]) == (
        "zraft.faults/1",
        "f2",
        ["f1"],
    )
    assert document["faults"][0]["groups"] == [["n1", "n2"], ["n3"], ["n4", "n5"]]
    assert "no side has a quorum of 3" in document["note"]
    assert "healed f2" in zraft.run("fault", "heal", "f2").stdout.decode()
    assert zraft.json("fault", "list")["faults"] == []
    assert zraft.error("fault", "heal", "f2", expect=4)["code"] == "not_found"


def test_bad_links_take_targets_rates_and_messages(zraft: Shell) -> None:
    """Each verb echoes its id, its links by name and its numbers; one kind is healed at a time."""
    drop = zraft.json(
        *("fault", "drop", "--link", "leader:followers", "--rate", "30%"),
        *("--rpc", "append", "--kind", "request", "--for", "30s", "--seed", "7"),
    )
    (fault,) = drop["faults"]
    assert (fault["rate"], fault["messages"], fault["seed"]) == (0.3, ["append"], 7)
    assert len(fault["links"]) == 4
    assert fault["expires_s"] == 30.0
    text = zraft.run(
        *("fault", "delay", "--link", "*", "--ms", "20", "--jitter", "5", "--dist", "normal")
    ).stdout.decode()
    assert "delay all links between n1,n2,n3,n4,n5 20±5ms normal until healed" in text
    for kind in ("duplicate", "reorder", "corrupt"):
        assert zraft.json("fault", kind, "--link", "n1:n2", "--rate", "0.5")["action"] == kind
    way = zraft.json("fault", "one-way", "--from", "n2", "--to", "all")
    assert "n1 n3 n4 n5 no longer hear n2; n2 still hears them" in way["note"]

    def hit() -> bool | None:
        faults = zraft.json("fault", "list")["faults"]
        return all(f["hits"] for f in faults if f["kind"] in {"drop", "delay", "one-way"}) or None

    wait_until("they bite", hit, timeout_ms=15_000)
    assert zraft.json("fault", "heal", "--kind", "delay")["healed"] == ["f4"]
    assert len(zraft.json("fault", "heal", "--all")["healed"]) == 5
    assert "nothing to heal" in zraft.run("fault", "heal", "--all").stdout.decode()


def test_what_makes_no_sense_is_refused_and_breaks_nothing(zraft: Shell) -> None:
    """Exit 2, with what to try; no fault is in force afterwards."""
    for words in NONSENSE:
        error = zraft.error("fault", *words, expect=2)
        assert error["try"] or error["why"], words
    assert zraft.json("fault", "list")["faults"] == []


def test_crash_points_are_listed_and_kill(zraft: Shell) -> None:
    """The armed node dies there, and the supervisor starts it again."""
    document = zraft.json("fault", "crash-at", "--list")
    assert [point["name"] for point in document["points"]] == list(POINTS)
    text = zraft.run("fault", "crash-points").stdout.decode()
    assert all(point in text for point in POINTS)
    leader = zraft.json("cluster", "status")["leader"]
    pid = zraft.live.status(leader).pid
    text = zraft.run("fault", "crash-at", leader, "--point", "wal.batch.written").stdout.decode()
    assert f"{leader} will die at wal.batch.written" in text
    done = zraft.run("kv", "put", "a", "b", expect=None)
    assert done.returncode in {0, 7}, "its leader died with it: done, or nobody knows"

    def back() -> bool | None:
        status = zraft.live.cluster.statuses(timeout_ms=500)[leader]
        return (status is not None and status.pid != pid) or None

    wait_until("it is back", back, timeout_ms=15_000)
    if done.returncode == 0:
        assert zraft.run("kv", "get", "a").stdout == b"b\n"


def test_a_cluster_may_refuse_faults(zraft: Shell) -> None:
    """`up --no-faults`: the verbs are refused with what to do, everything else is as ever."""
    zraft.environ = {**zraft.environ, "ZRAFT_CLUSTER": "calm"}
    zraft.run("cluster", "up", "-n", "3", "--no-faults", "--ephemeral")
    error = zraft.error("fault", "isolate", "n1", expect=2)
    assert "refuse faults" in error["message"]
    assert zraft.json("config", "show")["settings"]["testing"]["faults"] == "refused"
    zraft.run("cluster", "down")
    zraft.environ = {**zraft.environ, "ZRAFT_CLUSTER": zraft.live.cluster.name}
