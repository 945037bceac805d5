"""Snapshots: what the core decides of them (Raft §7, Fig. 13; thesis ch. 5).

The core never sees a snapshot's bytes. The node takes one at an applied index, stores it, sends it
and receives it; the core is told what is durable and decides what follows for the log:

    on_saved      an own snapshot is durable: cut the log behind it
    on_received   a leader's snapshot is durable: it takes the place of a log that can't go on

What followers still miss is held back for them, within a bound: a log that is cut under a follower
which is one second behind costs a whole snapshot.
"""

from __future__ import annotations

from zraft.core import election, replication
from zraft.core.messages import InstallSnapshot, InstallSnapshotResponse
from zraft.core.model import NOBODY, MemberId, SnapshotMeta
from zraft.core.notices import LogCompacted, SnapshotIgnored, SnapshotInstalled
from zraft.core.progress import Progress, ProgressState
from zraft.core.state import RaftState

TRIM_ENTRIES = 8_192
"""Entries that are freed in one go: about a millisecond."""

# An own snapshot


def on_saved(st: RaftState, meta: SnapshotMeta) -> int:
    """Learn that an own snapshot is durable; return the first index that is kept from now on.

    The log in memory is cut by `trim`, which does a first slice here. A snapshot that is older than
    the one that is known changes nothing.
    """
    assert meta.index <= st.applied_index, (meta.index, st.applied_index)
    if st.snapshot is not None and meta.index <= st.snapshot.index:
        return max(st.keep_from, st.log.first_index)
    assert st.log.term(meta.index) == meta.term, "a snapshot of another log"
    st.snapshot = meta
    keep_from = min(_first_to_keep(st, meta.index), st.log.persisted_index + 1)
    if keep_from > max(st.keep_from, st.log.first_index):
        st.keep_from = keep_from
        st.notices.append(LogCompacted(keep_from, meta.index))
    trim(st, TRIM_ENTRIES)
    return max(st.keep_from, st.log.first_index)


def trim(st: RaftState, max_entries: int) -> bool:
    """Cut at most so many entries that are in a snapshot; return whether there are more.

    To free a million entries takes longer than a heartbeat may wait.
    """
    compacted_index = st.log.compacted.index
    index = min(st.keep_from - 1, compacted_index + max_entries)
    if index > compacted_index:
        st.log.compact(index)
        st.configurations.compact(index)
    return index < st.keep_from - 1


def _first_to_keep(st: RaftState, index: int) -> int:
    """Return where the log starts from now on, with `index` in a snapshot.

    Every node keeps a trailing window: whoever leads next may need it. A leader also holds what a
    peer has not acknowledged, or what follows the snapshot that it gets, if that fits the bound;
    who is further behind needs a snapshot anyway, and holds nothing.
    """
    log, settings = st.log, st.settings
    first = log.index_within(index, settings.trailing_entries, settings.trailing_bytes)
    if st.leadership is None:
        return first
    for progress in sorted(st.leadership.progress.values(), key=_needs):
        needed = _needs(progress)
        if needed >= first:
            break
        if needed >= log.first_index and log.size_bytes(needed, index) <= settings.held_bytes:
            return needed
    return first


def _needs(progress: Progress) -> int:
    """Return the first index that a peer still has to get as an entry."""
    return max(progress.match_index, progress.snapshot_index) + 1


# Receiving


def on_install_snapshot(st: RaftState, m: InstallSnapshot) -> None:
    """Take one chunk: hand it out to be stored, or say that all it covers is here.

    A chunk is contact with the leader, like an append. What is committed here is never replaced by
    an older snapshot. A log that holds the last included entry already keeps everything, also what
    follows it: by Log Matching it agrees with the snapshot up to there (Fig. 13, rule 6).
    Durability: the answer goes to `messages_after_persist`.
    Source: Raft §7, Fig. 13 "InstallSnapshot RPC".
    """
    if m.term < st.term:
        _answer(st, m.src, m.last_included_index, m.last_included_term, installed=False)
        return
    replication.hear_leader(st, m.src, m.term)
    reason = _covered(st, m.last_included_index, m.last_included_term)
    if reason is None:
        st.chunks.append(m)
        return
    st.notices.append(SnapshotIgnored(m.last_included_index, m.src, reason))
    _answer(st, m.src, m.last_included_index, m.last_included_term, installed=True)


def on_received(st: RaftState, meta: SnapshotMeta) -> None:
    """Learn that a peer's snapshot is whole, checked and durable in its file.

    It replaces the log, unless what it covers came by other ways meanwhile. From here on it is
    committed; the state machine follows by `Ready.restore`.
    """
    log = st.log
    assert log.saved_index == log.last_index, "persist first what is in the log"
    assert meta.term <= st.term, (meta.term, st.term)
    reason = _covered(st, meta.index, meta.term)
    if reason is None:
        dropped = log.last_index - log.compacted.index
        log.restart_after(meta.last_id)
        st.configurations.restore(meta.configuration)
        st.snapshot = st.installing = meta
        replication.advance_commit(st, meta.index)
        st.notices.append(SnapshotInstalled(meta.index, meta.term, dropped))
    else:
        st.notices.append(SnapshotIgnored(meta.index, st.leader_id, reason))
    if st.leader_id not in (NOBODY, st.me):
        _answer(st, st.leader_id, meta.index, meta.term, installed=True)


def _covered(st: RaftState, index: int, term: int) -> str | None:
    """Return why a snapshot up to (index, term) is not needed, None if it is.

    If the log holds that entry, the entry is committed: somebody has a snapshot of it.
    """
    if index <= st.commit_index:
        mine = st.log.term(index)
        assert mine in (term, None), "a snapshot contradicts a committed entry"
        return "committed"
    if st.log.term(index) == term:
        replication.advance_commit(st, index)
        return "in_log"
    return None


def _answer(st: RaftState, dst: MemberId, index: int, term: int, *, installed: bool) -> None:
    st.say(InstallSnapshotResponse(st.me, dst, st.term, index, term, 0, installed))


# The leader's side


def on_install_snapshot_response(st: RaftState, m: InstallSnapshotResponse) -> None:
    """Count the answer as contact; go on with entries once the snapshot is installed.

    Answers on the way (`next_offset`) are for the node that sends. Those of other terms count for
    nothing, as with appends.
    """
    if m.term > st.term:
        election.give_up(st, m.term, leader=NOBODY, reason="higher_term", peer=m.src)
        return
    leadership = st.leadership
    if m.term < st.term or leadership is None:
        return
    progress = leadership.progress.get(m.src)
    if progress is None or m.last_included_index > st.log.last_index:
        return
    progress.last_contact_ms = st.now_ms
    if not m.installed:
        return
    rose = progress.on_accepted(m.last_included_index)
    if progress.state is ProgressState.SNAPSHOT:
        replication.maybe_leave_snapshot(st, leadership, progress)
    if rose:
        replication.maybe_commit(st)
    if progress.state is ProgressState.SNAPSHOT:
        # The log went on meanwhile, further than it is held back: the next one, a newer one.
        st.send_snapshots.append(progress.peer)


def on_sending(st: RaftState, peer: MemberId, index: int) -> None:
    """Learn which snapshot a peer is sent: the log is held back from there on, within its bound."""
    leadership = st.leadership
    progress = None if leadership is None else leadership.progress.get(peer)
    if progress is not None and progress.state is ProgressState.SNAPSHOT:
        progress.snapshot_index = index


def on_failed(st: RaftState, peer: MemberId) -> None:
    """Learn that a transfer to a peer ended and nothing was installed: probe the peer.

    If it still misses what is compacted away, it is given a snapshot again. The node decides how
    often it reports.
    """
    leadership = st.leadership
    progress = None if leadership is None else leadership.progress.get(peer)
    if leadership is not None and progress is not None:
        replication.leave_snapshot(st, leadership, progress, "snapshot_failed")
