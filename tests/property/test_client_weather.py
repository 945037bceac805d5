"""The client core in a world that loses, doubles, delays, refuses and dies."""

from __future__ import annotations

import random

import pytest

from tests.client_shell import CLUSTER, READ, WRITE, Shell
from zraft.api import Code, Consistency, Reply, Request
from zraft.client.pending import Finished
from zraft.errors import (
    Busy,
    OutcomeUnknown,
    Unavailable,
)

# All of it together


class Server:
    """A node in a world that loses, doubles, delays, refuses and dies. Knows what it applied."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.applied: list[bytes] = []

    def take(self, request: Request, key: int) -> list[tuple[int, Reply]]:
        """Return replies with their delays; none when it says nothing."""
        roll = self.rng.random()
        reply = Reply(request.request_id, Code.OK, key, 1, 1, self.rng.randrange(4), b"")
        if roll < 0.3:
            code = self.rng.choice([Code.BUSY, Code.UNAVAILABLE, Code.NOT_LEADER])
            reply = reply._replace(code=code)
        elif request.consistency == WRITE:
            self.applied.append(request.body)
        if roll > 0.9:
            return []
        if roll > 0.85 and reply.code == Code.OK:
            reply = reply._replace(code=Code.UNKNOWN)
        copies = 2 if self.rng.random() < 0.2 else 1
        return [(self.rng.randrange(200), reply) for _ in range(copies)]


@pytest.mark.parametrize("seed", range(25))
def test_in_any_weather_every_request_ends_once_and_no_write_is_applied_twice(seed: int) -> None:
    """ok: applied once; Unavailable and Busy: not applied; unknown: once or not at all."""
    rng = random.Random(seed)
    shell = Shell(seed=seed)
    server = Server(rng)
    mail: list[tuple[int, int, Reply]] = []
    bodies: dict[int, bytes] = {}
    kinds: dict[int, Consistency] = {}
    ended: dict[int, Finished] = {}
    start_ms = shell.now_ms
    while shell.now_ms < start_ms + 20_000:
        if shell.now_ms < start_ms + 10_000:
            for _ in range(rng.randrange(4)):
                kind = rng.choice([WRITE, WRITE, READ])
                body = b"%d" % len(bodies)
                timeout_ms = rng.choice([50, 500, 3000])
                request_id = shell.submit(kind, body=body, timeout_ms=timeout_ms)
                bodies[request_id], kinds[request_id] = body, kind
        for key, request in shell.turn():
            if rng.random() < 0.05:
                shell.core.on_send_failed(key, [request.request_id], shell.now_ms)
            else:
                mail += [
                    (shell.now_ms + delay_ms, key, reply)
                    for delay_ms, reply in server.take(request, key)
                ]
        if rng.random() < 0.02:
            shell.core.on_disconnected(rng.randrange(1, 4), shell.now_ms)
        shell.now_ms += rng.randrange(20)
        for item in [item for item in mail if item[0] <= shell.now_ms]:
            mail.remove(item)
            shell.core.on_replies(item[1], CLUSTER, [item[2]], shell.now_ms)
        for finished in shell.results():
            assert finished.request_id not in ended
            ended[finished.request_id] = finished
    assert ended.keys() == bodies.keys()
    assert shell.core.outstanding == 0
    outcomes = set()
    for request_id, finished in ended.items():
        times = server.applied.count(bodies[request_id])
        outcome = finished.outcome
        outcomes.add(type(outcome))
        if kinds[request_id] == READ:
            assert isinstance(outcome, Reply | Unavailable | Busy)
        elif isinstance(outcome, Reply):
            assert times == 1
        elif isinstance(outcome, OutcomeUnknown):
            assert times <= 1
        else:
            assert isinstance(outcome, Unavailable | Busy)
            assert times == 0
    assert {Reply, OutcomeUnknown, Unavailable} <= outcomes
