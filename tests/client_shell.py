"""A client core whose connections come up at once, for tests: no socket, a clock of numbers."""

from __future__ import annotations

import random

from zraft.api import Code, Consistency, Flag, Reply, Request
from zraft.client.core import ClientCore
from zraft.client.nodes import Member
from zraft.client.pending import Finished, Name
from zraft.client.sessions import ClientSession
from zraft.errors import (
    ZraftError,
)

CLUSTER = b"cluster!"
WRITE, READ, STALE = Consistency.WRITE, Consistency.LINEARIZABLE, Consistency.STALE


class Shell:
    """A core whose connections come up at once, and what it sent."""

    def __init__(self, count: int = 3, *, seed: int = 1, connect: bool = True) -> None:
        members = [Member(number, f"n{number}", "") for number in range(1, count + 1)]
        self.core = ClientCore(members, rng=random.Random(seed), cluster=CLUSTER)
        self.now_ms = 1_000_000
        self.connect = connect
        self.connects: list[int] = []
        self.sent: list[tuple[int, Request]] = []

    def submit(
        self,
        kind: Consistency = WRITE,
        *,
        timeout_ms: int = 5000,
        body: bytes = b"body",
        flags: Flag = Flag.NONE,
        target: str | None = None,
        session: ClientSession | None = None,
        name: Name = (0, 0),
    ) -> int:
        return self.core.submit(
            body,
            kind,
            flags,
            timeout_ms=timeout_ms,
            now_ms=self.now_ms,
            target=target,
            session=session,
            name=name,
        )

    def turn(self, later_ms: int = 0) -> list[tuple[int, Request]]:
        """Let time pass, make connections, and return what was sent."""
        self.now_ms += later_ms
        sent: list[tuple[int, Request]] = []
        for _ in range(2):
            for key, requests in self.core.outgoing(self.now_ms):
                sent += [(key, request) for request in requests]
            wanted = self.core.take_connects()
            self.connects += wanted
            if not (self.connect and wanted):
                break
            for key in wanted:
                self.core.on_connected(key, self.now_ms)
        self.sent += sent
        return sent

    def run_until_sent(self, limit_ms: int = 5000) -> tuple[int, Request]:
        """Go from deadline to deadline until something is sent; return the first of it."""
        end_ms = self.now_ms + limit_ms
        while self.now_ms <= end_ms:
            if sent := self.turn():
                return sent[0]
            self.now_ms = self.wake_ms()
        raise AssertionError("nothing was sent")

    def wake_ms(self) -> int:
        due_ms = self.core.next_deadline_ms()
        assert due_ms is not None
        assert due_ms > self.now_ms, "the core would spin"
        return due_ms

    def answer(
        self, sent: tuple[int, Request], code: Code = Code.OK, *, leader: int = 0, term: int = 1
    ) -> None:
        key, request = sent
        reply = Reply(request.request_id, code, key, term, 7, leader, b"text")
        self.core.on_replies(key, CLUSTER, [reply], self.now_ms)

    def results(self) -> list[Finished]:
        return self.core.results()

    def result(self) -> Reply | ZraftError:
        (finished,) = self.results()
        assert self.core.outstanding == 0
        assert self.core.next_deadline_ms() is None
        return finished.outcome
