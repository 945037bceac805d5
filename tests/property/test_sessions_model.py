"""Sessions against a model that remembers everything and computes anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from zraft.api import Code
from zraft.core.model import Command, EntryType
from zraft.machine.kv import KV
from zraft.machine.kv_codec import encode_put
from zraft.machine.replica import Outcome, Replica
from zraft.machine.session_ops import SessionOp, Terms, encode_op, encode_open
from zraft.machine.sessions import _number
from zraft.wire_entry import EntryCodec

Step = tuple[str, int, int, int, int, int]
TERMS = (Terms(500, 3, 10_000), Terms(1500, 2, 10_000))
STEPS = st.tuples(
    st.sampled_from(["open", "put", "put", "put", "poison", "keep", "close", "resolve", "noop"]),
    st.integers(0, 4),  # which session
    st.integers(1, 5),  # sequence
    st.integers(1, 5),  # ack_below
    st.sampled_from([0, 0, 10, 400, 1100]),  # log time since the entry before
    st.integers(0, 1),  # terms
)


@dataclass
class Modelled:
    """One session as the rules have it, without anything that makes it fast."""

    terms: Terms
    used_ms: int
    ack_below: int = 1
    done: dict[int, int] = field(default_factory=dict)  # sequence → index; 0: withdrawn


class Model:
    """What is run, and what is refused; bounds by number, not by bytes."""

    def __init__(self) -> None:
        self.sessions: dict[int, Modelled] = {}

    def living(self, session: int, now_ms: int) -> Modelled | None:
        """Return a session that is not over, as the one used last."""
        found = self.sessions.pop(session, None)
        if found is None or found.used_ms + found.terms.ttl_ms <= now_ms:
            return None
        found.used_ms = now_ms
        self.sessions[session] = found
        return found

    def open(self, index: int, now_ms: int, terms: Terms) -> None:
        """Open one; the longest unused ones make room."""
        while len(self.sessions) >= terms.max_sessions:
            del self.sessions[next(iter(self.sessions))]
        self.sessions[index] = Modelled(terms, now_ms)

    def sweep(self, now_ms: int) -> None:
        """End those that are over."""
        for session, found in list(self.sessions.items()):
            if found.used_ms + found.terms.ttl_ms <= now_ms:
                del self.sessions[session]

    def judge(self, command: Command, kind: str, outcome: Outcome, index: int, now_ms: int) -> None:
        """Do what a command does to its session, and say whether that is what came of it."""
        found, sequence = self.living(command.session, now_ms), command.sequence
        if found is None:
            assert outcome.code == Code.SESSION_EXPIRED
        elif kind == "close":
            del self.sessions[command.session]
        elif kind in {"put", "poison"}:
            found.ack_below = max(found.ack_below, command.ack_below)
            if sequence < found.ack_below:
                assert outcome.code == Code.SESSION_EXPIRED
            elif sequence in found.done:
                assert outcome.index == found.done[sequence] or not found.done[sequence]
                assert (outcome.code == Code.WITHDRAWN) == (not found.done[sequence])
            else:
                assert outcome.code == (Code.OK if kind == "put" else Code.INVALID)
                assert outcome.index == index
                found.done[sequence] = index
        elif kind == "resolve" and sequence >= found.ack_below:
            found.done.setdefault(sequence, 0)


@given(st.lists(STEPS, max_size=60), st.integers(0, 60))
def test_sessions_are_their_model(
    steps: list[tuple[str, int, int, int, int, int]], cut: int
) -> None:
    """Same outcomes; what runs, runs once; and a copy that was restored on the way stays equal."""
    replica, model, codec = Replica(KV()), Model(), EntryCodec()
    copy: Replica | None = None
    opened: list[int] = []
    ran: set[tuple[int, int]] = set()
    now_ms = 0
    for index, (kind, which, sequence, ack_below, after_ms, terms_number) in enumerate(steps, 1):
        if index == cut:
            copy = Replica(KV())
            copy.restore(replica.applied, [*replica.snapshot()])
        before_ms, now_ms = now_ms, now_ms + after_ms
        if before_ms // 1000 != now_ms // 1000:
            model.sweep(now_ms)
        session = opened[which % len(opened)] if opened else 77
        terms = TERMS[terms_number]
        match kind:
            case "open":
                command = Command(encode_open(terms), EntryType.SESSION)
            case "noop":
                command = Command(b"", EntryType.NOOP)
            case "put" | "poison":
                body = encode_put(b"k", b"v") if kind == "put" else b"poison"
                command = Command(body, EntryType.COMMAND, session, sequence, ack_below)
            case _:
                op = SessionOp[kind.upper()]
                command = Command(encode_op(op), EntryType.SESSION, session, sequence)
        payload = codec.encode(command, term=1, log_time_ms=now_ms)
        assert isinstance(replica.machine, KV)
        revision = replica.machine.revision
        outcome = replica.apply(index, payload)
        ran_now = replica.machine.revision != revision
        if copy is not None:
            assert copy.apply(index, payload) == outcome
            assert copy.digest() == replica.digest()
        if kind == "open":
            model.open(index, now_ms, terms)
            opened.append(index)
        elif kind != "noop":
            model.judge(command, kind, outcome, index, now_ms)
        if ran_now:
            assert kind == "put"
            assert outcome.index == index
            assert (session, sequence) not in ran, "it was run twice"
            ran.add((session, sequence))
        assert [s.session_id for s in replica.sessions] == [*model.sessions]
        digest = sum(s.weight * _number(s) for s in replica.sessions)
        assert replica.sessions.digest == digest % (1 << 64)
