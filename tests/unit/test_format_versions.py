"""Programs of two versions in one cluster, and data of a newer one: the rules of docs/PROTOCOL.md.

The oldest encoding is pinned here as bytes: what is read today must be read for ever. A node that
speaks nothing else is put into a cluster by cutting each frame to and from it down to that form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.first_version import LENGTHS, REQUEST_LENGTH
from tests.data_directories import DiskCluster, make_cluster
from tests.server_bench import CLUSTER, FakePeers, FakePort, ServerBench
from zraft.api import Code, Consistency, Request
from zraft.cli.main import main
from zraft.core.messages import (
    AppendEntries,
    AppendEntriesResponse,
    Message,
    RequestVote,
    RequestVoteResponse,
)
from zraft.core.model import Entries, MemberId, Role
from zraft.machine.kv_codec import encode_get, encode_put
from zraft.node.ports import Limits
from zraft.wire import (
    KIND_HEARD,
    UnknownKind,
    decode_header,
    decode_message,
    decode_requests,
    encode_message,
    encode_requests,
)
from zraft.wire_entry import pack, unpack

ENTRY = bytes.fromhex("970107cd03e8000000c40178")
OLDEST: dict[str, tuple[str, Message]] = {
    "RequestVote": (
        "9f010100c40801010101010101010102030405060" + "7c3080907",
        RequestVote(1, 2, 7, True, 8, 9, 7),
    ),
    "RequestVoteResponse": (
        "9e010200c4080101010101010101010203040506" + "07c207c3",
        RequestVoteResponse(1, 2, 7, False, 7, True),
    ),
    "AppendEntries": (
        "dc0010010300c4080101010101010101010203040506" + "070a06090391c40c" + ENTRY.hex(),
        AppendEntries(1, 2, 7, 10, 6, 9, 3, Entries(11, [7], [ENTRY])),
    ),
    "AppendEntriesResponse": (
        "dc0010010400c4080101010101010101010203040506" + "07c30b000003",
        AppendEntriesResponse(1, 2, 7, True, 11, 0, 0, 3),
    ),
}


@pytest.mark.parametrize("name", OLDEST)
def test_the_oldest_frames_are_read(name: str) -> None:
    """Golden bytes: a field that came later has its default."""
    data, message = OLDEST[name]
    header, fields = decode_header(bytes.fromhex(data))
    assert decode_message(header, fields) == message
    assert len(fields) == LENGTHS[header.kind]


class OldPeers(FakePeers):
    """Frames to and from one node have the first version's form."""

    old: MemberId = 0

    def send(self, messages: Sequence[Message]) -> None:
        """Cut what the old node would not write, and what it would not read."""
        for message in messages:
            frame = encode_message(
                message, lane=0, cluster=CLUSTER, incarnation=1, epoch=1, seq=1, heard=0
            )
            if self.old in (message.src, message.dst):
                fields = unpack(frame)
                if fields[1] > KIND_HEARD:
                    continue  # it does not send it; receiving it, it counts and drops it
                frame = pack(fields[: LENGTHS[fields[1]]])
            self._bench.network.append(decode_message(*decode_header(frame)))


class OldPort(FakePort):
    """Requests that are passed on have the first version's form."""

    def forward(self, leader: MemberId, requests: list[Request]) -> bool:
        """Cut each request."""
        cut = [list(request)[:REQUEST_LENGTH] for request in requests]
        version, kind, cluster, _ = unpack(encode_requests(CLUSTER, requests))
        _, decoded = decode_requests(pack([version, kind, cluster, cut]))
        return super().forward(leader, decoded)


def mixed_bench(monkeypatch: pytest.MonkeyPatch, old: MemberId) -> ServerBench:
    """Return three servers with a leader, one of them of the first version."""
    monkeypatch.setattr("tests.server_bench.FakePeers", OldPeers)
    monkeypatch.setattr("tests.server_bench.FakePort", OldPort)
    monkeypatch.setattr(OldPeers, "old", old)
    bench = ServerBench(3, Limits(digest_interval=8))
    bench.run_for(1_000)
    return bench


@pytest.mark.parametrize("old", [1, 2, 3])
def test_a_cluster_of_two_versions_keeps_working(
    monkeypatch: pytest.MonkeyPatch, old: MemberId
) -> None:
    """Each node leads once, the old one, too; writes, reads, forwarding, and equal states."""
    bench = mixed_bench(monkeypatch, old)
    led: set[MemberId] = set()
    number = 0
    while led != {1, 2, 3}:
        assert number < 1_000, "somebody never leads"
        led.add(bench.leader())
        for node in (bench.leader(), bench.follower()):
            for _ in range(10):
                number += 1
                put = bench.request(node, encode_put(b"k%d" % number, b"v%d" % number))
                bench.run_for(20)
                assert bench.only_answer(put).code == Code.OK
            get = bench.request(
                node, encode_get(b"k%d" % number), consistency=Consistency.LINEARIZABLE
            )
            bench.run_for(20)
            assert b"v%d" % number in bench.only_answer(get).body
        before = bench.leader()
        bench.servers[before].raft.step_down(now_ms=bench.now_ms, reason="operator")
        bench.run_for(1_000)
    bench.run_for(1_000)
    digests = {(s.applied_index, s.replica.digest()) for s in bench.servers.values()}
    assert len(digests) == 1
    assert sum(s.raft.role is Role.LEADER for s in bench.servers.values()) == 1


def test_what_only_newer_nodes_say_is_dropped_and_no_mistake() -> None:
    """An unknown kind has an error of its own, which the transport counts apart."""
    fields = unpack(bytes.fromhex(OLDEST["RequestVote"][0]))
    with pytest.raises(UnknownKind):
        decode_message(*decode_header(pack([fields[0], 200, *fields[2:]])))


# Disks


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskCluster:
    """A cluster that never ran; n1 was started once."""
    made = make_cluster(tmp_path / "state")
    monkeypatch.setenv("ZRAFT_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("ZRAFT_CLUSTER", "t")
    with made.log("n1"):
        return made


@pytest.mark.parametrize("name", ["cluster.toml", "n1/member.json", "n1/boot.json"])
def test_a_newer_file_is_refused_by_name_and_left_alone(
    cluster: DiskCluster, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Exit 65 with the file, its format, what to do; segments, snapshots, backups: their tests."""
    path = cluster.place.directory / name
    text = path.read_text()
    if name.endswith(".json"):
        document: dict[str, Any] = json.loads(text)
        path.write_text(json.dumps({"format": 2, "as it will be": document}))
    else:
        path.write_text(text.replace("format = 1", "format = 2") + '\n[later]\nkey = "word"\n')
    newer = path.read_bytes()
    assert main(["node", "inspect", "n1", "meta"]) == 65
    told = capsys.readouterr().err
    assert "format 2" in told
    assert path.name in told
    assert "newer zraft" in told or "version" in told
    assert path.read_bytes() == newer
