"""Linearizable reads without writing to the log: ReadIndex (thesis §6.4).

A leader may have been replaced without knowing. So a read takes the commit index as of the moment
the question goes out, waits until a quorum answered an append of a *round* that started after the
read arrived, and until an entry of the leader's own term is committed; it is answered once the
state machine has applied that index. One round serves all reads that arrived before it left; each
attempt has an id of its own, bound to the term.
"""

from __future__ import annotations

from zraft.core.quorum import reached_by_quorum
from zraft.core.ready import ReadState
from zraft.core.state import Leadership, PendingRead, RaftState


def read(st: RaftState) -> int | None:
    """Ask for a read index; return the id under which a Ready will answer, None when not leader.

    Reads that arrive before the next Ready share the id: the round that confirms them has not left.
    """
    leadership = st.leadership
    if leadership is None:
        return None
    if leadership.open_read_id is None:
        leadership.open_read_id = st.next_read_id
        st.next_read_id += 1
    return leadership.open_read_id


def open_round(st: RaftState, leadership: Leadership) -> None:
    """Start a round for the reads that arrived since the last Ready; its appends leave next."""
    if leadership.open_read_id is None:
        return
    leadership.round += 1
    index = max(st.commit_index, leadership.noop_index)
    leadership.pending_reads.append(PendingRead(leadership.open_read_id, index, leadership.round))
    leadership.open_read_id = None


def maybe_confirm(st: RaftState, leadership: Leadership) -> None:
    """Hand out the reads whose round a quorum answered and whose index is committed."""
    if not leadership.pending_reads:
        return
    rounds = {peer: progress.acked_round for peer, progress in leadership.progress.items()}
    rounds[st.me] = leadership.round
    confirmed = reached_by_quorum(rounds, st.configuration)
    waiting: list[PendingRead] = []
    for pending in leadership.pending_reads:
        if pending.round <= confirmed and pending.index <= st.commit_index:
            st.reads.append(ReadState(pending.read_id, pending.index))
        else:
            waiting.append(pending)
    leadership.pending_reads = waiting
