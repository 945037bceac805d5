"""The command line as users run it: real processes, real exit codes, one cluster of three nodes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import LiveCluster, live_cluster, wait_until
from zraft import clock

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PROGRAM = str(Path(sys.executable).with_name("zraft"))


class Shell:
    """Runs `zraft` in the environment of a test's cluster."""

    def __init__(self, live: LiveCluster) -> None:
        self.live = live
        self.environ = {**live.environ, "ZRAFT_CLUSTER": live.cluster.name, "TERM": "xterm"}

    def run(
        self, *arguments: str, stdin: bytes | None = None, expect: int | None = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end and check its exit code."""
        done = subprocess.run(
            [PROGRAM, *arguments],
            env=self.environ,
            input=b"" if stdin is None else stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        told = f"{arguments}: {done.stdout!r} {done.stderr.decode()}"
        assert expect is None or done.returncode == expect, told
        assert b"Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, expect: int = 0) -> dict[str, Any]:
        """Run a command with --json and return its document."""
        document: dict[str, Any] = json.loads(self.run(*arguments, "--json", expect=expect).stdout)
        return document

    def error(self, *arguments: str, expect: int) -> dict[str, Any]:
        """Run a command that fails and return the JSON error."""
        error: dict[str, Any] = json.loads(
            self.run(*arguments, "--json", expect=expect).stderr.splitlines()[-1]
        )["error"]
        assert error["exit"] == expect
        return error

    @contextmanager
    def background(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command that does not end by itself."""
        with subprocess.Popen(
            [PROGRAM, *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as popen:
            try:
                yield popen
            finally:
                popen.kill()


@pytest.fixture(scope="module")
def shared() -> Iterator[LiveCluster]:
    """Three nodes, of which every test takes care."""
    with live_cluster(3) as live:
        yield live


@pytest.fixture
def zraft(shared: LiveCluster) -> Iterator[Shell]:
    """A shell, and afterwards a cluster that is whole again."""
    shell = Shell(shared)
    yield shell
    if shell.run("cluster", "status", "--exit-code", "-q", expect=None).returncode:
        shell.run("cluster", "up")
        shell.run("fault", "heal", "--all")
    shell.run("cluster", "wait", "--for", "up=3", "--for", "converged")


def test_up_again_says_so_and_changes_nothing(zraft: Shell) -> None:
    """Idempotent: same pids, exit 0."""
    before = zraft.json("cluster", "status")
    document = zraft.json("cluster", "up")
    assert document["already_running"] is True
    assert {node["name"]: node["pid"] for node in document["nodes"]} == {
        node["name"]: node["pid"] for node in before["nodes"]
    }


def test_status_is_for_people_and_for_scripts(zraft: Shell) -> None:
    """The table names every node; --field prints one scalar; --exit-code is 0 when all is well."""
    text = zraft.run("cluster", "status", "--exit-code").stdout.decode()
    assert all(name in text for name in ("n1", "n2", "n3", "leader", "quorum 3/3 OK"))
    leader = zraft.run("cluster", "status", "--field", "leader").stdout.decode().strip()
    role = zraft.run("cluster", "status", "--field", f"nodes.{leader}.role").stdout.decode()
    assert role == "leader\n"
    (entry,) = zraft.json("cluster", "list")["clusters"]
    assert (entry["name"], entry["leader"], entry["up"]) == ("t", leader, 3)


def test_logs_wait_sees_the_next_election(zraft: Shell) -> None:
    """It prints the event of a term that did not exist before, whoever was quicker."""
    term = zraft.json("cluster", "status")["term"]
    won = ("logs", "wait", "election.won", "--where", f"term > {term} and not pre_vote")
    with zraft.background(*won, "--since", "1m", "--timeout", "20s", "--json") as waiting:
        zraft.run("node", "kill", "leader")
        out, _ = waiting.communicate(timeout=30)
    event = json.loads(out)
    assert event["event"] == "election.won"
    assert event["term"] > term
    assert zraft.error(*won, "--timeout", "10ms", expect=6)["code"] == "not_seen"


def test_values_go_in_and_out_byte_for_byte(zraft: Shell) -> None:
    """Binary through stdin and stdout; the value only, and a newline unless raw."""
    value = bytes(range(256))
    zraft.run("kv", "put", "bin", "-", stdin=value)
    assert zraft.run("kv", "get", "bin", "--encoding", "raw").stdout == value
    assert zraft.run("kv", "get", "bin").stdout == value + b"\n"
    assert zraft.json("kv", "get", "bin")["encoding"] == "base64"
    zraft.run("kv", "put", "hex", "00ff", "--encoding", "hex")
    assert zraft.run("kv", "get", "hex", "--encoding", "hex").stdout == b"00ff\n"
    assert zraft.run("kv", "put", "x", "ü").stdout.startswith(b"OK  rev ")
    document = zraft.json("kv", "get", "x", "--consistency", "stale", "--from", "leader")
    assert (document["schema"], document["value"]) == ("zraft.kv.get/1", "ü")
    assert {"rev", "version", "served_by", "consistency", "read_index"} <= document.keys()


def test_keys_that_are_not_there_and_conditions_that_are_false(zraft: Shell) -> None:
    """Exit 4 and 5; a conflict carries the actual value."""
    assert zraft.error("kv", "get", "nope", expect=4)["code"] == "not_found"
    zraft.run("kv", "delete", "nope", expect=4)
    zraft.run("kv", "cas", "c", "--expect-absent", "--set", "1")
    error = zraft.error("kv", "cas", "c", "--expect", "2", "--set", "3", expect=5)
    assert error["actual"]["value"] == "1"
    assert error["maybe_applied"] is False
    zraft.run("kv", "cas", "c", "--expect", "1", "--set", "3")
    zraft.run("kv", "put", "user/b", "2")
    zraft.run("kv", "put", "user/a", "1")
    assert zraft.run("kv", "scan", "user/", "--keys-only").stdout == b"user/a\nuser/b\n"
    assert [item["value"] for item in zraft.json("kv", "scan", "user/")["items"]] == ["1", "2"]
    zraft.run("kv", "delete", "c")


def test_killed_leader_is_replaced_and_measured(zraft: Shell) -> None:
    """kill -9, then detection, election and unavailability in ms; start says what was caught up."""
    zraft.run("kv", "put", "kept", "yes")
    document = zraft.json("node", "kill", "leader", "--wait")
    assert document["schema"] == "zraft.node.action/1"
    assert document["signal"] == "SIGKILL"
    assert document["resolved"] == [document["old"]["leader"]] != [document["new"]["leader"]]
    assert document["new"]["term"] > document["old"]["term"]
    assert document["failover_ms"] == document["detected_ms"] + document["election_ms"]
    assert document["failover_ms"] <= document["unavailable_ms"] < 10_000
    assert zraft.run("kv", "get", "kept").stdout == b"yes\n"
    (down,) = [node for node in zraft.json("cluster", "status")["nodes"] if not node["up"]]
    assert down["name"] == document["old"]["leader"]
    assert "SIGKILL" in down["note"]
    started = zraft.run("node", "start", "down").stdout.decode()
    assert "is follower, caught up" in started


def test_paused_leader_is_replaced_and_comes_back(zraft: Shell) -> None:
    """A hung process costs the election timeout; --for resumes it."""
    document = zraft.json("node", "pause", "leader", "--wait", "--for", "1s")
    assert document["signal"] == "SIGSTOP"
    assert document["new"]["leader"] != document["old"]["leader"]
    zraft.run("cluster", "wait", "--for", "up=3", "--for", "converged", "--timeout", "20s")


def test_other_term_acts_on_nobody(zraft: Shell) -> None:
    """--expect-term: the leader may be another one than you saw."""
    term = zraft.json("cluster", "status")["term"]
    error = zraft.error("node", "kill", "leader", "--expect-term", str(term + 7), expect=5)
    assert error["code"] == "conflict"
    assert zraft.json("cluster", "status")["quorum"]["have"] == 3


def test_without_a_quorum_nothing_is_answered_and_the_reason_is_said(zraft: Shell) -> None:
    """Exit 6 and 11, and how many nodes answer; afterwards everything comes back."""
    zraft.run("node", "kill", "followers")

    def stepped_down() -> bool | None:
        nodes = zraft.json("cluster", "status")["nodes"]
        return True if all(node["role"] != "leader" for node in nodes) else None

    wait_until("the leader heard of no quorum", stepped_down, timeout_ms=10_000)
    error = zraft.error("kv", "get", "a", "--timeout", "1s", expect=6)
    assert error["retryable"] is True
    assert "1 of 3 nodes answer, a quorum is 2" in error["why"]
    error = zraft.error("kv", "put", "a", "b", "--timeout", "1s", expect=6)
    assert error["maybe_applied"] is False
    zraft.run("cluster", "status", "--exit-code", "-q", expect=11)
    zraft.error("cluster", "wait", "--for", "leader", "--timeout", "200ms", expect=6)
    assert zraft.json("node", "start", "down")["ok"] is True


def test_isolated_leader_disagrees_and_is_refused(zraft: Shell) -> None:
    """The effect is said in words; status shows both opinions; the old one never says ok."""
    old = zraft.json("cluster", "status")["leader"]
    text = zraft.run("fault", "isolate", "leader", "--for", "30s").stdout.decode()
    assert f"leader {old} can not commit any more" in text
    done = zraft.run("kv", "put", "lost", "1", "--at", old, "--timeout", "1s", expect=None)
    assert done.returncode in {6, 7}

    def replaced() -> dict[str, Any] | None:
        document = zraft.json("cluster", "status")
        return document if document["leader"] not in {None, old} else None

    document = wait_until("another leader", replaced, timeout_ms=10_000)
    assert document["agree"] is False
    assert [fault["nodes"] for fault in document["faults"]] == [[old]]
    assert document["cut_off"] == [old]
    status = zraft.run("cluster", "status", "--exit-code", expect=10).stdout.decode()
    assert f"← {old} is cut off" in status
    assert "healed" in zraft.run("fault", "heal", "--all").stdout.decode()
    zraft.run("cluster", "wait", "--for", "converged")
    zraft.run("kv", "get", "lost", expect=4)


def test_followed_logs_survive_a_restart_and_keep_the_order(zraft: Shell) -> None:
    """`logs tail -f --json`: valid lines, no receive before its send, the restarted node again."""
    with zraft.background("logs", "tail", "-f", "--json", "--heartbeats", "-n", "0") as tail:
        assert tail.stdout is not None
        reader = Lines(tail.stdout.fileno())
        reader.until("a first line", lambda event: True)
        zraft.run("node", "restart", "n2")
        reader.until("n2", lambda e: e["node"] == "n2" and e["event"] == "node.ready")
        zraft.run("kv", "put", "after", "restart")
        reader.until("n2 again", lambda e: e["node"] == "n2" and e["event"] == "entries.appended")
        tail.send_signal(signal.SIGINT)
        assert tail.wait(10) == 130
    check_causality(reader.events)


def test_stories_are_cut_off_by_head_without_a_word(zraft: Shell) -> None:
    """A closed pipe ends the program at once, also while nothing is written; no complaint."""
    with zraft.background("logs", "tail", "-f", "-l", "error") as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        tail.stdout.close()
        assert tail.wait(10) == 0
        assert tail.stderr.read() == b""


def test_terminal_gets_colour_and_the_whole_table(zraft: Shell) -> None:
    """On a terminal of 80 columns nothing is cut off; with NO_COLOR there are no escapes."""
    coloured = on_terminal(zraft, {})
    assert "\x1b[1;32m" in coloured
    assert "PID" in coloured
    assert "\x1b[" not in on_terminal(zraft, {"NO_COLOR": "1"})


def test_all_at_once_restart_keeps_what_was_acknowledged(zraft: Shell) -> None:
    """`cluster restart --all-at-once` (kill -9) comes back with the data and other pids."""
    zraft.run("kv", "put", "durable", "yes")
    before = zraft.json("cluster", "status")["nodes"]
    document = zraft.json("cluster", "restart", "--all-at-once")
    assert document["restarted"] == ["n1", "n2", "n3"]
    assert {n["pid"] for n in before}.isdisjoint(n["pid"] for n in document["nodes"])
    assert zraft.run("kv", "get", "durable").stdout == b"yes\n"


def test_down_keeps_the_data_and_nothing_starts_by_reading(zraft: Shell) -> None:
    """Status is exit 3 with how to start; kv, logs and config start nothing; up brings it back."""
    zraft.run("kv", "put", "slept", "well")
    text = zraft.run("cluster", "down").stdout.decode()
    assert "kept in" in text
    assert "zraft cluster up" in text
    done = zraft.run("cluster", "status", expect=3)
    assert "n3    down" in done.stdout.decode()
    assert "zraft cluster up" in done.stderr.decode()
    assert zraft.error("kv", "get", "slept", expect=3)["code"] == "not_running"
    assert "supervisor.stopped" in zraft.run("logs", "tail", "-n", "400").stdout.decode()
    assert "cluster.toml" in zraft.run("config", "show", "--origin").stdout.decode()
    refused = zraft.error("cluster", "up", "-n", "5", expect=2)
    assert "3 nodes" in refused["message"]
    zraft.run("cluster", "down", "--purge", expect=2)
    assert zraft.live.cluster.supervisor() is None
    assert zraft.json("cluster", "up")["created"] is False
    assert zraft.run("kv", "get", "slept").stdout == b"well\n"


# ---------------------------------------------------------------------------------------- tools


class Lines:
    """Reads JSON lines from a descriptor, with deadlines."""

    def __init__(self, descriptor: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._descriptor = descriptor
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def until(self, what: str, wanted: Any, timeout_ms: int = 20_000) -> None:
        """Read until an event is the wanted one."""
        deadline_ms = clock.now_ms() + timeout_ms
        while True:
            left_ms = deadline_ms - clock.now_ms()
            assert left_ms > 0, f"not within {timeout_ms} ms: {what}"
            if not self._poll.poll(left_ms):
                continue
            *complete, self._rest = (self._rest + os.read(self._descriptor, 1 << 16)).split(b"\n")
            fresh = [json.loads(line) for line in complete]
            self.events += fresh
            if any(wanted(event) for event in fresh):
                return


def check_causality(events: Sequence[dict[str, Any]]) -> None:
    """Assert that no message was received before it was sent."""
    keys = ("kind", "epoch", "frame_seq")
    sends = {
        (e["node"], e["peer"], *(e[key] for key in keys)): place
        for place, e in enumerate(events)
        if e["event"] == "rpc.sent"
    }
    received = [(place, e) for place, e in enumerate(events) if e["event"] == "rpc.received"]
    pairs = [
        (sends[link], place)
        for place, e in received
        if (link := (e["peer"], e["node"], *(e[key] for key in keys))) in sends
    ]
    assert len(pairs) > 10
    assert [pair for pair in pairs if pair[0] > pair[1]] == []


def on_terminal(zraft: Shell, variables: dict[str, str]) -> str:
    """Run `cluster status` on a terminal and return what it shows."""
    master, slave = pty.openpty()
    inherited = {name: value for name, value in zraft.environ.items() if name != "NO_COLOR"}
    try:
        subprocess.run(
            [PROGRAM, "cluster", "status"],
            env={**inherited, **variables},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            timeout=60,
            check=True,
        )
        os.close(slave)
        slave = -1
        shown = b""
        while select.select([master], [], [], 1)[0]:
            try:
                chunk = os.read(master, 1 << 16)
            except OSError:  # EIO: the other side is closed
                break
            shown += chunk
        return shown.decode()
    finally:
        os.close(master)
        if slave >= 0:
            os.close(slave)
