"""What must be true of one node after every step; a broken one stops the node (exit 70).

`check_basic` is cheap and always on. `check_delta` compares with what was true before: terms,
commit and applied indices never go back. `check_full` looks at the whole log and at every peer;
tests run it after every step (LogCabin's RaftConsensusInvariants are the model). `check_settings`
is for the start.
"""

from __future__ import annotations

from typing import TypeAlias

from zraft.core.model import NOBODY, Configuration, MemberId, Role, Settings
from zraft.core.progress import ProgressState
from zraft.core.quorum import reached_by_quorum
from zraft.core.state import RaftState

_CANDIDATE, _LEADER = Role.CANDIDATE, Role.LEADER  # through the class each look is a call
_PRE_CANDIDATE = Role.PRE_CANDIDATE


Seen: TypeAlias = tuple[int, MemberId, int, int]
"""What `check_delta` compares: term, vote, commit index, applied index."""


def check_settings(settings: Settings) -> None:
    """Assert the rules between the timers (configs/default.toml)."""
    assert 1 <= settings.election_min_ms <= settings.election_max_ms
    assert 1 <= settings.heartbeat_ms <= settings.election_min_ms // 2
    assert settings.check_quorum or not settings.lease, "a lease needs its voters' stickiness"
    assert 1 <= settings.lease_drift_percent <= 90
    assert settings.trailing_bytes <= settings.held_bytes


def check_basic(st: RaftState) -> None:
    """Assert what costs nothing to assert."""
    log, term, role, durable, commit_index = st.log, st.term, st.role, st.durable, st.commit_index
    compacted_index, last_index = log.compacted.index, log.last_index
    assert durable.term <= term >= log.last_term, (durable.term, term, log.last_term)
    assert st.applied_index <= st.handed_index <= commit_index <= last_index, (
        st.applied_index,
        st.handed_index,
        commit_index,
        last_index,
    )
    assert compacted_index <= log.persisted_index <= log.saved_index <= last_index
    covered = 0 if st.snapshot is None else st.snapshot.index
    assert compacted_index <= covered <= commit_index, "a hole before the log"
    leads, stands = st.leadership is not None, st.attempt is not None
    assert leads is (role is _LEADER)
    assert stands is (role is _CANDIDATE or role is _PRE_CANDIDATE)
    if leads:
        assert st.leader_id == st.me
        assert durable.term == term, "a leader's term is durable"
        assert durable.voted_for == st.me, "a leader's vote is durable"
    elif role is _CANDIDATE:
        assert st.voted_for == st.me
        assert st.leader_id == NOBODY
    else:
        assert st.leader_id != st.me


def check_delta(before: Seen, after: Seen) -> None:
    """Assert that nothing went back, and that nobody changed a vote within a term (Raft §5.2)."""
    old_term, old_vote, old_commit, old_applied = before
    term, voted_for, commit_index, applied_index = after
    assert term >= old_term, (old_term, term)
    assert commit_index >= old_commit, (old_commit, commit_index)
    assert applied_index >= old_applied, (old_applied, applied_index)
    if term == old_term and old_vote != NOBODY:
        assert voted_for == old_vote, "a second vote in one term"


def check_configuration(configuration: Configuration) -> None:
    """Assert what makes a configuration one (see the value)."""
    voters, learners = configuration.voters, configuration.learners
    assert voters, "nobody votes"
    for group in (voters, configuration.outgoing, learners, configuration.joining):
        assert group == tuple(sorted(set(group))), configuration
    assert not {*voters} & {*learners}, configuration
    assert {*configuration.joining} <= {*learners}, configuration


def check_full(st: RaftState) -> None:
    """Assert everything that can be told from one node alone."""
    check_basic(st)
    log = st.log
    assert log.terms_never_fall()
    check_configuration(st.configuration)
    assert st.configuration.index <= log.last_index
    leadership = st.leadership
    if leadership is None:
        return
    assert leadership.noop_index <= log.last_index
    assert log.term(leadership.noop_index) in (st.term, None)
    assert tuple(leadership.progress) == st.peers
    for progress in leadership.progress.values():
        assert progress.match_index < progress.next_index, progress
        assert progress.next_index <= log.last_index + 1, progress
        assert progress.acked_round <= progress.sent_round <= leadership.round, progress
        if progress.state is not ProgressState.REPLICATE:
            assert len(progress.inflights) == 0, progress
        assert len(progress.inflights) <= st.settings.max_inflight_messages
    matches = {peer: progress.match_index for peer, progress in leadership.progress.items()}
    held_index = reached_by_quorum({**matches, st.me: log.persisted_index}, st.configuration)
    assert held_index <= st.commit_index or log.term(held_index) != st.term, "a commit was missed"
    for pending in leadership.pending_reads:
        assert pending.round <= leadership.round
