"""What is said of writes in sessions, held against the log: the model and the history, by hand."""

from __future__ import annotations

import pytest

from zraft.api import Code, Reply
from zraft.core.model import Command, EntryType
from zraft.machine.kv_codec import encode_put
from zraft.machine.kv_results import encode_result
from zraft.machine.session_ops import (
    Fate,
    Resolution,
    SessionOp,
    Terms,
    encode_op,
    encode_open,
    encode_resolution,
)
from zraft.testing.sim.history import Operation
from zraft.testing.sim.plan import draw_plan
from zraft.testing.sim.trace import Violation
from zraft.testing.sim.world import World
from zraft.wire_entry import EntryCodec, decode_entry

PUT = encode_put(b"k", b"v")
RESOLVE, CLOSE = encode_op(SessionOp.RESOLVE), encode_op(SessionOp.CLOSE)
NAME = (1, 1)


class Told:
    """A history with a session, opened at index 1, and a put of unknown outcome in it, NAME."""

    def __init__(self) -> None:
        self.history = World(draw_plan(1), steps=10).history
        self.index = 0
        self.put = Operation("p0", "put", b"k", b"v", None, PUT, 0, 0)
        self.history.invoke(self.put)
        self.history.on_unknown(self.put)
        self.commit(EntryType.SESSION, encode_open(Terms()), named=(0, 0))

    def commit(
        self, kind: EntryType, body: bytes, *, named: tuple[int, int] = NAME, at_ms: int = 0
    ) -> int:
        """Commit the next entry; return its index."""
        self.index += 1
        command = Command(body, kind, *named, 1 if named[0] else 0)
        payload = EntryCodec().encode(command, term=1, log_time_ms=at_ms)
        self.history.on_committed(self.index, decode_entry(payload))
        return self.index

    def resolve(self, index: int, told: Resolution) -> None:
        """The entry at `index` was a question, and this is the answer."""
        reply = Reply(7, Code.OK, 1, 1, index, 1, encode_resolution(told))
        self.history.on_resolved(self.put, NAME, reply)


def test_a_write_that_was_resolved_as_applied_is_an_acknowledged_one() -> None:
    """With the index and the result of its first execution, whatever came between."""
    told = Told()
    at = told.commit(EntryType.COMMAND, PUT)
    told.commit(EntryType.COMMAND, PUT)  # a copy
    asked = told.commit(EntryType.SESSION, RESOLVE)
    told.resolve(asked, Resolution(Fate.APPLIED, at, Code.OK, encode_result((2,))))
    assert (told.put.status, told.put.index, told.put.output) == ("ok", at, None)


def test_a_write_that_was_resolved_as_not_applied_never_is() -> None:
    """A copy that comes into the log later is not executed, by the model as by the replicas."""
    told = Told()
    asked = told.commit(EntryType.SESSION, RESOLVE)
    told.resolve(asked, Resolution(Fate.WITHDRAWN))
    told.commit(EntryType.COMMAND, PUT)
    assert told.put.status == "fail"
    assert told.history.value_at(b"k", told.index) is None
    with pytest.raises(Violation, match="failed, and is at"):
        told.commit(EntryType.COMMAND, PUT, named=(0, 0))


@pytest.mark.parametrize(
    "wrong",
    [
        Resolution(Fate.WITHDRAWN),
        Resolution(Fate.FORGOTTEN),
        Resolution(Fate.APPLIED, 3, Code.OK, encode_result((2,))),
    ],
)
def test_a_word_that_is_not_the_logs_is_a_violation(wrong: Resolution) -> None:
    """The put is at index 2, and nothing else is true."""
    told = Told()
    assert told.commit(EntryType.COMMAND, PUT) == 2
    asked = told.commit(EntryType.SESSION, RESOLVE)
    with pytest.raises(Violation, match="the log says"):
        told.resolve(asked, wrong)


def test_a_repeated_write_and_its_question_must_agree() -> None:
    """What was withdrawn is not done, and what was done is not withdrawn."""
    told = Told()
    told.resolve(told.commit(EntryType.SESSION, RESOLVE), Resolution(Fate.WITHDRAWN))
    with pytest.raises(Violation, match="done at 3"):
        told.history.on_found_applied(told.put, Reply(7, Code.OK, 1, 1, 3, 1, encode_result((2,))))
    told = Told()
    reply = Reply(7, Code.OK, 1, 1, told.commit(EntryType.COMMAND, PUT), 1, encode_result((2,)))
    told.history.on_found_applied(told.put, reply)
    with pytest.raises(Violation, match="withdrawn, after it was done"):
        told.history.on_found_withdrawn(told.put)


@pytest.mark.parametrize("over", ["closed", "expired"])
def test_a_session_that_is_over_answers_no_question_and_executes_nothing(over: str) -> None:
    """Closed by an entry, or not used for its time to live by the log's time."""
    told = Told()
    late_ms = 0
    if over == "closed":
        told.commit(EntryType.SESSION, CLOSE, named=(1, 0))
    else:
        late_ms = Terms().ttl_ms
    asked = told.commit(EntryType.SESSION, RESOLVE, at_ms=late_ms)
    told.commit(EntryType.COMMAND, PUT, at_ms=late_ms)
    assert told.history.value_at(b"k", told.index) is None
    with pytest.raises(Violation, match="the log says None"):
        told.resolve(asked, Resolution(Fate.WITHDRAWN))


def test_questions_and_closings_are_drawn_only_where_there_are_sessions() -> None:
    """Some worlds with sessions ask, some close, some do neither; no other world does."""
    plans = [draw_plan(seed) for seed in range(200)]
    assert not any(plan.resolves or plan.closes for plan in plans if not plan.sessions)
    with_sessions = [plan for plan in plans if plan.sessions]
    for asks in (False, True):
        for closes in (False, True):
            drawn = [p for p in with_sessions if (p.resolves > 0, p.closes > 0) == (asks, closes)]
            assert len(drawn) > 5
