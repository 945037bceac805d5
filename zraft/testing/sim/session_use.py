"""What a simulated client does with its session, besides writing in it.

Some ask what became of a write whose outcome is unknown (`Client.resolve`), at once or after a
while, when copies of the write may still be under way: what they are told is final, and is held
against the log from then on (`History.on_resolved`). Some are impatient, and in the same breath
send the write again under its name (`Client.repeat`): which of the two is first in the log decides,
and both answers must say the same. Some end their session now and then and go on in another one; as
in production, one with writes that have not ended, or ended without anybody knowing how, is not
closed: it stays in the cluster, and can be asked, until it expires. One that is closed is tried
once more, and must be over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from zraft.api import Consistency, Flag, Reply
from zraft.client.core import ClientCore
from zraft.client.pending import Finished, Name, parse_name
from zraft.client.sessions import ClientSession
from zraft.errors import OutcomeUnknown, SessionExpired, Withdrawn, ZraftError
from zraft.machine.session_ops import SessionOp, encode_op
from zraft.testing.sim.history import Operation
from zraft.testing.sim.trace import Violation

if TYPE_CHECKING:
    from zraft.testing.sim.world import World

IMPATIENT = 0.3

MAX_ASKED = 8
"""How often a client asks about one write while nobody answers."""


class Question(NamedTuple):
    """What became of a write? `asked` counts the times before."""

    operation: Operation
    name: Name
    asked: int = 0


class SessionUse:
    """See the module. `session` is the one to write in, None for a client without."""

    def __init__(
        self, world: World, number: int, core: ClientCore, pump: Callable[[], None]
    ) -> None:
        self._world = world
        self._number = number
        self._core = core
        self._pump = pump
        self._draws = world.draws(f"sessions of client {number}")
        uses_one = self._draws.chance(world.plan.sessions)
        self.session = ClientSession() if uses_one else None
        self._questions: dict[int, Question] = {}  # under way, by request
        self._repeats: dict[int, Operation] = {}
        self._closing: dict[int, int] = {}  # sessions
        self._closed: dict[int, int] = {}  # sessions that are tried once more
        self.quiet = False

    @property
    def outstanding(self) -> int:
        """Requests that have not ended."""
        asking = len(self._questions) + len(self._repeats)
        return asking + len(self._closing) + len(self._closed)

    def _submit(self, body: bytes, flags: Flag, name: Name) -> int:
        world = self._world
        now_us = world.agenda.now_us
        request_id = self._core.submit(
            body,
            Consistency.WRITE,
            flags,
            timeout_ms=world.plan.timeout_ms,
            now_ms=now_us // 1000,
            name=name,
        )
        world.trace.state(now_us, self._number, request_id, *name)
        world.agenda.after(1, self._send)  # not now: the core may be handing out results
        return request_id

    def _send(self, _: None) -> None:
        self._pump()

    def take(self, finished: Finished) -> bool:
        """Take the end of a request if it is one of these; return whether it is."""
        request_id, outcome = finished.request_id, finished.outcome
        if request_id in self._questions:
            self._on_answer(self._questions.pop(request_id), outcome)
        elif request_id in self._repeats:
            self._on_repeated(self._repeats.pop(request_id), outcome)
        elif request_id in self._closing:
            self._on_closed(self._closing.pop(request_id), outcome)
        elif request_id in self._closed:
            session_id = self._closed.pop(request_id)
            if isinstance(outcome, Reply):
                raise Violation(f"the session {session_id} was closed, and answers {outcome}")
        else:
            return False
        return True

    # Asking

    def on_unknown(self, operation: Operation, error: OutcomeUnknown) -> None:
        """The outcome of a write is unknown: some ask."""
        if self.session is not None and self._draws.chance(self._world.plan.resolves):
            assert error.request_id is not None
            self._ask_later(Question(operation, parse_name(error.request_id)))

    def _ask_later(self, question: Question) -> None:
        at_once = self._draws.chance(0.5)
        pause_us = 1 if at_once else 1 + self._draws.exponential(self._world.plan.fault_us)
        self._world.agenda.after(pause_us, self._ask, question)

    def _ask(self, question: Question) -> None:
        if self.quiet:
            return
        self._world.agenda.events += 1
        operation, name, _ = question
        self._questions[self._submit(encode_op(SessionOp.RESOLVE), Flag.SESSION, name)] = question
        if self._draws.chance(IMPATIENT):
            self._repeats[self._submit(operation.body, Flag.NONE, name)] = operation

    def _on_answer(self, question: Question, outcome: Reply | ZraftError) -> None:
        if isinstance(outcome, Reply):
            self._world.history.on_resolved(question.operation, question.name, outcome)
        elif not isinstance(outcome, SessionExpired) and question.asked < MAX_ASKED:
            self._ask_later(question._replace(asked=question.asked + 1))

    def _on_repeated(self, operation: Operation, outcome: Reply | ZraftError) -> None:
        if isinstance(outcome, Reply):
            self._world.history.on_found_applied(operation, outcome)
        elif isinstance(outcome, Withdrawn):
            self._world.history.on_found_withdrawn(operation)

    # Closing

    def maybe_end(self) -> None:
        """Some end their session, and write in a new one from now on."""
        session = self.session
        if session is None or not session.session_id or self.quiet:
            return
        if not self._draws.chance(self._world.plan.closes):
            return
        self.session = ClientSession()
        name = session.end()
        if name is not None:
            self._closing[self._submit(encode_op(SessionOp.CLOSE), Flag.SESSION, name)] = name[0]

    def _on_closed(self, session_id: int, outcome: Reply | ZraftError) -> None:
        """It is closed, unless that failed: then it expires by itself."""
        if isinstance(outcome, Reply):
            name, resolve = (session_id, 1), encode_op(SessionOp.RESOLVE)
            self._closed[self._submit(resolve, Flag.SESSION, name)] = session_id
