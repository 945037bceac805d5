"""What a core wants done, gathered into a `Ready` (the contract: `zraft.core.ready`).

Appends, rounds and questions are made here, not when their reason came up: whatever a turn of the
loop brought leaves together.
"""

from __future__ import annotations

from zraft.core import changing, reads, replication, transfer
from zraft.core.model import Entries, HardState, SnapshotMeta
from zraft.core.ready import Ready
from zraft.core.state import RaftState


def take(st: RaftState) -> Ready | None:
    """Return everything that is to be done, and count it as handed out; None: nothing is."""
    leadership = st.leadership
    if leadership is not None:
        reads.open_round(st, leadership)
        replication.replicate(st)
        if leadership.transfer is not None:
            transfer.maybe_hand_over(st, leadership)
        if leadership.pending_reads:
            reads.maybe_confirm(st, leadership)
        changing.maybe_leave(st)
    elif st.open_ask_id is not None:
        reads.ask_leader(st)
    entries = None if st.log.saved_index == st.log.last_index else st.log.take_unsaved()
    restore = None if st.installing is None else _next_restore(st)
    can_apply = st.handed_index == st.applied_index < st.commit_index
    committed = _next_committed(st) if can_apply else None
    voted = st.durable.term != st.term or st.durable.voted_for != st.voted_for
    if (
        entries is None
        and committed is None
        and restore is None
        and not voted
        and _has_nothing_to_say(st)
    ):
        return None  # every second call ends here: it makes no value
    ready = Ready(
        messages=st.messages,
        hard_state=HardState(st.term, st.voted_for) if voted else None,
        entries=entries,
        snapshot=restore,
        messages_after_persist=st.messages_after_persist,
        restore=restore,
        committed=committed,
        aborted_term=st.aborted_term,
        reads=st.reads,
        aborted_reads=st.aborted_reads,
        chunks=st.chunks,
        send_snapshots=st.send_snapshots,
        notices=st.notices,
    )
    if ready.messages and st.durable.term < st.term:
        # They carry a term that is not durable yet: they wait for the sync as well.
        ready.messages_after_persist = ready.messages + ready.messages_after_persist
        ready.messages = []
    st.messages, st.messages_after_persist = [], []
    st.reads, st.aborted_reads, st.notices = [], [], []
    st.chunks, st.send_snapshots = [], []
    st.aborted_term = None
    return ready


def _has_nothing_to_say(st: RaftState) -> bool:
    """Return whether no message, answer or notice waits to be handed out."""
    return not (
        st.messages
        or st.messages_after_persist
        or st.notices
        or st.reads
        or st.aborted_reads
        or st.chunks
        or st.send_snapshots
        or st.aborted_term is not None
    )


def _next_restore(st: RaftState) -> SnapshotMeta | None:
    """Return the snapshot to be restored, once; runs handed out before it end with it."""
    restore, st.installing = st.installing, None
    if restore is not None:
        st.handed_index = restore.index
    return restore


def _next_committed(st: RaftState) -> Entries:
    """Return the next run to be applied; the last one was."""
    committed = st.log.slice(
        st.handed_index + 1,
        st.commit_index,
        st.settings.apply_batch_bytes,
        st.settings.apply_batch_entries,
    )
    st.handed_index = committed.last_index
    return committed
