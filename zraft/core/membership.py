"""Who is a member, as this node's log says (Raft §6; thesis ch. 4).

The newest configuration in the log counts at once, committed or not, and goes with its entry when
that is truncated. Every node does what is here, whatever its role; what only a leader does, to
bring a change about, is in `zraft.core.changing`.

Standing for election takes a vote in the newest configuration, or in one that may still come back:
a node that is left out by an entry which is not committed yet may be the only one that holds that
entry, so it may have to lead until it is committed, without counting itself (thesis §4.2.2).
"""

from __future__ import annotations

from collections.abc import Sequence

from zraft.core.configurations import Configurations
from zraft.core.messages import (
    AppendEntries,
    InstallSnapshot,
    Message,
    RequestVote,
    TimeoutNow,
)
from zraft.core.model import (
    Configuration,
    EntryCodec,
    MemberId,
    Recovered,
)
from zraft.core.notices import (
    ConfigAppended,
    ConfigCommitted,
    ConfigRolledBack,
    MemberAdded,
    MemberDemoted,
    MemberPromoted,
    MemberRemoved,
    Removed,
)
from zraft.core.progress import CatchUp, Progress
from zraft.core.state import Leaving, RaftState

FROM_ANYBODY = (AppendEntries, InstallSnapshot, RequestVote, TimeoutNow)
"""What leaders and candidates ask: they may know a newer configuration than this node."""


def recovered_configurations(recovered: Recovered, codec: EntryCodec) -> Configurations:
    """Return the configurations along a log that was read back: the base's, and its entries'."""
    configurations = Configurations(recovered.configuration)
    first_index = recovered.entries.first_index
    for position, configuration in codec.configurations(recovered.entries.payloads):
        index = first_index + position
        if index > recovered.configuration.index:
            configurations.append(configuration._replace(index=index))
    return configurations


def is_heard(st: RaftState, message: Message) -> bool:
    """Return whether a message is looked at: else only if its sender is a member, or leads."""
    if isinstance(message, FROM_ANYBODY):
        return True
    src, leadership = message.src, st.leadership
    if leadership is not None:
        return src in leadership.progress or src in leadership.leaving
    return src == st.leader_id or is_member(st.configuration, src)


def is_member(configuration: Configuration, member: MemberId) -> bool:
    """Return whether a member gets the log."""
    return (
        member in configuration.voters
        or member in configuration.outgoing
        or member in configuration.learners
    )


# What the log says


def on_appended(st: RaftState, first_index: int, payloads: Sequence[bytes]) -> None:
    """Entries joined the log: configurations among them count from now on."""
    found = st.codec.configurations(payloads)
    if not found:
        return
    for position, configuration in found:
        new = configuration._replace(index=first_index + position)
        st.configurations.append(new)
        st.notices.append(
            ConfigAppended(new.index, new.voters, new.outgoing, new.learners, new.joining)
        )
    follow(st, first_index + found[0][0])


def on_truncated(st: RaftState, index: int) -> None:
    """Entries from `index` on are gone, and with them their configurations."""
    for gone in st.configurations.truncate_from(index):
        st.notices.append(ConfigRolledBack(gone.index, st.configuration.index))


def on_committed(st: RaftState, old: int, new: int) -> None:
    """The commit index rose from `old` to `new`: report configurations that became certain."""
    if st.configuration.index <= old:
        return
    along = st.configurations.along
    before = along[0]  # the last one that was not joint
    for configuration in along:
        if old < configuration.index <= new:
            st.notices.append(
                ConfigCommitted(
                    configuration.index,
                    configuration.voters,
                    configuration.outgoing,
                    configuration.learners,
                )
            )
            if not configuration.is_joint:
                _report_changes(st, before, configuration)
        if not configuration.is_joint:
            before = configuration


def _report_changes(st: RaftState, before: Configuration, now: Configuration) -> None:
    """Report who came, went, and got or lost a vote, once that can't be taken back."""
    old_voters = before.outgoing or before.voters  # what came before a joint one is compacted away
    for member in now.everybody:
        if not is_member(before, member):
            st.notices.append(MemberAdded(member, now.index))
        elif member not in old_voters and member in now.voters:
            st.notices.append(MemberPromoted(member, now.index))
        elif member in old_voters and member in now.learners:
            st.notices.append(MemberDemoted(member, now.index))
    for member in before.everybody:
        if not is_member(now, member):
            st.notices.append(MemberRemoved(member, now.index))
            if member == st.me:
                st.notices.append(Removed(now.index))


# What it means for this node


def committed_configuration(st: RaftState) -> Configuration:
    """Return the newest configuration that this node knows to be committed."""
    return st.configurations.at(st.commit_index)


def may_stand(st: RaftState) -> bool:
    """Return whether this node may stand for election; see the module."""
    newest = st.configurations.newest
    if st.me in newest.voters or st.me in newest.outgoing:
        return newest.index > st.removed_index
    if newest.index <= st.commit_index:
        return False
    return any(
        st.me in configuration.electorate and configuration.index > st.removed_index
        for configuration in st.configurations.since(st.commit_index)
    )


def is_removed(st: RaftState) -> bool:
    """Return whether this node was a member, and is none by what is committed."""
    newest = st.configuration
    if is_member(newest, st.me):
        return newest.index <= st.removed_index
    if st.removed_index >= 0:
        return True
    return newest.index <= st.commit_index and any(
        is_member(configuration, st.me) for configuration in st.configurations.along
    )


def on_told_removed(st: RaftState, index: int) -> None:
    """A member says that this node is left out by the configuration at `index`, committed.

    What is committed stays: unless a later entry names this node again, it has no vote any more.
    """
    newest = st.configuration
    if index <= st.removed_index or (is_member(newest, st.me) and newest.index > index):
        return
    st.removed_index = index
    st.notices.append(Removed(index))


# What it means for a leader's view of its peers


def follow(st: RaftState, next_index: int) -> None:
    """Make the leader's progress that of the newest configuration.

    A new peer is probed, beginning with the entry at `next_index`. One that leaves is still told so
    for a while; what it answers does not count any more.
    """
    leadership = st.leadership
    if leadership is None:
        return
    configuration, old = st.configuration, leadership.progress
    progress: dict[MemberId, Progress] = {}
    for peer in st.peers:
        known = old.get(peer)
        if known is None:
            leadership.leaving.pop(peer, None)  # added again: a snapshot it was sent ended with it
            known = Progress(peer, next_index, st.now_ms)
        if peer not in configuration.learners or peer in configuration.outgoing:
            known.catch_up = None
        elif known.catch_up is None:
            known.catch_up = CatchUp(st.log.last_index, st.now_ms)
        progress[peer] = known
    for peer, known in old.items():
        if peer not in progress:
            known.catch_up = None
            leadership.leaving[peer] = Leaving(known, configuration.index)
    leadership.progress = progress
