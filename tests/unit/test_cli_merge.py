"""The order of merged lines: time, but never a receive before its send."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zraft.cli.merge import GIVE_UP_NS, SLACK_NS, WINDOW_NS, Line, Merger

MS = 1_000_000


def line(
    node: str,
    seq: int,
    at_ms: float,
    event: str = "role.changed",
    *,
    pid: int = 1,
    old: str = "",
    trace: bool = False,
    **fields: Any,
) -> Line:
    """Return a line as it stands in a file."""
    content = {"event": event, "node": node, **fields}
    return Line(node, 1, pid, (seq, 0), int(at_ms * MS), old, trace, b"{}", content)


def sent(node: str, seq: int, at_ms: float, to: str, number: int) -> Line:
    """Return the line of a message that was sent."""
    link: dict[str, Any] = {"peer": to, "kind": "AppendEntries", "epoch": 0, "frame_seq": number}
    return line(node, seq, at_ms, "rpc.sent", trace=True, **link)


def received(node: str, seq: int, at_ms: float, sender: str, number: int) -> Line:
    """Return the line of a message that arrived."""
    link: dict[str, Any] = {
        "peer": sender,
        "kind": "AppendEntries",
        "epoch": 0,
        "frame_seq": number,
    }
    return line(node, seq, at_ms, "rpc.received", trace=True, **link)


def drained(lines: Sequence[Line]) -> list[tuple[str, int]]:
    """Merge lines of files that nobody follows."""
    merger = Merger()
    merger.add(lines)
    return [(found.node, found.place[0]) for found in merger.drain()]


def test_lines_come_by_time() -> None:
    """CLOCK_MONOTONIC orders the lines of different nodes, however they were read."""
    lines = [line("n1", 1, 10), line("n1", 2, 30), line("n2", 1, 20)]
    assert drained(lines[::-1]) == [("n1", 1), ("n2", 1), ("n1", 2)]


def test_lines_of_one_process_come_by_sequence() -> None:
    """Equal times, and two files of one process, do not mix up its lines."""
    lines = [line("n1", 3, 10), line("n1", 1, 10), line("n1", 2, 10)]
    assert drained(lines) == [("n1", 1), ("n1", 2), ("n1", 3)]


def test_processes_of_one_node_come_by_time() -> None:
    """A restarted supervisor counts from 1 again, and stands after its predecessor."""
    lines = [line("s", 1, 50, pid=2), line("s", 1, 10, pid=1), line("s", 9, 20, pid=1)]
    assert drained(lines) == [("s", 1), ("s", 9), ("s", 1)]


def test_receive_waits_for_a_send_that_was_written_later() -> None:
    """The sender writes its line after the socket had the message; the receiver was faster."""
    lines = [received("n2", 1, 10, "n1", 7), line("n2", 2, 11), sent("n1", 5, 12, "n2", 7)]
    assert drained(lines) == [("n1", 5), ("n2", 1), ("n2", 2)]


def test_receive_without_a_send_is_not_held_back() -> None:
    """The send was suppressed, rotated away, or lost with its process."""
    lines = [received("n2", 1, 10, "n1", 7), line("n1", 5, 12)]
    assert drained(lines) == [("n2", 1), ("n1", 5)]


def test_contradicting_lines_still_come_out() -> None:
    """Two receives that wait for each other are a lie; nothing hangs, and the order stays true."""
    lines = [
        received("n1", 1, 10, "n2", 1),
        sent("n1", 2, 11, "n2", 2),
        received("n2", 1, 10, "n1", 2),
        sent("n2", 2, 11, "n1", 1),
    ]
    merger = Merger()
    merger.add(lines)
    shown = merger.drain()
    assert len(shown) + merger.late_sends == len(lines)
    check_order(shown)


def test_lines_from_before_the_last_boot_come_first() -> None:
    """Another boot has another CLOCK_MONOTONIC: its lines are ordered by wall time."""
    lines = [
        line("n1", 1, 5),
        line("n1", 9, 900, pid=9, old="2026-01-01T00:00:02Z"),
        line("n2", 9, 999, pid=8, old="2026-01-01T00:00:01Z"),
    ]
    assert drained(lines) == [("n2", 9), ("n1", 9), ("n1", 1)]


def test_follower_waits_until_nothing_can_come_before() -> None:
    """A line is shown once it is older than what may still be in a buffer."""
    merger = Merger()
    merger.add([line("n1", 1, 100)])
    assert merger.ready(100 * MS + WINDOW_NS - 1) == []
    merger.add([line("n2", 1, 99)])
    assert [found.node for found in merger.ready(100 * MS + WINDOW_NS)] == ["n2", "n1"]


def test_follower_holds_a_receive_until_its_sender_traced_past_it() -> None:
    """A send that does not come, though its sender traced later things, was suppressed."""
    merger = Merger(window_ns=0)
    merger.add([received("n2", 1, 10, "n1", 7)])
    now_ns = 10 * MS + GIVE_UP_NS // 2
    assert merger.ready(now_ns) == []
    merger.add([line("n1", 1, 11 + SLACK_NS / MS, "commit.advanced", trace=True)])
    assert [found.node for found in merger.ready(now_ns)] == ["n2", "n1"]


def test_late_send_is_left_away_once_its_receive_is_out() -> None:
    """A paused sender writes its buffer long after; the order stays true, and it is counted."""
    merger = Merger(window_ns=0)
    merger.add([received("n2", 1, 10, "n1", 7)])
    assert len(merger.ready(10 * MS + GIVE_UP_NS + 1)) == 1
    merger.add([sent("n1", 1, 9, "n2", 7), line("n1", 2, 12)])
    late = merger.ready(10 * MS + GIVE_UP_NS + 2)
    assert [found.place[0] for found in late] == [2]
    assert merger.late_sends == 1


def history(rng: random.Random, steps: int) -> list[Line]:
    """Return a run of nodes that send and receive; lines carry times that are up to 5 ms late."""
    nodes = [f"n{i}" for i in range(1, 5)]
    seqs, clocks = dict.fromkeys(nodes, 0), dict.fromkeys(nodes, 0.0)
    flying: list[tuple[str, str, int]] = []
    lines: list[Line] = []
    now_ms = 0.0
    for number in range(1, steps + 1):
        now_ms += rng.random()
        node = rng.choice(nodes)
        mine = [message for message in flying if message[1] == node]
        seqs[node] += 1
        clocks[node] = max(clocks[node], now_ms + 5 * rng.random())
        if mine and rng.random() < 0.6:
            message = rng.choice(mine)
            flying.remove(message)
            lines.append(received(node, seqs[node], clocks[node], message[0], message[2]))
        else:
            to = rng.choice([other for other in nodes if other != node])
            flying.append((node, to, number))
            lines.append(sent(node, seqs[node], clocks[node], to, number))
    return lines


def check_order(lines: Sequence[Line]) -> None:
    """Assert that no receive stands before its send, and no process goes back."""
    shown: set[object] = set()
    all_sends = {(x.node, x.fields["frame_seq"]) for x in lines if x.fields["event"] == "rpc.sent"}
    last = dict.fromkeys({found.process for found in lines}, (0, 0))
    for found in lines:
        assert found.place > last[found.process]
        last[found.process] = found.place
        if found.fields["event"] == "rpc.sent":
            shown.add((found.node, found.fields["frame_seq"]))
        else:
            link = (found.fields["peer"], found.fields["frame_seq"])
            assert link in shown or link not in all_sends, f"{link} received before it was sent"


@given(st.integers(0, 2**32), st.integers(1, 200))
def test_no_receive_before_its_send(seed: int, steps: int) -> None:
    """Whatever the delays, merged files never show a receive before its send."""
    rng = random.Random(seed)
    lines = history(rng, steps)
    shuffled = rng.sample(lines, len(lines))
    merger = Merger()
    merger.add(shuffled)
    merged = merger.drain()
    assert len(merged) == len(lines)
    check_order(merged)


@given(st.integers(0, 2**32), st.integers(1, 150), st.floats(0, 0.3))
def test_no_receive_before_its_send_while_following(seed: int, steps: int, lost: float) -> None:
    """Read bit by bit, with lines that never come and lines that come late: the order holds."""
    rng = random.Random(seed)
    lines = [x for x in history(rng, steps) if rng.random() >= lost]
    arrivals = sorted(
        (x.mono_ns + rng.random() ** 4 * 2 * GIVE_UP_NS, i) for i, x in enumerate(lines)
    )
    held: dict[str, float] = {}
    timed = []
    for arrival, i in sorted(arrivals, key=lambda pair: lines[pair[1]].place):
        node = lines[i].node  # a file grows in order
        held[node] = max(held.get(node, 0), arrival)
        timed.append((held[node], i))
    merger = Merger()
    shown: list[Line] = []
    for arrival, i in sorted(timed):
        merger.add([lines[i]])
        shown += merger.ready(int(arrival))
    shown += merger.ready(int(1e15))
    assert len(shown) + merger.late_sends == len(lines)
    check_order(shown)
