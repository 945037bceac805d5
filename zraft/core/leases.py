"""Reads without asking: a leader's lease, and what the others promise for it (thesis §6.4.1).

Every follower that answers an append promises, by its own clock, to vote for nobody for one minimal
election timeout. So a leader whose round was answered by a quorum can't have been replaced before

    the moment the round began, *before its appends were sent*  +  election_min_ms − drift

by its own clock. The drift, 10 % unless configured, is what two clocks may differ over one timeout:
**that is what a lease trusts**, and nothing else in Raft does. The time of an answer must never be
used: the answer may have travelled for long.

Three times that must not be mixed up: the lease ends after the minimal timeout less the drift
(`lease_drift_percent`), the promise lasts the minimal one (`election_min_ms`), CheckQuorum deposes
a leader after the maximal one (`election_max_ms`).

The promise outlives what the node knows: a higher term learnt from a stray answer does not end it,
and a node that starts may have given one before it forgot, so it begins with one. Only two things
pass: a vote that the leader asked for (`RequestVote.transfer`; it gave up its lease before), and
the certainty that the leader's process is gone.
"""

from __future__ import annotations

from zraft.core.rounds import began_ms, confirmed_round
from zraft.core.state import RaftState


def promise(st: RaftState) -> None:
    """Vote for nobody for one minimal election timeout, if leases are on."""
    if st.settings.lease:
        st.promise_until_ms = max(st.promise_until_ms, st.now_ms + st.settings.election_min_ms)


def is_promised(st: RaftState) -> bool:
    """Return whether a vote now could break a promise."""
    return st.settings.lease and st.now_ms < st.promise_until_ms


def end_promise(st: RaftState) -> None:
    """The leader's process is gone, and its lease with it."""
    if st.settings.hint_ends_promise:
        st.promise_until_ms = 0


def lease_until_ms(st: RaftState) -> int:
    """Return until when nobody else can lead, by this node's clock; 0: no lease.

    A read under it also needs that an entry of the own term is committed.
    """
    leadership = st.leadership
    if leadership is None or not st.settings.lease or leadership.sent_timeout_now:
        return 0
    timeout_ms = st.settings.election_min_ms
    length_ms = timeout_ms * (100 - st.settings.lease_drift_percent) // 100
    if st.decides_alone:
        return st.now_ms + length_ms
    confirmed = confirmed_round(st, leadership)
    if confirmed < leadership.lease_floor_round:
        return 0
    began = began_ms(leadership, confirmed)
    return 0 if began is None else began + length_ms


def lease_index(st: RaftState) -> int | None:
    """Return the index at which a read may be answered now without asking; None: ask."""
    leadership = st.leadership
    if leadership is None or st.commit_index < leadership.noop_index:
        return None
    return st.commit_index if st.now_ms < lease_until_ms(st) else None


def drop(st: RaftState) -> bool:
    """This process stood still: rounds sent before count no more. Return whether it had a lease."""
    leadership = st.leadership
    if leadership is None or not st.settings.lease:
        return False
    had = lease_until_ms(st) > 0
    leadership.lease_floor_round = leadership.round + 1
    return had
