"""A node for tests of the client: one ROUTER that answers by a plan. Run as a script.

    client_fake_node.py ENDPOINT MEMBER LEADER PLAN

MEMBER and LEADER are member ids in decimal. PLAN is what it does with the requests of each frame,
one word per frame, the last one for ever; words are separated by commas:

    ok            answer them with a real key-value store
    not-leader    answer NOT_LEADER with LEADER as the hint;  unavailable, busy, unknown, too-large:
                  the same with these codes
    garbage       send junk and frames of another cluster, and then answer as `ok`
    silent        read and say nothing
    die           end at once, as by kill -9, without an answer
    last-words    answer as `ok`, and end as by kill -9 once the answers are out

It prints "up" once it is bound, and a line per frame with the number of requests and of writes.
"""

from __future__ import annotations

import os
import signal
import sys

import zmq

from zraft.api import Code, Consistency, Flag, Reply, Request
from zraft.machine.apply import apply_safely, query_safely
from zraft.machine.base import Ctx
from zraft.machine.kv import KV
from zraft.wire import decode_requests, encode_replies

CLUSTER = bytes(range(8))


class FakeNode:
    """The store of one node, and what it says."""

    def __init__(self, endpoint: str, member: int, leader: int) -> None:
        self.member = member
        self.leader = leader
        self.kv = KV()
        self.index = 0
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 1000)
        self.router.bind(endpoint)

    def reply(self, request: Request, code: Code, body: bytes) -> Reply:
        return Reply(request.request_id, code, self.member, 3, self.index, self.leader, body)

    def serve(self, request: Request) -> Reply:
        if request.consistency == Consistency.WRITE:
            self.index += 1
            ctx = Ctx(self.index, 3, 0)
            if request.flags & Flag.BARRIER:
                return self.reply(request, Code.OK, b"")
            ok, body = apply_safely(self.kv, ctx, request.body)
        else:
            ok, body = query_safely(self.kv, Ctx(self.index, 3, 0), request.body)
        return self.reply(request, Code.OK if ok else Code.INVALID, body)

    def run(self, plan: list[str]) -> None:
        while True:
            word = plan.pop(0) if len(plan) > 1 else plan[0]
            client, frame = self.router.recv_multipart()
            cluster, requests = decode_requests(frame)
            assert cluster in {CLUSTER, bytes(8)}
            writes = sum(request.consistency == Consistency.WRITE for request in requests)
            sys.stdout.write(f"{len(requests)} {writes}\n")
            sys.stdout.flush()
            self.follow(word, client, requests)

    def follow(self, word: str, client: bytes, requests: list[Request]) -> None:
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "silent":
            return
        if word == "garbage":
            junk = [b"", b"\xc1", b"\x91" * 400, os.urandom(100), b"\x94\x09\x21\xc4\x00\x90"]
            foreign = [self.reply(request, Code.OK, b"\x91\x7f") for request in requests]
            for frame in (*junk, encode_replies(b"foreign!", foreign)):
                self.router.send_multipart([client, frame])
            stranger = [reply._replace(request_id=reply.request_id ^ 1 << 40) for reply in foreign]
            self.router.send_multipart([client, encode_replies(CLUSTER, stranger)])
        if word in {"ok", "garbage", "last-words"}:
            replies = [self.serve(request) for request in requests]
        else:
            code = Code[word.upper().replace("-", "_")]
            replies = [self.reply(request, code, word.encode()) for request in requests]
        self.router.send_multipart([client, encode_replies(CLUSTER, replies)])
        if word == "last-words":
            self.router.close()  # lingers until the answers are written
            self.context.term()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    node = FakeNode(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write("up\n")
    sys.stdout.flush()
    node.run(sys.argv[4].split(","))
