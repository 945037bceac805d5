"""Who is a member, and how that changes (Raft §6; thesis ch. 4).

The newest configuration in the log counts at once, committed or not, and goes with its entry when
that is truncated.
"""

from __future__ import annotations

from zraft.core.configurations import Configurations
from zraft.core.messages import (
    AppendEntriesResponse,
    InstallSnapshotResponse,
    Message,
    RequestVoteResponse,
)
from zraft.core.model import EntryCodec, Recovered
from zraft.core.state import RaftState

ANSWERS = (AppendEntriesResponse, InstallSnapshotResponse, RequestVoteResponse)


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
    """Return whether a message is looked at: answers only if its sender gets the log."""
    if not isinstance(message, ANSWERS):
        return True
    configuration = st.configuration
    src = message.src
    return (
        src in configuration.voters
        or src in configuration.outgoing
        or src in configuration.learners
    )
