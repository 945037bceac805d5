"""`zraft snapshot`: take one, see which there are, look into one.

`list` and `show` read files and ask nobody: they work on running, stopped and lost nodes alike, and
check what they show. A snapshot has its name only when it is whole, so one that is damaged is a
fault of the disk; it is listed as damaged, and the exit code is 65.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from zraft import clock
from zraft.cli.entries import Names, configuration_document, describe_configuration
from zraft.cli.errors import EXIT_OK
from zraft.cli.options import Run, command, noun
from zraft.cli.output import join_and, printable
from zraft.cli.targets import resolve, views
from zraft.errors import (
    EXIT_DATA,
    CorruptLogError,
    NotFound,
    StorageError,
    Unavailable,
    ZraftError,
)

if TYPE_CHECKING:
    from zraft.api import Accepted
    from zraft.client.control import Cluster
    from zraft.core.model import SnapshotMeta

TAKE_TIMEOUT_MS = 60_000
LOOK_MS = 20

app = noun(
    "snapshot",
    "The state as of one index, in a file of each node: the log before it is not needed any more.",
    ["zraft snapshot take leader", "zraft snapshot list", "zraft snapshot show n1"],
)


class Found(NamedTuple):
    """A file with a snapshot's name. `meta` is None when it is damaged; `error` says how."""

    node: str
    path: Path
    meta: SnapshotMeta | None
    error: CorruptLogError | None


# -------------------------------------------------------------------------------------------- take


@command(app, "snapshot take", examples=["zraft snapshot take leader", "zraft snapshot take all"])
def take(
    run: Run,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="n2 · leader · all …")] = "leader",
) -> int:
    """Have nodes take a snapshot now, and wait until its file is whole."""
    from zraft.client.control import Cluster

    begun_ms = clock.now_ms()
    cluster = Cluster.open(run.cluster, run.environ)
    names = _resolve(cluster, target)
    timeout_ms = run.timeout_ms(TAKE_TIMEOUT_MS)
    with run.out.working(f"taking a snapshot on {join_and(names)}"):
        accepted = {name: _begin(cluster, name) for name in names}
        found = [
            _wait(cluster, name, accepted[name].index, begun_ms + timeout_ms) for name in names
        ]
    document = {
        "schema": "zraft.snapshot.take/1",
        "ok": True,
        "target": target,
        "resolved": names,
        "snapshots": [found_document(one) for one in found],
        "elapsed_ms": clock.now_ms() - begun_ms,
    }

    def human() -> None:
        for one in found:
            meta = one.meta
            assert meta is not None
            place = f"{one.node}/snap/{one.path.name}"
            run.out.line(f"{place}  {meta.size_bytes} bytes, the state after index {meta.index}")

    run.out.result(document, human)
    return EXIT_OK


def _resolve(cluster: Cluster, target: str) -> list[str]:
    names = resolve([target], views(cluster.statuses(), cluster.table()), random.Random(0))
    if not names:
        raise Unavailable(f"{target} means no node now", try_="zraft cluster status")
    return names


def _begin(cluster: Cluster, name: str) -> Accepted:
    from zraft.api import Accepted, TakeSnapshot

    reply = cluster.ask(name, TakeSnapshot())
    assert isinstance(reply, Accepted), reply
    return reply


def _wait(cluster: Cluster, name: str, index: int, until_ms: int) -> Found:
    """Return the node's snapshot that covers the index, once it is there.

    Raises:
        ZraftError: the node says that there will be none, and why.
        NotRunning: the node ended meanwhile.
        Unavailable: it takes too long.
    """
    import select

    from zraft.api import GetStatus, NodeStatus

    pause = select.poll()
    while True:
        for one in find_snapshots(cluster.directory / name):
            if one.meta is not None and one.meta.index >= index:
                return one
        status = cluster.ask(name, GetStatus())
        assert isinstance(status, NodeStatus), status
        if status.snapshot_failure and not status.snapshot_taking:
            raise ZraftError(
                f"{name} has no snapshot at index {index}",
                why=status.snapshot_failure,
                try_=f"zraft logs tail {name} -e 'snapshot.*'",
            )
        if clock.now_ms() >= until_ms:
            raise Unavailable(
                f"{name} has not finished its snapshot at index {index}",
                why="it is written in slices, so that the node keeps serving",
                try_=("zraft snapshot list", f"zraft logs tail {name} -e 'snapshot.*'"),
            )
        pause.poll(LOOK_MS)


# ------------------------------------------------------------------------------------ list and show


@command(app, "snapshot list", examples=["zraft snapshot list", "zraft snapshot list n1"])
def list_(
    run: Run,
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME...]", help="Only these nodes.")
    ] = None,
) -> int:
    """List the snapshots on the nodes' disks. Exit 65 when one is damaged."""
    names = _known(run, nodes)
    found = [one for name in names for one in find_snapshots(run.directory / name)]
    ok = all(one.error is None for one in found)
    document = {
        "schema": "zraft.snapshot.list/1",
        "ok": ok,
        "cluster": run.cluster,
        "snapshots": [found_document(one) for one in found],
    }

    def human() -> None:
        if not found:
            run.out.message("there is no snapshot yet: zraft snapshot take leader")
            return
        rows = []
        for one in found:
            if one.meta is None:
                rows.append([one.node, "–", "–", "–", "–", _damage_text(one)])
            else:
                meta = one.meta
                cells = [meta.index, meta.term, meta.size_bytes, f"{meta.digest:016x}"]
                rows.append([one.node, *map(str, cells), one.path.name])
        run.out.table(("NODE", "INDEX", "TERM", "BYTES", "DIGEST", "FILE"), rows)

    run.out.result(document, human)
    return EXIT_OK if ok else EXIT_DATA


def _known(run: Run, nodes: Sequence[str] | None) -> list[str]:
    file = run.cluster_file()
    for name in nodes or ():
        file.member_id(name)  # refuses an unknown one
    return list(nodes or file.names)


def find_snapshots(directory: Path) -> list[Found]:
    """Return what has a snapshot's name in a member's directory, oldest first.

    Damage is looked for where it is cheap, in the first and the last record.

    Raises:
        ForeignDataError: one has a newer format.
        StorageError: the disk refused.
    """
    from zraft.storage.directory import SNAPSHOT_DIRECTORY
    from zraft.storage.snapshot_file import parse_snapshot_name
    from zraft.storage.snapshot_reading import read_snapshot_meta

    paths = (directory / SNAPSHOT_DIRECTORY).glob("*.snap")
    found = []
    for path in sorted(path for path in paths if parse_snapshot_name(path.name)):
        try:
            found.append(Found(directory.name, path, read_snapshot_meta(path), None))
        except CorruptLogError as error:
            found.append(Found(directory.name, path, None, error))
        except StorageError:
            if path.exists():
                raise  # otherwise a newer one took its place meanwhile
    return found


def newest_snapshot(directory: Path) -> SnapshotMeta | None:
    """Return what the newest sound snapshot in a member's directory says of itself.

    Raises:
        ForeignDataError, StorageError: as `find_snapshots`.
    """
    metas = [one.meta for one in find_snapshots(directory) if one.meta is not None]
    return max(metas, key=lambda meta: meta.last_id, default=None)


def found_document(one: Found) -> dict[str, Any]:
    """Return what a file says of itself, for programs."""
    meta, error = one.meta, one.error
    return {
        "node": one.node,
        "path": str(one.path),
        "index": None if meta is None else meta.index,
        "term": None if meta is None else meta.term,
        "size_bytes": None if meta is None else meta.size_bytes,
        "log_time_ms": None if meta is None else meta.log_time_ms,
        "digest": None if meta is None else f"{meta.digest:016x}",
        "crc": None if meta is None else f"{meta.crc:08x}",
        "damage": None if error is None else {"offset": error.offset, "why": _damage_text(one)},
    }


def _damage_text(one: Found) -> str:
    error = one.error
    return "" if error is None else printable(f"damaged: {error.what} ({error.why})")


@command(app, "snapshot show", examples=["zraft snapshot show n1", "zraft snapshot show n1 --json"])
def show(
    run: Run,
    node: Annotated[str, typer.Argument(metavar="NAME", help="Whose newest snapshot.")],
    index: Annotated[
        int | None, typer.Option("--index", metavar="N", help="The one that ends at this index.")
    ] = None,
) -> int:
    """Read all of a snapshot, check every byte, and tell what is in it. Exit 65 when damaged."""
    return show_snapshot(run, node, index)


def show_snapshot(run: Run, node: str, index: int | None = None) -> int:
    """Run `snapshot show`, which is also the part `snapshot` of `node inspect`."""
    from zraft.storage.directory import open_member
    from zraft.storage.snapshot_reading import read_chunks

    _known(run, [node])
    member = open_member(run.directory / node)
    one = _chosen(run, node, index)
    if one.error is not None:
        raise one.error
    assert one.meta is not None
    names: Names = {member_id: name for name, member_id in member.members}
    chunks: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for section, chunk in read_chunks(one.path, one.meta):
        chunks[section] += 1
        sizes[section] += len(chunk)
    document = {
        "schema": "zraft.snapshot.show/1",
        "ok": True,
        "cluster": run.cluster,
        **found_document(one),
        "configuration": configuration_document(one.meta.configuration, names),
        "sections": [
            {"name": name, "chunks": count, "size_bytes": sizes[name]}
            for name, count in chunks.items()
        ],
    }
    run.out.result(document, lambda: _print_snapshot(run, one, document, names))
    return EXIT_OK


def _chosen(run: Run, node: str, index: int | None) -> Found:
    found = find_snapshots(run.directory / node)
    if index is not None:
        found = [one for one in found if one.path.name.startswith(f"{index:020d}-")]
    if not found:
        which = "no snapshot" if index is None else f"no snapshot that ends at index {index}"
        try_ = f"zraft snapshot take {node}" if index is None else f"zraft snapshot list {node}"
        raise NotFound(f"{node} has {which}", try_=try_)
    return found[-1]


def _print_snapshot(run: Run, one: Found, document: Mapping[str, Any], names: Names) -> None:
    meta = one.meta
    assert meta is not None
    rows = [
        ("file", str(one.path)),
        ("covers", f"all entries to index {meta.index} (term {meta.term})"),
        ("log time", f"{meta.log_time_ms} ms"),
        ("digest", f"{meta.digest:016x} of sessions and machine"),
        ("membership", describe_configuration(meta.configuration, names)),
        ("size", f"{meta.size_bytes} bytes, checksum {meta.crc:08x}: every byte was checked"),
    ]
    for part in document["sections"]:
        rows.append((f"· {part['name']}", f"{part['size_bytes']} bytes in {part['chunks']} chunks"))
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        run.out.line(f"{label.ljust(width)}  {printable(text)}")
