"""What the clients saw, held against what was committed.

Two judges look at one history. The one here knows the log: every acknowledged operation names the
index at which it happened, so real time, values and "at most once" are checked in linear time, the
moment an answer arrives. The other one (`zraft.testing.linearizability`) knows nothing but the
history, and looks at the end.

A write of a session may be in the log more than once, and is done by the first of its entries
(`SessionModel`): an answer that names another one is a second execution.

An operation may see or follow what was committed, anywhere, before it was invoked: the floor. A
linearizable read below its floor is stale; a write at or below its floor happened before it began.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zraft.api import Consistency, Reply
from zraft.client.pending import Name
from zraft.core.model import EntryType
from zraft.machine.kv_codec import Cas, Delete, Put, decode_command
from zraft.machine.kv_results import decode_cas_result, decode_delete_result, decode_put_result
from zraft.machine.session_ops import Fate, decode_resolution
from zraft.testing.sim.sessions import SessionModel
from zraft.testing.sim.trace import Violation
from zraft.wire_entry import Entry

if TYPE_CHECKING:
    from zraft.testing.sim.world import World


_COMMAND = int(EntryType.COMMAND)  # plain numbers: comparing with an enum's member is slower
_SESSION = int(EntryType.SESSION)


@dataclass(slots=True, eq=False)
class Operation:
    """One client operation. `status`: open, ok, fail (certainly not done), unknown."""

    process: str
    kind: str  # get, put, delete, cas
    key: bytes
    value: bytes | None
    expected: bytes | None
    body: bytes
    invoke_us: int
    floor: int
    return_us: int = 0
    status: str = "open"
    output: object = None
    index: int = 0
    term: int = 0
    consistency: int = Consistency.WRITE
    bound_ms: int = 0  # of a stale read
    committed_at: int = 0  # where a write with a value of its own was found in the log


def decode_output(kind: str, result: bytes) -> bool | None:
    """Return what a write gave: None for a put, else whether it did something."""
    if kind == "cas":
        return decode_cas_result(result).succeeded
    if kind == "delete":
        return decode_delete_result(result).deleted > 0
    decode_put_result(result)
    return None


class History:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.operations: list[Operation] = []
        self._by_body: dict[bytes, Operation] = {}
        self._sessions = SessionModel(world.marks)
        self._changes: dict[bytes, tuple[list[int], list[bytes | None]]] = {}
        self._results: list[tuple[bytes, object] | None] = [None]  # by index: body and outcome

    # What the log says

    def on_committed(self, index: int, entry: Entry) -> None:
        """Take the next committed entry: run it on the model."""
        assert index == len(self._results)
        if entry.type == _SESSION:
            self._sessions.on_session_entry(index, entry)
        if entry.type != _COMMAND or not self._sessions.executes(index, entry):
            self._results.append(None)
            return
        self._results.append((entry.body, self._apply(index, entry.body)))
        operation = self._by_body.get(entry.body)
        if operation is None:
            return
        if operation.committed_at:
            where = f"{operation.committed_at} and {index}"
            raise Violation(f"{operation.kind} {operation.value!r} is done twice: {where}")
        operation.committed_at = index
        if operation.status == "fail":
            raise Violation(f"{operation.kind} {operation.value!r} failed, and is at {index}")
        if operation.status == "unknown":
            self._world.marks.reach("unknown_applied")

    def _apply(self, index: int, body: bytes) -> object:
        command = decode_command(body)
        if isinstance(command, Put):
            self._change(index, command.key, command.value)
            return None
        if isinstance(command, Cas):
            succeeded = self.value_at(command.key, index) == command.expect
            if succeeded:
                self._change(index, command.key, command.value)
            return succeeded
        assert isinstance(command, Delete)
        found = self.value_at(command.key, index) is not None
        if found:
            self._change(index, command.key, None)
        return found

    def _change(self, index: int, key: bytes, value: bytes | None) -> None:
        indices, values = self._changes.setdefault(key, ([], []))
        indices.append(index)
        values.append(value)

    def value_at(self, key: bytes, index: int) -> bytes | None:
        """Return a key's value once everything up to `index` is applied."""
        indices, values = self._changes.get(key, ([], []))
        place = bisect_right(indices, index)
        return values[place - 1] if place else None

    # What the clients say

    def invoke(self, operation: Operation) -> None:
        """An operation begins."""
        self.operations.append(operation)
        if operation.kind in {"put", "cas"}:
            self._by_body[operation.body] = operation

    def on_ok(self, operation: Operation, reply: Reply) -> None:
        """An operation was answered; check it against the log.

        Raises:
            Violation: it is not in the log, at another place, out of its time, or has another
                result.
        """
        index = reply.index
        operation.status, operation.index = "ok", index
        kind, value = operation.kind, operation.value
        if index >= len(self._results):
            raise Violation(f"{kind} was answered at index {index}, which is not committed")
        if kind == "get":
            floor = self._world.reads.floor_of(operation, reply)
            if index < floor:
                raise Violation(f"a stale read: at {index}, {floor} was committed before")
            expected = self.value_at(operation.key, index)
            if operation.output != expected:
                raise Violation(
                    f"get {operation.key!r} at {index}: {operation.output!r}, not {expected!r}"
                )
            return
        if index <= operation.floor:
            raise Violation(f"{kind} at {index}, but {operation.floor} was committed before")
        if self._results[index] != (operation.body, operation.output):
            raise Violation(
                f"{kind} {value!r} was answered with index {index}, which holds "
                f"{self._results[index]!r}"
            )

    def on_fail(self, operation: Operation) -> None:
        """An operation certainly was not done, and will not be."""
        operation.status = "fail"
        if operation.bound_ms:
            self._world.marks.reach("stale_read_refused")
        if operation.committed_at:
            raise Violation(f"{operation.kind} {operation.value!r} failed, and is in the log")

    def on_unknown(self, operation: Operation) -> None:
        """Nobody can say whether an operation was done."""
        operation.status = "unknown"
        if operation.committed_at:
            self._world.marks.reach("unknown_applied")

    def on_resolved(self, operation: Operation, name: Name, reply: Reply) -> None:
        """A client asked what became of a write of a session, and was told; that is final.

        From then on it is an acknowledged write, or one that failed: what the log says later is
        held against the word, as for every other one.

        Raises:
            Violation: the log says something else, or nothing.
        """
        told = decode_resolution(reply.body)
        word = self._sessions.words.get(reply.index)
        if word != (name, told.fate, told.index):
            raise Violation(f"{name} was resolved at {reply.index} as {told}; the log says {word}")
        if told.fate is Fate.APPLIED:
            self._world.marks.reach("write_resolved_applied")
            self.on_found_applied(operation, reply._replace(index=told.index, body=told.result))
        elif told.fate is Fate.WITHDRAWN:
            self._world.marks.reach("write_resolved_not_applied")
            self.on_found_withdrawn(operation)
        elif operation.status == "unknown":
            raise Violation(f"{name} was forgotten, and its client never said that it may be")

    def on_found_applied(self, operation: Operation, reply: Reply) -> None:
        """What an unknown outcome was became known: the write is done, as this reply says."""
        output = decode_output(operation.kind, reply.body)
        if operation.status == "unknown":
            operation.return_us, operation.term = self._world.agenda.now_us, reply.term
            operation.output = output
            self.on_ok(operation, reply)
        elif (operation.status, operation.index, operation.output) != ("ok", reply.index, output):
            raise Violation(f"done at {reply.index}, and gave {output!r}: {operation}")

    def on_found_withdrawn(self, operation: Operation) -> None:
        """What an unknown outcome was became known: the write is not done, and never will be."""
        if operation.status == "ok":
            raise Violation(f"withdrawn, after it was done: {operation}")
        self.on_fail(operation)

    def finish(self) -> None:
        """The run is over: what is not in the log now was not applied."""
        for operation in self.operations:
            had_own_value = operation.kind in {"put", "cas"}
            if operation.status == "unknown" and had_own_value and not operation.committed_at:
                self._world.marks.reach("unknown_not_applied")
