"""Linearizable reads without writing to the log: ReadIndex (thesis §6.4).

A leader may have been replaced without knowing. So a read takes the commit index as of the moment
the question goes out, waits until a quorum answered an append of a *round* that started after the
read arrived, and until an entry of the leader's own term is committed; it is answered once the
state machine has applied that index. One round serves all reads that arrived before it left, this
node's own and those that followers ask about; each attempt has an id of its own, bound to the term.

A follower asks its leader for the index (ReadIndex) and answers the read itself. Its question is
bound to leader and term: when either changes, when the leader refuses, or when no answer comes
within a minimal election timeout, the attempt is given up (`Ready.aborted_reads`) and its id never
used again. A late answer to an older attempt then finds nobody: were the id used again, it would
answer a read that began after it (etcd #20418).
"""

from __future__ import annotations

from zraft.core import election
from zraft.core.messages import ReadIndex, ReadIndexResponse
from zraft.core.model import NOBODY
from zraft.core.notices import ReadRetried
from zraft.core.ready import ReadState
from zraft.core.rounds import confirmed_round, next_round
from zraft.core.state import FAR_MS, AskedRead, Leadership, PendingRead, RaftState

REFUSED = 0
"""The index of an answer that refuses: ask again, under another id."""


def read(st: RaftState) -> int | None:
    """Ask for a read index; return the id under which a Ready will answer, None without leader.

    Reads that arrive before the next Ready share the id: the round that confirms them, or the
    question to the leader, has not left.
    """
    leadership = st.leadership
    if leadership is not None:
        if leadership.open_read_id is None:
            leadership.open_read_id = _next_id(st)
        return leadership.open_read_id
    if st.leader_id == NOBODY:
        return None
    if st.open_ask_id is None:
        st.open_ask_id = _next_id(st)
    return st.open_ask_id


def _next_id(st: RaftState) -> int:
    read_id = st.next_read_id
    st.next_read_id += 1
    return read_id


# The leader's side


def open_round(st: RaftState, leadership: Leadership) -> None:
    """Begin a round for the reads that arrived since the last Ready; its appends leave next.

    With leases every heartbeat begins one.
    """
    read_id, asked = leadership.open_read_id, leadership.asked_reads
    beats = st.settings.lease and leadership.heartbeat_due
    if read_id is None and not asked and not beats:
        return
    next_round(st, leadership)
    index = max(st.commit_index, leadership.noop_index)
    if read_id is not None:
        leadership.pending_reads.append(PendingRead(read_id, index, leadership.round))
        leadership.open_read_id = None
    for asker, asked_id in asked:
        pending = PendingRead(asked_id, index, leadership.round, asker)
        leadership.pending_reads.append(pending)
    asked.clear()


def maybe_confirm(st: RaftState, leadership: Leadership) -> None:
    """Hand out the reads whose round a quorum answered and whose index is committed."""
    if not leadership.pending_reads:
        return
    confirmed = confirmed_round(st, leadership)
    waiting: list[PendingRead] = []
    for pending in leadership.pending_reads:
        if pending.round > confirmed or pending.index > st.commit_index:
            waiting.append(pending)
        elif pending.asker == NOBODY:
            st.reads.append(ReadState(pending.read_id, pending.index))
        else:
            _answer(st, pending.asker, pending.read_id, pending.index)
    leadership.pending_reads = waiting


def on_read_index(st: RaftState, m: ReadIndex) -> None:
    """Take a follower's question; it is answered like a read of this node's own, or refused."""
    if m.term > st.term:
        election.give_up(st, m.term, leader=NOBODY, reason="higher_term", peer=m.src)
    leadership = st.leadership
    if leadership is None or m.term < st.term:
        _answer(st, m.src, m.read_id, REFUSED)
    else:
        leadership.asked_reads.append((m.src, m.read_id))


def _answer(st: RaftState, asker: int, read_id: int, index: int) -> None:
    st.say(ReadIndexResponse(st.me, asker, st.term, read_id, index))


# The follower's side


def ask_leader(st: RaftState) -> None:
    """Send the question of the reads that arrived since the last Ready."""
    read_id, st.open_ask_id = st.open_ask_id, None
    if read_id is not None:
        st.asked_reads.append(AskedRead(read_id, st.now_ms))
        st.say(ReadIndex(st.me, st.leader_id, st.term, read_id))


def ask_deadline_ms(st: RaftState) -> int:
    """Return when the oldest question counts as lost."""
    asked = st.asked_reads
    return asked[0].sent_ms + st.settings.election_min_ms if asked else FAR_MS


def on_timer(st: RaftState) -> None:
    """Give up the questions that got no answer in time."""
    while st.now_ms >= ask_deadline_ms(st):
        _ask_again(st, st.asked_reads.pop(0).read_id, "no_answer")


def _ask_again(st: RaftState, read_id: int, reason: str) -> None:
    st.aborted_reads.append(read_id)
    st.notices.append(ReadRetried(reason))


def on_read_index_response(st: RaftState, m: ReadIndexResponse) -> None:
    """Take the leader's answer to an attempt that still waits, of this term, and no other."""
    if m.term > st.term:
        election.give_up(st, m.term, leader=NOBODY, reason="higher_term", peer=m.src)
        return
    if m.term < st.term or m.src != st.leader_id:
        return
    for position, asked in enumerate(st.asked_reads):
        if asked.read_id == m.read_id:
            del st.asked_reads[position]
            if m.index == REFUSED:
                _ask_again(st, m.read_id, "refused")
            else:
                st.reads.append(ReadState(m.read_id, m.index))
            return
