"""Log and snapshots of one member against the cluster's history, over crashes at any step.

There is one true log: what the cluster commits. The member appends it, with wrong entries now and
then, as a follower of a leader that is deposed; it takes snapshots of what is committed, receives
newer ones, and cuts its log. Whatever crash falls where: recovery gives a snapshot of the truth and
a log that goes on from it, and nothing of what was acknowledged is missing.
"""

from __future__ import annotations

import contextlib
import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.snapshot_files import (
    SNAPSHOTS,
    clean_up,
    goes_on,
    new_snapshot_disk,
    open_store,
    stops,
    take,
    transfer,
)
from tests.wal_logs import CONFIGURATION, DIRECTORY, IDENTITY, new_disk
from zraft.core.model import Entries, HardState, Recovered, SnapshotMeta
from zraft.storage.recovery import recover
from zraft.storage.snapshot_file import snapshot_name
from zraft.storage.snapshots import SnapshotStore
from zraft.storage.wal import Wal
from zraft.testing.disk import Stopped

STEPS = st.one_of(st.none(), st.integers(0, 25))
TERM_ENTRIES = 7


def true_term(index: int) -> int:
    """Return the term of the committed entry at `index`; 0 before the first."""
    return (index + TERM_ENTRIES - 1) // TERM_ENTRIES


def true_entries(first_index: int, count: int) -> Entries:
    """Return committed entries."""
    indices = range(first_index, first_index + count)
    return Entries(first_index, [true_term(i) for i in indices], [b"%d" % i * 90 for i in indices])


def state_after(index: int) -> list[tuple[str, bytes]]:
    """Return what a snapshot at `index` holds."""
    return [("sessions", b"table"), ("machine", b"after %d " % index * 120)]


def meta_of(index: int) -> SnapshotMeta:
    """Return what describes a snapshot of the truth."""
    return SnapshotMeta(index, true_term(index), CONFIGURATION, index * 10, index)


class MemberAgainstTruth(RuleBasedStateMachine):
    """Runs a member, and knows what must be there after any crash."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = new_disk()
        self.wal: Wal
        self.store: SnapshotStore
        self.matched = 0  # acknowledged, and committed by now: must never be lost
        self.last_index = 0  # with wrong entries at the end
        self.term = 0
        self.snapshot_index = 0  # durable for certain
        self.start()

    def start(self) -> None:
        """Recover, and compare with the truth."""
        self.wal = Wal(DIRECTORY, IDENTITY, segment_bytes=4096, files=self.disk)
        self.store = open_store(self.disk)
        self.check(recover(self.wal, self.store))

    def check(self, found: Recovered) -> None:
        """What was acknowledged is there, and what is committed is the truth."""
        meta, entries = found.snapshot, found.entries
        end = 0 if meta is None else meta.index
        assert end >= self.snapshot_index, "a finished snapshot is gone"
        if meta is not None:
            assert meta._replace(size_bytes=0, crc=0) == meta_of(end)
            assert list(self.store.read(meta)) == state_after(end)
        assert entries.first_index == found.compacted.index + 1 <= end + 1, "a hole"
        assert found.compacted.term == true_term(found.compacted.index)
        assert max(end, entries.last_index) >= self.matched, "an acknowledged entry is gone"
        position = self.matched - found.compacted.index
        if position > 0 and entries.last_index >= self.matched:
            assert entries.terms[:position] == true_entries(entries.first_index, position).terms
            assert (
                entries.payloads[:position] == true_entries(entries.first_index, position).payloads
            )
        assert found.hard_state.term >= self.term
        self.term = found.hard_state.term
        self.snapshot_index = end
        self.matched = max(self.matched, end)
        self.last_index = max(end, entries.last_index)

    def run(self, steps: int | None, seed: int, act: str, *arguments: int) -> None:
        """Do something; with `steps`, the world stops before that step of it, if there is one."""
        if steps is not None:
            stops(self.disk, steps)
        try:
            getattr(self, f"_{act}")(*arguments)
        except Stopped:
            self.crash(seed)
        goes_on(self.disk)

    def crash(self, seed: int) -> None:
        """End the process, or, with an odd seed, the machine; then start again."""
        goes_on(self.disk)
        if seed % 2:
            self.disk.cut_power(random.Random(seed))
        else:
            self.disk.kill()
        self.start()

    @rule(count=st.integers(1, 5), steps=STEPS, seed=st.integers(0, 1 << 16))
    def append(self, count: int, steps: int | None, seed: int) -> None:
        """Entries of the leader: they replace wrong ones."""
        self.run(steps, seed, "append", count)

    def _append(self, count: int) -> None:
        entries = true_entries(self.matched + 1, count)
        self._save(entries)
        self.matched = self.last_index = entries.last_index

    @rule(count=st.integers(1, 3), steps=STEPS, seed=st.integers(0, 1 << 16))
    def append_wrong(self, count: int, steps: int | None, seed: int) -> None:
        """Entries that will never be committed, of a term that the truth skips."""
        self.run(steps, seed, "append_wrong", count)

    def _append_wrong(self, count: int) -> None:
        terms = [true_term(self.matched) + 50] * count
        self._save(Entries(self.matched + 1, terms, [b"wrong"] * count))
        self.last_index = self.matched + count

    def _save(self, entries: Entries) -> None:
        term = max(self.term, *entries.terms)
        self.wal.save(HardState(term) if term > self.term else None, entries)
        self.wal.sync()
        self.term = term

    @precondition(lambda self: self.matched > self.snapshot_index)
    @rule(back=st.integers(0, 3), steps=STEPS, seed=st.integers(0, 1 << 16))
    def take(self, back: int, steps: int | None, seed: int) -> None:
        """A snapshot of something that is applied."""
        self.run(steps, seed, "take", max(self.snapshot_index + 1, self.matched - back))

    def _take(self, index: int) -> None:
        take(self.store, meta_of(index), state_after(index))
        self.snapshot_index = index

    @rule(window=st.integers(0, 4), steps=STEPS, seed=st.integers(0, 1 << 16))
    def compact(self, window: int, steps: int | None, seed: int) -> None:
        """The log is cut behind the snapshot, but for a window."""
        self.run(steps, seed, "compact", window)

    def _compact(self, window: int) -> None:
        self.wal.compact(max(1, self.snapshot_index + 1 - window))
        while self.wal.prepare(1 << 14):
            pass

    @rule(ahead=st.integers(-3, 9), steps=STEPS, seed=st.integers(0, 1 << 16))
    def receive(self, ahead: int, steps: int | None, seed: int) -> None:
        """A peer's snapshot: of a prefix, or of what this member never had."""
        index = self.matched + ahead
        if index > self.snapshot_index:
            self.run(steps, seed, "receive", index)

    def _receive(self, index: int) -> None:
        if true_term(index) > self.term:  # the sender's term came with its first chunk
            self.wal.save(HardState(true_term(index)), None)
            self.wal.sync()
            self.term = true_term(index)
        disk = new_snapshot_disk()
        meta = take(open_store(disk), meta_of(index), state_after(index))
        incoming = self.store.receive(index, meta.term, meta.size_bytes, meta.crc)
        transfer(incoming, disk.read(SNAPSHOTS / snapshot_name(index, meta.term)), 400)
        assert incoming.finish() == meta
        clean_up(self.store)
        self.snapshot_index = index
        keeps = index <= self.matched
        self.wal.install(meta)
        self.wal.sync()
        self.matched = max(self.matched, index)
        self.last_index = self.last_index if keeps else index

    @rule(seed=st.integers(0, 1 << 16), steps=STEPS)
    def die(self, seed: int, steps: int | None) -> None:
        """The process or the machine ends between two calls; the next start may be cut as well."""
        if steps is not None:
            self.disk.kill()
            stops(self.disk, steps)
            with contextlib.suppress(Stopped):
                recover(Wal(DIRECTORY, IDENTITY, files=self.disk), open_store(self.disk))
        self.crash(seed)

    @invariant()
    def one_snapshot_is_enough(self) -> None:
        """However often it dies between a new name and the end of the old one."""
        names = [name for name in self.disk.listdir(SNAPSHOTS) if name.endswith(".snap")]
        assert len(names) == (self.snapshot_index > 0)

    @invariant()
    def what_is_known_of_terms_is_bounded(self) -> None:
        """At most one run for each entry that is in the log."""
        kept = self.last_index - self.wal._synced.compacted.index
        assert len(self.wal._term_starts) <= kept + 1

    def teardown(self) -> None:
        """Give the descriptors back."""
        self.store.close()
        self.wal.close()
        assert self.disk.open_count == 0


TestMemberAgainstTruth = MemberAgainstTruth.TestCase
TestMemberAgainstTruth.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],  # the machine may be busy
)
