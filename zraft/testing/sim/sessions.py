"""What the log says of sessions, read by a model that is nothing but the rule (thesis §6.3).

A named command is executed by its first committed entry, if its session is open and not over by
log time, and by no other. Who asks what became of one gets the last word: one that was not executed
is withdrawn, and never is. The model knows no snapshot, no sweep and no bound: what makes the
production table fast and small must not show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from zraft.client.pending import Name
from zraft.core.model import EntryType
from zraft.machine.session_ops import Fate, SessionOp, decode_op, decode_terms
from zraft.testing.sim.marks import Marks
from zraft.wire_entry import Entry


class Word(NamedTuple):
    """What is to be said of a write from one entry on; `index` is where it was executed."""

    name: Name
    fate: Fate
    index: int = 0  # type: ignore[assignment]  # a field, not tuple.index


@dataclass(slots=True)
class ModelSession:
    """A session, as the entries so far have made it."""

    ttl_ms: int
    used_ms: int
    ack_below: int = 1
    executed: dict[int, int] = field(default_factory=dict)  # sequences, and at which index
    withdrawn: set[int] = field(default_factory=set)

    def resolve(self, name: Name) -> Word:
        """Say what became of a write, and withdraw one that was not executed."""
        sequence = name[1]
        if sequence < self.ack_below:
            return Word(name, Fate.FORGOTTEN)
        if sequence in self.executed:
            return Word(name, Fate.APPLIED, self.executed[sequence])
        self.withdrawn.add(sequence)
        return Word(name, Fate.WITHDRAWN)


class SessionModel:
    """See the module. Entries are given in order."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._sessions: dict[int, ModelSession] = {}
        self.words: dict[int, Word] = {}
        """What each entry that asks has to be answered with, by its index."""

    def on_session_entry(self, index: int, entry: Entry) -> None:
        """Take an entry about a session."""
        assert entry.type == EntryType.SESSION
        op, numbers = decode_op(entry.body)
        if op is SessionOp.OPEN:
            ttl_ms = decode_terms(numbers).ttl_ms
            self._sessions[index] = ModelSession(ttl_ms, entry.log_time_ms)
            return
        session = self._use(entry)
        if session is None:
            return
        if op is SessionOp.CLOSE:
            self._marks.reach("session_closed")
            del self._sessions[entry.session]
        elif op is SessionOp.RESOLVE:
            self.words[index] = session.resolve((entry.session, entry.sequence))

    def _use(self, entry: Entry) -> ModelSession | None:
        """Return the session of an entry, which uses it; None: it is over, or never was."""
        session = self._sessions.get(entry.session)
        if session is None or entry.log_time_ms - session.used_ms >= session.ttl_ms:
            self._sessions.pop(entry.session, None)
            return None
        session.used_ms = entry.log_time_ms
        return session

    def executes(self, index: int, entry: Entry) -> bool:
        """Take a command; return whether it is to be executed."""
        if not entry.session:
            return True
        session = self._use(entry)
        if session is None:
            self._marks.reach("expired_in_log")
            return False
        session.ack_below = max(session.ack_below, entry.ack_below)
        if entry.sequence in session.executed:
            self._marks.reach("repeated_in_log")
            return False
        if entry.sequence in session.withdrawn:
            self._marks.reach("withdrawn_in_log")
            return False
        if entry.sequence < session.ack_below:
            return False
        session.executed[entry.sequence] = index
        return True
