"""The WAL against a model: any sequence of saves, syncs, crashes, power cuts and compactions.

The model knows what was acknowledged, and the one batch that may or may not have reached the disk.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.wal_logs import CONFIGURATION, new_disk, open_log
from zraft.core.model import Entries, EntryId, HardState, Recovered, SnapshotMeta
from zraft.storage.wal import Wal
from zraft.testing.disk import Stopped

PAYLOAD = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 3000).map(bytes),
    st.tuples(st.integers(0, 1500), st.integers(0, 900)).map(
        lambda sizes: bytes(sizes[0]) + b"\x01" + bytes(sizes[1])
    ),
    st.tuples(st.integers(1, 3000), st.integers(0, 255)).map(
        lambda pair: random.Random(pair[1]).randbytes(pair[0])
    ),
    st.just(bytes(6000)),  # larger than a segment
)


def cut(state: Recovered, first_index: int) -> Recovered:
    """Return what is left of a log when entries before `first_index` are forgotten."""
    old = state.entries
    drop = first_index - old.first_index
    compacted = EntryId(first_index - 1, old.terms[drop - 1]) if drop else state.compacted
    entries = Entries(first_index, old.terms[drop:], old.payloads[drop:])
    return state._replace(entries=entries, compacted=compacted)


class WalAgainstModel(RuleBasedStateMachine):
    """Runs the same operations on a log on a simulated disk, and on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = new_disk()
        self.wal: Wal
        self.wal, self.synced = open_log(self.disk)
        self.saved = self.synced

    def start(self, *allowed: Recovered) -> None:
        """Open the log; it must hold one of these states."""
        self.wal, recovered = open_log(self.disk)
        assert recovered in allowed
        self.synced = self.saved = recovered

    @rule(grow=st.integers(0, 2), voted_for=st.sampled_from([0, 7, 8]))
    def save_hard_state(self, grow: int, voted_for: int) -> None:
        """A higher term, or a vote in this one."""
        term, voted = self.saved.hard_state
        if grow == 0 and voted not in (0, voted_for):
            return
        hard_state = HardState(term + grow, voted_for)
        self.wal.save(hard_state, None)
        self.saved = self.saved._replace(hard_state=hard_state)

    @rule(back=st.integers(0, 4), payloads=st.lists(PAYLOAD, max_size=4), data=st.data())
    def save_entries(self, back: int, payloads: list[bytes], data: st.DataObject) -> None:
        """Entries at the end, or in place of the last few."""
        old = self.saved.entries
        first_index = max(old.first_index, old.last_index + 1 - back)
        kept = first_index - old.first_index
        low = old.terms[kept - 1] if kept else self.saved.compacted.term
        high = self.saved.hard_state.term
        terms = sorted(data.draw(st.integers(min(low, high), high), label="term") for _ in payloads)
        if low > high:
            return
        self.wal.save(None, Entries(first_index, terms, payloads))
        entries = Entries(old.first_index, old.terms[:kept] + terms, old.payloads[:kept] + payloads)
        self.saved = self.saved._replace(entries=entries)

    @rule()
    def sync(self) -> None:
        """Everything saved is durable now."""
        self.wal.sync()
        self.synced = self.saved

    @rule(budget=st.integers(1, 3000))
    def prepare(self, budget: int) -> None:
        """Zero-filling changes nothing."""
        self.wal.prepare(budget)

    @rule()
    def close_and_open(self) -> None:
        """What was not synced is gone, the rest is there."""
        self.wal.close()
        self.start(self.synced)

    @rule(seed=st.integers(0, 1 << 16))
    def cut_power(self, seed: int) -> None:
        """The machine stops between two calls: exactly what was synced is there."""
        self.disk.cut_power(random.Random(seed))
        self.start(self.synced)

    @rule(steps=st.integers(0, 12), seed=st.integers(0, 1 << 16), power=st.booleans())
    def crash_while_syncing(self, steps: int, seed: int, power: bool) -> None:
        """The world stops inside a sync: the batch is there whole, or not at all."""
        self.stop_after(steps)
        try:
            self.wal.sync()
            self.synced = self.saved
        except Stopped:
            pass
        self.disk.on_step = lambda step, path: None
        self.crash(seed, power=power)
        self.start(self.synced, self.saved)

    @rule(steps=st.integers(0, 12), seed=st.integers(0, 1 << 16), power=st.booleans())
    def crash_while_opening(self, steps: int, seed: int, power: bool) -> None:
        """The world stops inside a repair: the next one finishes it."""
        self.wal.close()
        self.stop_after(steps)
        with contextlib.suppress(Stopped):
            open_log(self.disk)
        self.disk.on_step = lambda step, path: None
        self.crash(seed, power=power)
        self.start(self.synced)

    @precondition(lambda self: self.saved is self.synced and len(self.synced.entries.terms) > 2)
    @rule(keep=st.integers(0, 3))
    def compact(self, keep: int) -> None:
        """All but the last few entries are forgotten."""
        first_index = self.synced.entries.last_index + 1 - keep
        self.wal.compact(first_index)
        self.synced = self.saved = cut(self.synced, first_index)

    @rule(ahead=st.integers(-4, 5), back=st.integers(0, 1))
    def install(self, ahead: int, back: int) -> None:
        """A snapshot joins the batch: of a prefix, of all, ahead of the log, of another term."""
        old, entries = self.saved, self.saved.entries
        index = entries.last_index + ahead
        term = max(old.compacted.term, old.hard_state.term - back)
        if index < 1 or term < 1:
            return
        self.wal.install(SnapshotMeta(index, term, CONFIGURATION))
        if index <= old.compacted.index:
            return
        position = index - entries.first_index
        if position < len(entries.terms) and entries.terms[position] == term:
            self.saved = cut(old, index + 1)
        else:
            rest = Entries(index + 1, [], [])
            self.saved = old._replace(entries=rest, compacted=EntryId(index, term))

    def stop_after(self, steps: int) -> None:
        """Stop the world before the step after so many."""
        left = [steps]

        def stop(step: str, path: Path) -> None:
            if left[0] == 0:
                raise Stopped
            left[0] -= 1

        self.disk.on_step = stop

    def crash(self, seed: int, *, power: bool) -> None:
        """End the process, or the machine."""
        if power:
            self.disk.cut_power(random.Random(seed))
        else:
            self.disk.kill()

    @invariant()
    def runs_of_terms_are_bounded(self) -> None:
        """What is known of terms is what is in the log, and not one run for every term ever led."""
        assert len(self.wal._term_starts) <= len(self.saved.entries.terms) + 1

    @invariant()
    def configuration_is_known(self) -> None:
        """It is in every header."""
        assert self.synced.configuration == CONFIGURATION

    def teardown(self) -> None:
        """Give the descriptors back."""
        self.wal.close()
        assert self.disk.open_count == 0


TestWalAgainstModel = WalAgainstModel.TestCase
TestWalAgainstModel.settings = settings(
    max_examples=120,
    stateful_step_count=30,
    suppress_health_check=[HealthCheck.too_slow],  # the machine may be busy
)
