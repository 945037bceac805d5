"""The load of a check run: a process with several clients, and the history of what they were told.

    python -m zraft.testing.checkrun.load SPEC          SPEC: a LoadSpec as JSON

Each client has one operation outstanding, as Jepsen's processes have; after an unknown outcome it
goes on under a new process id, because the old one may still be at work. Values are written once.
One operation in four is sent to one node only, drawn at random, so that nodes that should not
answer get their chance to; the others go to whoever leads.

Every 200 ms a line on standard output says what has ended so far (`Counts` as JSON). Anything on
standard input, or its end, stops the load; when every operation has ended, the process does, too.
Times are CLOCK_MONOTONIC, taken before an operation is handed to the client and after its end came
back: a window may look longer than it was, never shorter.
"""

from __future__ import annotations

import os
import random
import select
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from zraft import clock
from zraft.api import Consistency, Reply
from zraft.client.pending import Finished
from zraft.client.sync import Client
from zraft.errors import RequestError
from zraft.machine.kv_codec import encode_cas, encode_delete, encode_get, encode_put
from zraft.machine.kv_results import decode_cas_result, decode_delete_result, decode_get_result
from zraft.testing.history import HistoryWriter, Kind, Operation, Status

TELL_EVERY_MS = 200
STDIN = 0
STDOUT = 1

MIX: tuple[tuple[Kind, int], ...] = (("get", 50), ("put", 25), ("cas", 20), ("delete", 5))
CHANCE_OWN_NODE = 0.25


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one load process does. `clients` are the numbers of its clients, its own in the run."""

    cluster: str
    nodes: list[str]
    clients: list[int]
    keys: int
    seed: int
    interval_ms: int  # between the beginnings of a client's operations, at least
    timeout_ms: int
    path: str  # of the history


class Counts(msgspec.Struct, kw_only=True):
    """How many operations ended, and how."""

    ok: int = 0
    fail: int = 0
    unknown: int = 0


@dataclass(slots=True)
class Caller:
    """One client: one operation at a time."""

    number: int
    rng: random.Random
    due_ms: int
    incarnation: int = 0
    written: int = 0

    @property
    def process(self) -> str:
        """Return who it is in the history."""
        return f"c{self.number}.{self.incarnation}"


@dataclass(slots=True)
class Call:
    """An operation that is under way."""

    caller: Caller
    op: Kind
    key: str
    expected: str | None
    value: str | None
    invoke_ns: int


class Load:
    """All clients of one process."""

    def __init__(self, spec: LoadSpec, client: Client, history: HistoryWriter) -> None:
        self.counts = Counts()
        self._spec = spec
        self._client = client
        self._history = history
        self._seen: dict[str, str | None] = {}  # what a key was last read or written as
        self._under_way: dict[int, Call] = {}
        now_ms = clock.now_ms()
        self._callers = [
            Caller(number, random.Random(f"{spec.seed}/{number}"), now_ms)
            for number in spec.clients
        ]
        self._idle = list(self._callers)

    def run(self) -> None:
        """Work until somebody says stop, then until every operation has ended."""
        stdin = select.poll()
        stdin.register(STDIN, select.POLLIN)
        tell_ms = clock.now_ms()
        stopping = False
        while not stopping or self._under_way:
            now_ms = clock.now_ms()
            if now_ms >= tell_ms:
                self._tell()
                tell_ms = now_ms + TELL_EVERY_MS
            if not stopping:
                self._begin_due(now_ms)
            wait_ms = self._wait_ms(now_ms, tell_ms)
            if stdin.poll(0 if self._under_way else wait_ms):
                stopping = True
            for finished in self._client.wait(timeout_s=wait_ms / 1000):
                self._end(finished)
        self._tell()

    def _wait_ms(self, now_ms: int, tell_ms: int) -> int:
        due_ms = min((caller.due_ms for caller in self._idle), default=tell_ms)
        return max(0, min(due_ms, tell_ms) - now_ms)

    def _tell(self) -> None:
        self._history.flush()
        os.write(STDOUT, msgspec.json.encode(self.counts) + b"\n")

    def _begin_due(self, now_ms: int) -> None:
        due = [caller for caller in self._idle if caller.due_ms <= now_ms]
        self._idle = [caller for caller in self._idle if caller.due_ms > now_ms]
        for caller in due:
            caller.due_ms = now_ms + self._spec.interval_ms
            self._begin(caller)

    def _begin(self, caller: Caller) -> None:
        rng = caller.rng
        kinds, weights = zip(*MIX, strict=True)
        kind: Kind = rng.choices(kinds, weights)[0]
        key = f"k{rng.randrange(self._spec.keys)}"
        node = rng.choice(self._spec.nodes) if rng.random() < CHANCE_OWN_NODE else None
        expected = value = None
        if kind in {"put", "cas"}:
            caller.written += 1
            value = f"{caller.number}.{caller.written}"
        if kind == "cas":
            expected = self._seen.get(key)
        call = Call(caller, kind, key, expected, value, clock.monotonic_ns())
        request_id = self._client.submit(
            _encode(call),
            Consistency.LINEARIZABLE if kind == "get" else Consistency.WRITE,
            timeout_s=self._spec.timeout_ms / 1000,
            at=node,
        )
        self._under_way[request_id] = call

    def _end(self, finished: Finished) -> None:
        """Write down how an operation ended."""
        call = self._under_way.pop(finished.request_id)
        caller = call.caller
        self._idle.append(caller)
        fields: dict[str, Any] = {
            "process": caller.process,
            "op": call.op,
            "key": call.key,
            "expected": call.expected,
            "value": call.value,
            "invoke_ns": call.invoke_ns,
        }
        outcome = finished.outcome
        if isinstance(outcome, Reply):
            fields |= {"output": _decode(call, outcome.body), "note": self._note(outcome)}
            self._learn(call, fields["output"])
            status: Status = "ok"
        elif isinstance(outcome, RequestError) and outcome.maybe_applied and call.op != "get":
            status = "unknown"
            caller.incarnation += 1
        else:
            fields["note"] = {"error": str(outcome.what), "via": finished.via}
            status = "fail"
        setattr(self.counts, status, getattr(self.counts, status) + 1)
        if status != "unknown":
            fields["return_ns"] = clock.monotonic_ns()
        self._history.write(Operation(status=status, **fields))

    def _note(self, reply: Reply) -> dict[str, Any]:
        member = self._client.core.nodes.of_member(reply.member_id)
        node = "" if member is None else member.name
        return {"node": node, "index": reply.index, "term": reply.term}

    def _learn(self, call: Call, output: str | bool | None) -> None:
        """Remember what a key holds now, so that a cas has a chance."""
        if call.op == "get":
            assert not isinstance(output, bool)
            self._seen[call.key] = output
        elif call.op == "delete" or (call.op == "cas" and not output):
            self._seen[call.key] = None
        else:
            self._seen[call.key] = call.value


def _encode(call: Call) -> bytes:
    key = call.key.encode()
    match call.op:
        case "get":
            return encode_get(key)
        case "delete":
            return encode_delete(key)
        case "put":
            assert call.value is not None
            return encode_put(key, call.value.encode())
        case _:
            assert call.value is not None
            expected = None if call.expected is None else call.expected.encode()
            return encode_cas(key, expected, call.value.encode())


def _decode(call: Call, body: bytes) -> str | bool | None:
    """Return what the client was told."""
    match call.op:
        case "get":
            item = decode_get_result(body).item
            return None if item is None else item.value.decode()
        case "delete":
            return decode_delete_result(body).deleted > 0
        case "cas":
            return decode_cas_result(body).succeeded
        case _:
            return None


def main() -> None:
    """Do what the command line says."""
    spec = msgspec.json.decode(sys.argv[1], type=LoadSpec)
    with Client(spec.cluster) as client, HistoryWriter(Path(spec.path)) as history:
        Load(spec, client, history).run()


if __name__ == "__main__":
    main()
