"""How `zraft kv` reaches a cluster: its client, the names of writes, what to say of failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zraft.cli.fault_words import one_line
from zraft.cli.options import Run
from zraft.cli.output import plural
from zraft.errors import ControlError, NotRunning, OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from zraft.client.kv import KvClient
    from zraft.client.sync import Client
    from zraft.paths import ClusterFile

DEFAULT_TIMEOUT_MS = 5_000


@contextmanager
def writing(run: Run, at: str | None, request_id: str | None, repeat: str) -> Iterator[Writing]:
    """Give what a write is sent with: a session of its own, or the name that it had before.

    Args:
        repeat: the command line that sends the same write again, told when its outcome is unknown.
    """
    with connected(run, at) as (client, target):
        try:
            if request_id is not None:
                yield Writing(client.repeat(request_id).kv, client, target)
            else:
                with client.session() as session:
                    yield Writing(session.kv, client, target)
        except OutcomeUnknown as error:
            again = f"{repeat} --request-id {error.request_id}{run.suffix}"
            error.try_ = (f"{again}     (safe: it is applied at most once)", *error.try_)
            raise


class Writing(NamedTuple):
    """What a write is sent with."""

    kv: KvClient
    client: Client
    target: str | None


@contextmanager
def connected(run: Run, at: str | None) -> Iterator[tuple[Client, str | None]]:
    """Give a client, and the name that `--at` means; failures say what the cluster looks like."""
    file = run.cluster_file()
    check_runs(run, file)
    from zraft.client.sync import Client

    target = None if at is None else _resolve_at(run, at, file)
    timeout_s = run.timeout_ms(DEFAULT_TIMEOUT_MS) / 1000
    with Client(run.cluster, timeout_s=timeout_s, environ=run.environ) as client:
        try:
            yield client, target
        except (Unavailable, OutcomeUnknown) as error:
            explain(run, error)
            raise


def check_runs(run: Run, file: ClusterFile) -> None:
    """Refuse at once when no node can be running: NotRunning (exit 3)."""
    sockets = Path(file.socket_dir)
    if not any((sockets / f"{name}.ctl").exists() for name in file.names):
        raise _stopped(run)


def _stopped(run: Run) -> NotRunning:
    return NotRunning(
        f'cluster "{run.cluster}" is stopped; nothing was sent',
        why="no process of it runs; its data is kept",
        try_=f"zraft cluster up{run.suffix}",
    )


def _resolve_at(run: Run, at: str, file: ClusterFile) -> str:
    """Return the one node that `--at` names, by name or by role."""
    if at in file.names:
        return at
    from zraft.cli.targets import resolve, views
    from zraft.client.control import Cluster

    cluster = Cluster.open(run.cluster, run.environ)
    found = resolve([at], views(cluster.statuses(), cluster.table()), random.Random())
    if len(found) != 1:
        raise ControlError(f'--at: "{at}" means {plural(len(found), "node")}, not one')
    run.out.message(f"{at} is {found[0]}")
    return found[0]


def explain(run: Run, error: Unavailable | OutcomeUnknown) -> None:
    """Add to a failure what the nodes say right now; a stopped cluster becomes NotRunning."""
    from zraft.cli.cluster import observe
    from zraft.client.control import Cluster

    document = observe(Cluster.open(run.cluster, run.environ), timeout_ms=300)
    if document["status"] == "stopped" and isinstance(error, Unavailable):
        raise _stopped(run) from None
    quorum = document["quorum"]
    facts = [error.why] if error.why else []
    if not quorum["ok"]:
        facts.append(
            f"{quorum['have']} of {len(document['nodes'])} nodes answer, a quorum is "
            f"{quorum['need']}"
        )
    elif document["leader"] is None:
        facts.append("no leader has a majority now")
    if document["faults"]:
        told = ", ".join(one_line(fault) for fault in document["faults"])
        facts.append(f"active faults: {told}")
        error.try_ = (*error.try_, f"zraft fault heal --all{run.suffix}")
    error.why = "; ".join(facts)
