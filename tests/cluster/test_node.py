"""One node, and three, as real processes without a supervisor: start, serve, refuse, stop."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.bare_nodes import BareNodes, bare_nodes
from tests.cluster.harness import read_events, wait_until
from zraft import procfs, wire
from zraft.api import (
    Code,
    Consistency,
    ControlDone,
    Request,
    Stop,
    Whoami,
    WhoamiReply,
)
from zraft.machine.kv_codec import encode_put
from zraft.storage.directory import lock_holder

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def ended(run_pid: int) -> bool:
    """Tell whether a process is gone or only its exit status is left."""
    stat = procfs.read_stat(run_pid)
    return stat is None or stat.ended


# ------------------------------------------------------------------------------- start and serve


def test_a_single_node_leads_and_keeps_its_data_over_a_restart() -> None:
    """A cluster of one serves at once; after SIGTERM and after kill -9 every write is there."""
    with bare_nodes(1) as nodes:
        first = nodes.start("n1")
        assert first.ready["incarnation"] == 1
        assert first.ready["pid"] == first.pid
        assert set(first.ready["endpoints"]) == {"peer", "client", "ctl", "bulk"}
        nodes.leader()
        assert nodes.put("n1", b"a", b"1").code == Code.OK
        assert nodes.get("n1", b"a") == b"1"
        assert nodes.get("n1", b"b") is None
        first.send(signal.SIGTERM)
        assert first.end() == 0

        second = nodes.start("n1")
        assert second.ready["incarnation"] == 2
        nodes.leader()
        assert nodes.get("n1", b"a") == b"1"
        assert nodes.put("n1", b"a", b"2").code == Code.OK
        second.kill()

        assert nodes.start("n1").ready["incarnation"] == 3
        nodes.leader()
        assert nodes.get("n1", b"a") == b"2"


def test_any_node_takes_any_request(three: BareNodes) -> None:
    """A follower forwards writes and reads to the leader; a stale read it answers itself."""
    leader = three.leader()
    for number, name in enumerate(three.names):
        key = f"k{number}".encode()
        reply = three.put(name, key, b"v")
        assert reply.code == Code.OK, reply
        assert reply.member_id == dict(three.members)[leader]
        for reader in three.names:
            assert three.get(reader, key) == b"v"
            wait_until(
                "the write is applied everywhere",
                lambda name=reader, key=key: (  # type: ignore[misc]  # bound as defaults
                    three.get(name, key, Consistency.STALE)
                ),
                timeout_ms=5_000,
            )


def test_acknowledged_writes_survive_kill_9_of_everything(three: BareNodes) -> None:
    """What was acknowledged is on the disks of a majority before it is acknowledged."""
    for number in range(20):
        reply = three.put(three.names[number % 3], b"k%d" % number, b"v%d" % number)
        assert reply.code == Code.OK
    for run in three.runs.values():
        run.kill()
    three.start_all()
    three.leader()
    for number in range(20):
        assert three.get(three.names[number % 3], b"k%d" % number) == b"v%d" % number


def test_a_request_for_any_cluster_is_answered(one: BareNodes) -> None:
    """A client that does not know the cluster's id says eight zero bytes, and learns the id."""
    reply = one.request("n1", encode_put(b"a", b"1"), Consistency.WRITE, cluster=bytes(8))
    assert reply.code == Code.OK


def test_whoami_says_who_holds_the_socket(one: BareNodes) -> None:
    """Identity and pid come from the process itself."""
    who = one.ask("n1", Whoami())
    assert isinstance(who, WhoamiReply)
    assert (who.name, who.cluster, who.incarnation) == ("n1", "c", 1)
    assert who.pid == one.runs["n1"].pid
    assert who.cluster_id == f"{one.cluster_id:016x}"
    assert who.member_id == f"{one.members[0].member_id:016x}"


def test_node_json_names_the_process(one: BareNodes) -> None:
    """pid, start ticks and boot id in node.json are those of the process that holds the lock."""
    node_dir = one.directory / "n1"
    note = json.loads((node_dir / "node.json").read_bytes())
    stat = procfs.read_stat(one.runs["n1"].pid)
    assert stat is not None
    assert note["pid"] == lock_holder(node_dir / "lock") == one.runs["n1"].pid
    assert note["start_ticks"] == stat.start_ticks
    assert note["boot_id"] == procfs.boot_id()
    assert note["incarnation"] == 1


# -------------------------------------------------------------------------------------- the end


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "control"])
def test_a_stop_is_orderly(one: BareNodes, how: str) -> None:
    """Asked by signal or by control socket, a node exits 0, says why, and leaves no socket."""
    assert one.put("n1", b"a", b"1").code == Code.OK
    run = one.runs["n1"]
    if how == "control":
        assert isinstance(one.ask("n1", Stop()), ControlDone)
    else:
        run.send(signal.Signals[how])
    assert run.end() == 0
    assert one.exit_note("n1") == {"pid": run.pid, "code": 0, "reason": how}
    assert not (one.directory / "n1" / "node.json").exists()
    assert list(one.sockets.iterdir()) == []
    events = [event["event"] for event in read_events(one.directory / "n1")]
    assert events[-1] == "node.stopped"
    assert one.err("n1") == ""


def test_a_leader_that_stops_is_replaced_at_once(three: BareNodes) -> None:
    """The others need no election timeout: its endpoint refuses them."""
    leader = three.leader()
    three.runs[leader].send(signal.SIGTERM)
    assert three.runs[leader].end() == 0
    others = [name for name in three.names if name != leader]
    three.leader(others)
    reply = three.put(others[0], b"a", b"1")
    assert reply.code == Code.OK


def test_sigterm_works_although_it_was_blocked_when_the_node_was_started() -> None:
    """The mask of blocked signals is inherited; a node's first act is to clear it."""
    blocker = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'zraft.node', *sys.argv[1:]])"
    )
    with bare_nodes(1) as nodes:
        run = nodes.start("n1", command=(sys.executable, "-c", blocker))
        assert run.ready, nodes.err("n1")
        run.send(signal.SIGTERM)
        assert run.end() == 0


def test_sighup_reopens_the_logs(one: BareNodes) -> None:
    """After a log file was moved away, SIGHUP makes the node write to a new one."""
    log = one.directory / "n1" / "log.jsonl"
    wait_until("the log is there", lambda: log.exists() or None, timeout_ms=5_000)
    log.rename(log.with_name("moved"))
    one.runs["n1"].send(signal.SIGHUP)
    one.ask("n1", Whoami())
    one.runs["n1"].send(signal.SIGTERM)
    assert one.runs["n1"].end() == 0
    assert read_events(one.directory / "n1")[-1]["event"] == "node.stopped"


def test_a_parent_that_does_not_listen_is_ignored() -> None:
    """EPIPE on the readiness pipe means nothing to a node."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with bare_nodes(1) as nodes:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "zraft.node", "--dir", str(nodes.directory / "n1")),
                *("--ready-fd", str(write_fd)),
            ],
            pass_fds=[write_fd],
        )
        os.close(write_fd)
        try:
            nodes.leader()
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def test_a_node_ends_with_its_parent_when_told_so() -> None:
    """--parent: SIGTERM comes from the kernel when the parent dies, whatever kills it."""
    spawner = (
        "import os, subprocess, sys\n"
        "command = [sys.executable, '-m', 'zraft.node', *sys.argv[1:]]\n"
        "fd = sys.argv[sys.argv.index('--ready-fd') + 1]\n"
        "subprocess.Popen([*command, '--parent', str(os.getpid())], pass_fds=[int(fd)])\n"
        "os.close(int(fd))\n"
        "sys.stdin = open('/dev/zero')\n"
        "import select; select.poll().poll()"
    )
    with bare_nodes(1) as nodes:
        run = nodes.start("n1", command=(sys.executable, "-c", spawner))
        pid = run.ready["pid"]
        assert pid != run.pid
        nodes.leader()
        run.kill()
        wait_until("the node has ended", lambda: ended(pid) or None, timeout_ms=10_000)
        assert nodes.exit_note("n1") == {"pid": pid, "code": 0, "reason": "SIGTERM"}


def test_a_node_whose_parent_is_gone_already_does_not_start() -> None:
    """The parent may die before the node asked the kernel to tell it: it looks afterwards."""
    with bare_nodes(1) as nodes:
        run = nodes.start("n1", arguments=["--parent", "1"])
        assert run.ready == {}
        assert run.end() == 0
        assert not (nodes.directory / "n1" / "boot.json").exists()


def test_a_broken_invariant_ends_the_node_with_70() -> None:
    """An assert that fails is a defect: the traceback goes to stderr and to the log."""
    planted = (
        "import sys\n"
        "from zraft.node import __main__\n"
        "from zraft.node.loop import Loop\n"
        "def turn(self):\n"
        "    assert self.turns > 0, 'planted'\n"
        "Loop.turn = turn\n"
        "sys.exit(__main__.main())"
    )
    with bare_nodes(1) as nodes:
        run = nodes.start("n1", command=(sys.executable, "-c", planted))
        assert run.end() == 70
        assert "AssertionError: planted" in nodes.err("n1")
        failed = read_events(nodes.directory / "n1")[-1]
        assert (failed["event"], failed["exit_code"]) == ("node.failed", 70)
        assert "in turn" in failed["why"]
        note = nodes.exit_note("n1")
        assert note is not None
        assert (note["code"], note["reason"]) == (70, "AssertionError")
        assert not (nodes.directory / "n1" / "node.json").exists()


# -------------------------------------------------------------------------------------- refusals


def test_a_second_start_is_refused_and_names_the_first(one: BareNodes) -> None:
    """Exit 75 with the pid; the running node and its files are not disturbed."""
    before = one.status("n1")
    second = one.spawn("n1")
    assert second.end() == 75
    assert second.ready == {}
    assert f"process {one.runs['n1'].pid}" in one.err("n1")
    assert "try: " in one.err("n1")
    after = one.status("n1")
    assert (after.pid, after.term, after.incarnation) == (before.pid, before.term, 1)
    assert one.put("n1", b"a", b"1").code == Code.OK
    assert {event["pid"] for event in read_events(one.directory / "n1")} == {before.pid}
    assert one.exit_note("n1") is None


def test_a_paused_node_still_holds_its_directory(one: BareNodes) -> None:
    """SIGSTOP frees no lock: a second start is refused and names the paused process."""
    run = one.runs["n1"]
    run.send(signal.SIGSTOP)
    assert one.spawn("n1").end() == 75
    assert f"process {run.pid}" in one.err("n1")
    run.send(signal.SIGCONT)
    assert one.put("n1", b"a", b"1").code == Code.OK


def test_python_without_asserts_is_refused() -> None:
    """Invariants are asserts; under -O a node would run past a broken one."""
    with bare_nodes(1) as nodes:
        run = nodes.start("n1", command=(sys.executable, "-O", "-m", "zraft.node"))
        assert run.end() == 78
        assert "python -O" in nodes.err("n1")
        assert "why: " in nodes.err("n1")


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        ("no cluster file", 78, "cluster.toml"),
        ("unknown key", 78, "settings"),
        ("contradiction", 78, "heartbeat_ms"),
        ("unknown node", 78, "has no node"),
        ("open socket directory", 78, "not ours alone"),
        ("no socket directory", 78, "can not be used"),
        ("wiped", 65, "was wiped"),
        ("foreign", 65, "belongs to"),
        ("no log", 65, "forgotten its votes"),
        ("corrupt", 65, "byte offset"),
    ],
)
def test_a_node_refuses_what_is_not_in_order(damage: str, code: int, words: str) -> None:
    """Each refusal has the exit code that says whether a restart can help, and says why."""
    with bare_nodes(2) as nodes:
        harm(nodes, damage)
        name = "n7" if damage == "unknown node" else "n1"
        run = nodes.start(name)
        assert run.end() == code, nodes.err(name)
        assert run.ready == {}
        assert words in nodes.err(name), nodes.err(name)
        assert "why: " in nodes.err(name)


def harm(nodes: BareNodes, damage: str) -> None:
    """Do one thing to a cluster that must not be started then."""
    cluster_file, node_dir = nodes.directory / "cluster.toml", nodes.directory / "n1"
    text = cluster_file.read_text()
    match damage:
        case "no cluster file":
            cluster_file.unlink()
        case "unknown key":
            cluster_file.write_text(text + "[settings.timing]\nelection_ms = 1\n")
        case "contradiction":
            cluster_file.write_text(text + "[settings.timing]\nheartbeat_ms = 100\n")
        case "unknown node":
            node_dir.rename(nodes.directory / "n7")
        case "open socket directory":
            nodes.sockets.chmod(0o755)
        case "no socket directory":
            nodes.sockets.rmdir()
        case "wiped":
            node_dir.rename(nodes.base / "away")
            node_dir.mkdir()
        case "foreign":
            node_dir.rename(nodes.base / "away")
            (nodes.directory / "n2").rename(node_dir)
        case "no log":
            (node_dir / "wal").rename(nodes.base / "away")
        case "corrupt":
            segment = next((node_dir / "wal").iterdir())
            data = bytearray(segment.read_bytes())
            data[40] ^= 1
            segment.write_bytes(data)
        case _:
            raise AssertionError(damage)


def test_a_disk_that_refuses_ends_the_node_with_74(one: BareNodes) -> None:
    """A write to the log that fails is not retried: the node stops, and says why."""
    run = one.runs["n1"]
    limit_bytes = 64 << 10  # files can't grow past it: like a full disk
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    with one.dealer("n1.client") as dealer:
        own = one.cluster_id.to_bytes(8, "big")
        for number in range(8):
            body = encode_put(b"big%d" % number, bytes(16 << 10))
            request = Request(number, 0, 0, 0, 5_000, Consistency.WRITE, 0, body)
            dealer.send(wire.encode_requests(own, [request]))
        assert run.end() == 74
    note = one.exit_note("n1")
    assert note is not None
    assert (note["code"], note["reason"]) == (74, "storage")
    assert "cannot" in one.err("n1")
    failed = read_events(one.directory / "n1")[-1]
    assert (failed["event"], failed["exit_code"]) == ("node.failed", 74)


def test_the_exit_code_says_the_reason_even_when_nothing_can_be_written() -> None:
    """stderr may be a file on a full disk; the code is then all that tells why."""
    with bare_nodes(1) as nodes, Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "zraft.node", "--dir", str(nodes.base / "none")],
            stderr=full,
            timeout=30,
            check=False,
        )
        assert ended.returncode == 78
