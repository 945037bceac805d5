"""What `cluster status` says, from canned answers: document, exit state, table and lines."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest

from zraft import clock
from zraft.api import FaultRule, FaultStatus, NodeStatus
from zraft.cli.output import Output
from zraft.cli.status import print_status, status_document
from zraft.control_api import LastExit, NodeRow

NAMES = ["n1", "n2", "n3", "n4", "n5"]
BASE = NodeStatus(
    name="n1",
    member_id="00" * 8,
    cluster_id="11" * 8,
    pid=4101,
    incarnation=1,
    version="0.1.0",
    role="follower",
    term=4,
    voted_for="n5",
    leader="n5",
    commit=57,
    applied=57,
    last_index=57,
    last_term=4,
    persisted_index=57,
    timer_ms=142,
    last_contact_ms=18,
    uptime_ms=62_100,
    state_hash="9c1f" * 4,
    revision=18,
    leader_since_mono_ns=None,
    election_started_mono_ns=None,
    waiting=0,
    parked=0,
    peers=[],
    faults=[],
    counters={},
)


def answer(name: str, **fields: Any) -> NodeStatus:
    """Return a node's answer: a follower of n5 in term 4, unless told otherwise."""
    fields = {"pid": 4100 + int(name[1:]), **fields}
    if name == "n5" and "role" not in fields:
        since = {"leader_since_mono_ns": 7_700_000_000}
        fields = {"role": "leader", "timer_ms": None, "last_contact_ms": None, **since, **fields}
    return msgspec.structs.replace(BASE, name=name, **fields)


def row(name: str, **fields: Any) -> NodeRow:
    """Return a supervisor's row: a running process, unless told otherwise."""
    return NodeRow(name=name, **{"desired": "up", "state": "running", "pid": 4100, **fields})


KILLED = row(
    "n3",
    desired="down",
    state="down",
    pid=None,
    last_exit=LastExit(pid=4103, signal="SIGKILL", reason="killed", expected=True, wall_ms=987_600),
)


def document(
    statuses: dict[str, NodeStatus | None] | None = None,
    rows: dict[str, NodeRow] | None = None,
    followed: tuple[str, int] | None = ("n5", 4),
) -> dict[str, Any]:
    """Return the document of five nodes at second 20 of the host and 1,000 of the wall."""
    found: dict[str, NodeStatus | None] = {name: answer(name) for name in NAMES}
    return status_document(
        "default",
        found | (statuses or {}),
        {name: row(name) for name in NAMES} | (rows or {}),
        followed=followed,
        mono_ns=20_000_000_000,
        wall_ms=1_000_000,
    )


def shown(doc: dict[str, Any], mode: Any = "table") -> str:
    """Return the text without colour."""
    stdout = io.StringIO()
    out = Output(stdout=stdout, stderr=io.StringIO(), environ={}, mode=mode)
    print_status(doc, out)
    return stdout.getvalue()


def test_document_has_the_published_fields() -> None:
    """Scripts rely on these names; adding is allowed, renaming is not."""
    doc = document()
    assert doc["schema"] == "zraft.cluster.status/1"
    assert {
        "ok", "cluster", "term", "leader", "quorum", "commit", "agree", "nodes", "faults"
    } <= doc.keys()  # fmt: skip
    assert doc["quorum"] == {"have": 5, "need": 3, "voters": 5, "ok": True}
    assert {
        "name", "up", "pid", "role", "term", "voted_for", "commit", "applied", "last_index",
        "last_term", "lag", "timer_ms", "last_contact_ms", "uptime_s", "incarnation", "state_hash",
        "state", "desired",
    } <= doc["nodes"][0].keys()  # fmt: skip
    assert (doc["leader"], doc["term"], doc["commit"], doc["agree"]) == ("n5", 4, 57, True)
    assert doc["nodes"][0]["uptime_s"] == 62.1
    assert msgspec.json.decode(msgspec.json.encode(doc)) == doc


def test_healthy_cluster_is_ok() -> None:
    """All up, one opinion, no fault."""
    text = shown(document())
    assert document()["status"] == "ok"
    assert text.startswith("default · 5 nodes · term 4 · leader n5 (since 12.3s) · quorum 5/5 OK")
    assert "state   hash 9c1f9c1f… equal on n1 n2 n3 n4 n5 at index 57" in text
    assert "DISAGREE" not in text


def test_killed_node_says_how_it_ended() -> None:
    """A node that is down says why, and is null where it said nothing."""
    doc = document({"n3": None}, {"n3": KILLED})
    node = doc["nodes"][2]
    assert (node["up"], node["pid"], node["role"], node["term"]) == (False, None, None, None)
    assert node["note"] == "killed (SIGKILL) 12.4s ago"
    assert (doc["status"], doc["quorum"]["have"]) == ("degraded", 4)
    assert "n3    down" in shown(doc)


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"state": "paused", "until_ms": 2100}, "paused (SIGSTOP), 2.1s left"),
        ({"state": "running"}, "runs, but does not answer"),
        ({"state": "starting"}, "starting"),
        ({"state": "foreign", "pid": 77}, "its directory is held by pid 77"),
        ({"state": "fatal", "message": "crashed 5 times"}, "crashed 5 times"),
        (
            {
                "state": "backoff",
                "retry_ms": 400,
                "last_exit": LastExit(pid=1, signal="SIGSEGV", wall_ms=999_000),
            },
            "crashed (SIGSEGV) 1.0s ago; next start in 400ms",
        ),
        (
            {
                "state": "down",
                "pid": None,
                "desired": "down",
                "until_ms": 900,
                "last_exit": LastExit(pid=1, code=0, reason="stopped", expected=True),
            },
            "stopped, 900ms left",
        ),
    ],
)
def test_each_reason_has_its_words(fields: dict[str, Any], note: str) -> None:
    """Paused, crashed, given up, foreign: each is said as such."""
    doc = document({"n3": None}, {"n3": row("n3", **fields)})
    assert doc["nodes"][2]["note"] == note


def test_crashed_node_shows_its_last_words() -> None:
    """The last line of stderr stands below the table, with control characters spelled out."""
    last = LastExit(pid=1, code=70, reason="crashed", stderr_tail="Traceback\n\x1b[31mboom\n")
    doc = document({"n2": None}, {"n2": row("n2", state="fatal", last_exit=last)})
    assert "n2      \\x1b[31mboom" in shown(doc)


def test_disagreement_names_both_sides_and_who_is_cut_off() -> None:
    """An isolated old leader still thinks it leads; the others follow somebody else."""
    until_ms = clock.now_ms() + 9_140
    links = [pair for n in ("n2", "n3", "n4", "n5") for pair in (("n1", n), (n, "n1"))]
    rule = FaultRule(id="f3", kind="isolate", links=links, groups=[["n1"]], until_ms=until_ms)
    fault = FaultStatus(kind="isolate", peers=["n2"], hits=120, left_ms=9100, id="f3", rule=rule)
    doc = document(
        {"n1": answer("n1", role="leader", leader="n1", term=3, faults=[fault])},
    )
    text = shown(doc)
    assert doc["agree"] is False
    assert doc["leader"] == "n5"
    assert doc["status"] == "degraded"
    assert (
        "DISAGREE n1 thinks leader=n1 (term 3); n2,n3,n4,n5 think leader=n5 (term 4)"
        "  ← n1 is cut off"
    ) in text
    assert "faults  f3 isolate n1 (9.1s left, 120 dropped)" in text
    assert "1 fault active" in text
    assert doc["faults"][0]["expires_s"] == 9.1


def test_lost_quorum_is_said() -> None:
    """Two of five: no leader, no quorum."""
    down: dict[str, NodeStatus | None] = dict.fromkeys(["n3", "n4", "n5"])
    others: dict[str, NodeStatus | None] = {
        n: answer(n, leader=None, role="pre-candidate") for n in ("n1", "n2")
    }
    doc = document(down | others, followed=None)
    assert doc["status"] == "no_quorum"
    assert doc["quorum"] == {"have": 2, "need": 3, "voters": 5, "ok": False}
    assert "no leader · quorum 2/5 LOST" in shown(doc)


def test_stopped_cluster_is_not_ok() -> None:
    """Nothing runs: the document says so, and every node is down."""
    rows = {name: row(name, state="down", pid=None) for name in NAMES}
    doc = document(dict.fromkeys(NAMES), rows, followed=None)
    assert (doc["status"], doc["ok"], doc["term"]) == ("stopped", False, None)
    assert shown(doc).startswith("default · 5 nodes · stopped")


def test_different_state_at_the_same_index_is_an_alarm() -> None:
    """Equal index and different hash is the one thing that must never happen."""
    doc = document({"n2": answer("n2", state_hash="ab" * 8)})
    assert doc["state"]["equal"] is False
    assert doc["status"] == "degraded"
    assert "DIFFERENT at index 57: n1 9c1f9c1f…" in shown(doc)


def test_nodes_at_other_indexes_are_not_compared() -> None:
    """A node that applied less has another hash by right."""
    doc = document({"n2": answer("n2", applied=56, state_hash="ab" * 8)})
    assert doc["state"]["equal"] is True
    assert list(doc["state"]["hashes"]) == ["n1", "n3", "n4", "n5"]


def test_lag_counts_entries_behind_the_leader() -> None:
    """LAG is what the leader has and the node has not."""
    doc = document({"n2": answer("n2", last_index=50)})
    assert [node["lag"] for node in doc["nodes"]] == [0, 7, 0, 0, 0]


def test_plain_form_is_tab_separated_without_header() -> None:
    """`-o plain` is for cut and awk."""
    first = shown(document(), "plain").splitlines()[0].split("\t")
    assert first[:6] == ["n1", "follower", "4", "57", "57", "57"]


def test_wide_form_has_more_columns() -> None:
    """`-o wide` adds boot counter, revision, hash and waiting requests."""
    header = shown(document(), "wide").splitlines()[1].split()
    assert header[-4:] == ["BOOT", "REV", "HASH", "WAITING"]


def with_members(**fields: Any) -> dict[str, Any]:
    """Return the document of five nodes whose leader has such a configuration."""
    return document({"n5": answer("n5", config_index=40, **fields)})


def test_a_quorum_is_one_of_voters_and_learners_are_shown_as_such() -> None:
    """Who does not vote does not count (Raft §6)."""
    doc = with_members(voters=["n1", "n2", "n5"], learners=["n3", "n4"], joining=["n4"])
    assert doc["quorum"] == {"have": 3, "need": 2, "voters": 3, "ok": True}
    assert [node["member"] for node in doc["nodes"]] == [
        "voter", "voter", "learner", "joining", "voter"
    ]  # fmt: skip
    text = shown(doc)
    assert "quorum 3/3 OK" in text
    assert "n4 catching up" in text
    assert "learner" in text


def test_while_two_configurations_decide_the_one_that_is_worse_off_is_shown() -> None:
    """A change under way needs a majority of the old voters and one of the new."""
    fields = {"voters": ["n3", "n4", "n5"], "outgoing": ["n1", "n2", "n5"], "config_index": 40}
    up = {"n1": None, "n2": None, "n5": answer("n5", **fields)}
    down = {"n1": row("n1", state="down", pid=None), "n2": row("n2", state="down", pid=None)}
    doc = document(up, down)
    assert doc["quorum"] == {"have": 1, "need": 2, "voters": 3, "ok": False}
    assert "voters n1,n2,n5 → n3,n4,n5" in shown(document({"n5": answer("n5", **fields)}))


def test_a_node_that_the_log_does_not_name_is_no_voice_and_is_called_what_it_is() -> None:
    """One that left, and one that was made and waits to be taken in, know no leader: no news."""
    lone = {"leader": None, "term": 0}
    fields = {"voters": ["n1", "n2", "n5"], "config_index": 40}
    doc = document(
        {
            "n3": answer("n3", removed=True, **lone),
            "n4": answer("n4", **lone),
            "n5": answer("n5", **fields),
        }
    )
    assert [node["member"] for node in doc["nodes"][2:4]] == ["none", "none"]
    assert doc["agree"] is True
    text = shown(doc)
    assert "removed" in text
    assert "no member" in text
    assert "DISAGREE" not in text
    voter = document({"n4": answer("n4", **lone), "n5": answer("n5", **fields)})
    assert voter["agree"] is True
    split = document({"n2": answer("n2", **lone), "n5": answer("n5", **fields)})
    assert split["agree"] is False, "a voter that thinks otherwise is news"
