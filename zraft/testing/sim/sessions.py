"""What the log says of sessions, read by a model that is nothing but the rule (thesis §6.3).

A named command is executed by its first committed entry, if its session is open and not over by
log time, and by no other. The model knows no snapshot, no sweep and no bound: what makes the
production table fast and small must not show.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from zraft.core.model import EntryType
from zraft.machine.session_ops import SessionOp, decode_op, decode_terms
from zraft.testing.sim.marks import Marks
from zraft.wire_entry import Entry


@dataclass(slots=True)
class ModelSession:
    """A session, as the entries so far have made it."""

    ttl_ms: int
    used_ms: int
    ack_below: int = 1
    executed: set[int] = field(default_factory=set)


class SessionModel:
    """See the module. Entries are given in order."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._sessions: dict[int, ModelSession] = {}

    def on_session_entry(self, index: int, entry: Entry) -> None:
        """Take an entry about a session: the clients of a world only open them."""
        assert entry.type == EntryType.SESSION
        op, numbers = decode_op(entry.body)
        assert op is SessionOp.OPEN
        self._sessions[index] = ModelSession(decode_terms(numbers).ttl_ms, entry.log_time_ms)

    def executes(self, entry: Entry) -> bool:
        """Take a command; return whether it is to be executed."""
        if not entry.session:
            return True
        session = self._sessions.get(entry.session)
        if session is None or entry.log_time_ms - session.used_ms >= session.ttl_ms:
            self._marks.reach("expired_in_log")
            self._sessions.pop(entry.session, None)
            return False
        session.used_ms = entry.log_time_ms
        session.ack_below = max(session.ack_below, entry.ack_below)
        if entry.sequence in session.executed:
            self._marks.reach("repeated_in_log")
            return False
        if entry.sequence < session.ack_below:
            return False
        session.executed.add(entry.sequence)
        return True
