"""A long log takes a while to apply; nodes answer votes and heartbeats meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from tests.cluster.harness import LiveCluster, elections_won, live_cluster, wait_until
from zraft import clock
from zraft.api import NodeStatus
from zraft.core.model import Command, Entries, HardState
from zraft.machine.kv_codec import encode_put
from zraft.storage.directory import open_member
from zraft.storage.wal import Wal
from zraft.wire_entry import EntryCodec

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NODES = 5
ENTRIES = 1_000_000
KEYS = 1_000
BATCH = 10_000
START_MS = 90_000


def make_payloads(term: int) -> list[bytes]:
    """Return puts of small values over a thousand keys, for the indexes from 2 on."""
    codec = EntryCodec()
    return [
        codec.encode(
            Command(encode_put(b"key%d" % (index % KEYS), b"value %d" % index)),
            term=term,
            log_time_ms=index,
        )
        for index in range(2, ENTRIES + 1)
    ]


def lengthen(directory: Path, payloads: list[bytes], term: int) -> None:
    """Make the log of a stopped member: its first entry as it is, then these."""
    member = open_member(directory)
    wal = Wal(member.wal_directory, member.identity)
    recovered = wal.load()
    assert recovered.entries.payloads, "the term's first entry is there"
    if recovered.hard_state.term < term:
        wal.save(HardState(term), None)
    for start in range(0, len(payloads), BATCH):
        part = payloads[start : start + BATCH]
        wal.save(None, Entries(start + 2, [term] * len(part), part))
        wal.sync()
    wal.close()


def terms_of(live: LiveCluster) -> list[int]:
    """Return the terms of the hard states of stopped members."""
    terms = []
    for name in live.names:
        member = open_member(live.directory / name)
        wal = Wal(member.wal_directory, member.identity)
        terms.append(wal.load().hard_state.term)
        wal.close()
    return terms


@pytest.mark.timeout(240)
def test_a_cold_start_with_a_million_entries_takes_one_election() -> None:
    """Five nodes apply 1,000,000 entries: one leader is elected, and none steps down meanwhile."""
    with live_cluster(NODES) as live:
        live.converged()
        live.cluster.down(now=True)
        term = max(terms_of(live))
        payloads = make_payloads(term)
        for name in live.names:
            lengthen(live.directory / name, payloads, term)
        before_ns = clock.monotonic_ns()
        live.bring_up(timeout_ms=START_MS)
        led_ms = (clock.monotonic_ns() - before_ns) // 1_000_000
        statuses = wait_until("all is applied", lambda: applied(live), timeout_ms=START_MS)
        elapsed_ms = (clock.monotonic_ns() - before_ns) // 1_000_000
        check_one_election(live, before_ns, term)
        assert {status.term for status in statuses.values()} == {term + 1}
        assert len({status.state_hash for status in statuses.values()}) == 1
        assert {status.revision for status in statuses.values()} == {ENTRIES}
        memory_mib = [psutil.Process(s.pid).memory_info().rss >> 20 for s in statuses.values()]
        sys.stderr.write(
            f"leader after {led_ms} ms, all applied after {elapsed_ms} ms, "
            f"resident memory {memory_mib} MiB\n"
        )


def applied(live: LiveCluster) -> dict[str, NodeStatus] | None:
    """Return all statuses once every node has applied everything, the new leader's entry too."""
    statuses = live.cluster.statuses(timeout_ms=2_000)
    done = {
        name: status
        for name, status in statuses.items()
        if status is not None and status.applied > ENTRIES
    }
    return done if len(done) == NODES else None


def check_one_election(live: LiveCluster, since_ns: int, term: int) -> None:
    """One leadership, one term more, nobody gave up leadership."""
    events = [event for event in live.all_events() if event["mono_ns"] >= since_ns]
    won = elections_won(events)
    assert [won_term for won_term, _ in won] == [term + 1], won
    left = [e["msg"] for e in events if e["event"] == "role.changed" and e["old"] == "leader"]
    assert left == []
    assert [e["msg"] for e in events if e["event"] == "check_quorum.lost"] == []
