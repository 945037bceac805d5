"""One node process from start to end: what is made, in which order, and why.

     1  cluster file, configuration       78 when they are wrong: nothing was touched
     2  whose directory, its lock         65 foreign or wiped, 75 in use: still nothing was touched
     3  incarnation + 1, on disk          peers tell this life's frames from the last one's
     4  telemetry                         only the lock's holder writes into the directory
     5  the log and the newest snapshot   65 corrupt or a hole between them, 74 unreadable
     6  garbage frozen                    nothing of what was read back is ever visited again
     7  sockets                           after the lock: binding an ipc path takes it from whoever
                                          has it; after the log: who accepts connections is alive
     8  node.json, readiness line         the parent may count on it

It ends in the opposite order. Leadership is given up before any socket is closed (`Loop.run` does
both), because peers take a process whose peer socket refuses them for dead.
"""

from __future__ import annotations

import contextlib
import os
import random
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import zmq

from zraft import clock
from zraft._version import __version__
from zraft.api import CONTROL_VERSION, WhoamiReply
from zraft.config import to_toml
from zraft.core.model import NOBODY, MemberId, Role
from zraft.core.raft import Raft
from zraft.errors import EXIT_SOFTWARE, ZraftError
from zraft.machine.kv import KV
from zraft.node import notes
from zraft.node.changing import MemberVerbs
from zraft.node.clients import ClientSockets
from zraft.node.collector import Collector
from zraft.node.control import Control
from zraft.node.faults import LinkFaults
from zraft.node.loop import Loop, LoopParts
from zraft.node.members import MemberBook
from zraft.node.plan import Plan, raft_settings, server_limits
from zraft.node.rejects import Rejects
from zraft.node.server import Server
from zraft.node.signals import Signals
from zraft.node.status import StatusSources, node_status
from zraft.node.tracing import PeerTrace
from zraft.storage.directory import Member, lock, next_incarnation, open_member
from zraft.storage.files import OsFiles
from zraft.storage.recovery import recover
from zraft.storage.snapshots import SnapshotStore
from zraft.storage.wal import Wal
from zraft.telemetry import Telemetry
from zraft.transport.bulk import BulkSockets
from zraft.transport.links import Links
from zraft.transport.peers import PeerSockets
from zraft.wire_entry import EntryCodec

LINGER_MS = 100  # the last replies may take so long to leave


class Housekeeping:
    """What the loop does when nothing else is to be done."""

    def __init__(
        self,
        storage: Wal,
        collector: Collector,
        rejects: Rejects,
        faults: LinkFaults,
        book: MemberBook,
    ) -> None:
        self.prepare = storage.prepare
        self.maybe_collect = collector.maybe_collect
        self._collector = collector
        self._rejects = rejects
        self._faults = faults
        self._book = book

    def report(self, now_ms: int) -> None:
        """Let lanes follow the log; collect; report what was dropped; arm a crash point."""
        self._collector.on_turn(now_ms)
        self._book.on_turn(now_ms)
        self._rejects.report(now_ms)
        self._faults.on_turn(now_ms)


class _ReadingFiles(OsFiles):
    """The real file system; tells the parent of each file that recovery reads."""

    def __init__(self, ready_pipe: notes.ReadyPipe) -> None:
        self._ready_pipe = ready_pipe
        self._count = 0

    def read(self, path: Path) -> bytes:
        self._count += 1
        self._ready_pipe.progress(f"reading {path.name}, file {self._count}")
        return path.read_bytes()


class Kept(NamedTuple):
    """What a node has on its disk, and the core that knows it."""

    storage: Wal
    store: SnapshotStore
    raft: Raft


class NodeProcess:
    """A node that holds its directory. `run` serves until it is asked to stop.

    Everything that has to be closed is on `_stack`, in the order in which it was made.
    """

    def __init__(self, plan: Plan, directory: Path, ready_pipe: notes.ReadyPipe) -> None:
        """Do steps 2 to 4; nothing of the directory was touched if this raises.

        Raises:
            ForeignDataError: another member's directory, or a wiped one (exit 65).
            LockedError: another process uses it (exit 75).
            StorageError: the disk refused (exit 74).
        """
        self.plan = plan
        self.directory = directory
        self._endpoints = plan.endpoints()
        self._ready_pipe = ready_pipe
        self._stack = contextlib.ExitStack()
        self._book = MemberBook(directory.parent, plan.cluster, plan.names, plan.me)
        self._member: Member = open_member(directory, expect=plan.identity)
        self._stack.callback(os.close, lock(directory))
        self.incarnation = next_incarnation(directory)
        logging = plan.config.logging
        self.telemetry = Telemetry(
            directory,
            node=plan.name,
            cluster=plan.cluster.name,
            incarnation=self.incarnation,
            trace=logging.trace,
            trace_events_per_s=logging.trace_events_per_s,
            rotate_bytes=logging.rotate_bytes,
            rotate_files=logging.rotate_files,
        )
        self.telemetry.label = plan.name_of
        self._stack.callback(self.telemetry.close)

    def run(self) -> None:
        """Recover, serve, and stop in order when asked to. Exit code 0.

        Raises:
            ZraftError: what stopped it, with the exit code. Anything else is a defect.
        """
        signals = Signals()
        self._stack.callback(signals.close)
        collector = Collector(self.telemetry.emit)
        self._stack.callback(collector.close)
        kept = self._recover()
        collector.freeze()
        loop = self._assemble(kept, signals, collector)
        self._announce()
        reason = loop.run()
        self.telemetry.emit("node.stopped", reason=reason, exit_code=0)
        notes.write_exit_file(self.directory, code=0, reason=reason)
        self.close()

    def fail(self, error: Exception) -> None:
        """Write down why this process ends, as far as the disk still takes it, and close.

        A broken invariant is an AssertionError like any other defect: exit code 70.
        """
        if isinstance(error, ZraftError):
            what, why, reason, code = error.what, error.why, error.code, error.exit_code
        else:
            what, why = str(error), traceback.format_exc(limit=-8)
            reason, code = type(error).__name__, EXIT_SOFTWARE
        self.telemetry.emit("node.failed", exit_code=code, error=what or reason, why=why)
        notes.write_exit_file(self.directory, code=code, reason=reason, error=what, why=why)
        self.close()

    def close(self) -> None:
        """Close everything, in the opposite order of making; the directory's lock last."""
        self._stack.close()

    # 5: the log and the newest snapshot

    def _recover(self) -> Kept:
        config, member = self.plan.config, self._member
        files = _ReadingFiles(self._ready_pipe)
        storage = Wal(
            member.wal_directory,
            member.identity,
            segment_bytes=config.storage.segment_bytes,
            files=files,
            report=self.telemetry.emit,
        )
        self._stack.callback(storage.close)
        store = SnapshotStore(
            member.snapshot_directory, member.identity, files=files, report=self.telemetry.emit
        )
        self._stack.callback(store.close)
        recovered = recover(storage, store)
        entries = recovered.entries
        self.telemetry.emit(
            "node.started",
            version=__version__,
            config_digest=f"{crc32(to_toml(config).encode()):08x}",
            restored_term=recovered.hard_state.term,
            last_index=entries.last_index,
            snapshot_index=0 if recovered.snapshot is None else recovered.snapshot.index,
        )
        raft = Raft(
            self.plan.me,
            recovered,
            settings=raft_settings(config),
            codec=EntryCodec(),
            random=random.Random(),
            now_ms=clock.now_ms(),
        )
        return Kept(storage, store, raft)

    # 7: sockets, and everything between them

    def _assemble(self, kept: Kept, signals: Signals, collector: Collector) -> Loop:
        plan, config, telemetry = self.plan, self.plan.config, self.telemetry
        raft = kept.raft
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._stack.callback(context.destroy, linger=0)
        self._stack.callback(self._unlink_sockets)
        poller, rejects = zmq.Poller(), Rejects(telemetry.emit)
        links = Links(random.Random())
        clients = self._make_clients(context, poller, links, rejects)
        peers, bulk = self._make_peers(context, links), self._make_bulk(context, links)
        self._book.attach(raft, peers, bulk)
        peers.strangers = self._book
        machine = plan.machine
        server = self._make_server(kept, peers, bulk, clients)
        faults = LinkFaults(
            links,
            telemetry.emit,
            me=plan.name,
            names=plan.names,
            allowed=config.testing.faults,
        )
        control = Control(
            whoami=self._whoami(),
            server=server,
            faults=faults,
            member_id=self._member_id,
            rejects=rejects,
        )
        self._stack.callback(control.close, LINGER_MS)
        urgent = zmq.Poller()
        urgent.register(control.bind(context, poller, self._endpoints["ctl"]), zmq.POLLIN)
        urgent.register(clients.bind(self._endpoints["client"]), zmq.POLLIN)
        loop = Loop(
            LoopParts(
                poller=poller,
                urgent=urgent,
                server=server,
                peers=peers,
                bulk=bulk,
                clients=clients,
                control=control,
                signals=signals,
                telemetry=telemetry,
                housekeeping=Housekeeping(kept.storage, collector, rejects, faults, self._book),
                leader_id=lambda: raft.leader_id,
                leads=lambda: raft.role is Role.LEADER,
                contact_ms=lambda: raft.state.leader_contact_ms,
            ),
            heartbeat_ms=config.timing.heartbeat_ms,
            prealloc_bytes=config.storage.prealloc_bytes,
            stall_grace=config.timing.stall_grace,
        )
        sources = StatusSources(
            whoami=self._whoami(),
            server=server,
            revision=lambda: machine.revision if isinstance(machine, KV) else 0,
            peers=peers,
            faults=links.faults,
            rule_of=faults.rule_of,
            storage_stats=kept.storage.stats,
            counters=(clients, rejects, loop, bulk, server.snapshots),
            dropped_lines=lambda: telemetry.dropped_lines,
            name_of=plan.name_of,
            started_ms=clock.now_ms(),
        )
        self._book.on_turn(clock.now_ms())
        control.members = MemberVerbs(server, self._book)
        control.status = lambda now_ms: node_status(sources, now_ms)
        return loop

    def _make_server(
        self, kept: Kept, peers: PeerSockets, bulk: BulkSockets, clients: ClientSockets
    ) -> Server:
        telemetry = self.telemetry
        server = Server(
            raft=kept.raft,
            storage=kept.storage,
            store=kept.store,
            peers=peers,
            bulk=bulk,
            machine=self.plan.machine,
            replies=clients,
            forwards=clients,
            report=telemetry.report,
            on_notice=telemetry.notice,
            clock_ns=clock.now_ns,
            limits=server_limits(self.plan.config),
        )
        self._stack.callback(server.snapshots.sending.close)
        telemetry.context = lambda: self._moment(server)
        return server

    def _make_clients(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        poller: zmq.Poller,
        links: Links,
        rejects: Rejects,
    ) -> ClientSockets:
        clients = ClientSockets(
            context,
            poller,
            cluster=self.plan.cluster.cluster_bytes,
            endpoint_of=lambda member: self._book.endpoint(member, "client"),
            rejects=rejects,
            links=links,
        )
        self._stack.callback(clients.close, LINGER_MS)
        return clients

    def _make_peers(self, context: zmq.Context[zmq.Socket[bytes]], links: Links) -> PeerSockets:
        cluster = self.plan.cluster
        peers = PeerSockets(
            context,
            me=self.plan.me,
            cluster=cluster.cluster_bytes,
            incarnation=self.incarnation,
            bind=self._endpoints["peer"],
            endpoints={
                member: cluster.endpoint(name, "peer") for member, name in self.plan.names.items()
            },
            links=links,
            report=self.telemetry.emit,
            now_ms=clock.now_ms,
            label=self.plan.name_of,
        )
        self._stack.callback(peers.close)
        if self.telemetry.tracing:
            peers.trace = PeerTrace(self.telemetry, self.plan.name_of)
        return peers

    def _make_bulk(self, context: zmq.Context[zmq.Socket[bytes]], links: Links) -> BulkSockets:
        bulk = BulkSockets(
            context,
            me=self.plan.me,
            cluster=self.plan.cluster.cluster_bytes,
            incarnation=self.incarnation,
            bind=self._endpoints["bulk"],
            peers=self.plan.names,
            endpoint_of=lambda member: self._book.endpoint(member, "bulk"),
            links=links,
            report=self.telemetry.emit,
            now_ms=clock.now_ms,
        )
        self._stack.callback(bulk.close)
        if self.telemetry.tracing:
            bulk.trace = PeerTrace(self.telemetry, self.plan.name_of)
        return bulk

    def _member_id(self, name: str) -> MemberId:
        member = self._book.id_of(name)
        return self.plan.cluster.member_id(name) if member is None else member

    def _moment(self, server: Server) -> Mapping[str, object]:
        """Return the fields that every line of telemetry carries."""
        raft = server.raft
        leader = raft.leader_id
        return {
            "role": raft.role.value,
            "term": raft.term,
            "leader": self.plan.name_of(leader) if leader != NOBODY else None,
            "commit": raft.commit_index,
            "applied": server.applied_index,
            "last": raft.last_id.index,
        }

    def _whoami(self) -> WhoamiReply:
        plan = self.plan
        return WhoamiReply(
            version=__version__,
            control_version=CONTROL_VERSION,
            cluster=plan.cluster.name,
            cluster_id=plan.cluster.cluster_id,
            name=plan.name,
            member_id=f"{plan.me:016x}",
            incarnation=self.incarnation,
            pid=os.getpid(),
        )

    def _unlink_sockets(self) -> None:
        for endpoint in self._endpoints.values():
            if endpoint.startswith("ipc://"):
                with contextlib.suppress(OSError):
                    os.unlink(endpoint.removeprefix("ipc://"))

    # 8: who may count on it

    def _announce(self) -> None:
        note = notes.process_note(self.incarnation)
        note["endpoints"] = self._endpoints
        notes.write_node_file(self.directory, note)
        self._ready_pipe.ready(
            {"pid": note["pid"], "incarnation": self.incarnation, "endpoints": self._endpoints}
        )
        self.telemetry.emit("node.ready", elapsed_ms=notes.process_age_ms())
