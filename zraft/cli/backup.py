"""`zraft backup`: a cluster's state as of one index in one file, and a new cluster from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zraft import clock
from zraft.cli.errors import EXIT_OK
from zraft.cli.options import Run, command, noun
from zraft.cli.output import Output, plural, printable
from zraft.errors import ControlError

if TYPE_CHECKING:
    from zraft.client.control import UpResult
    from zraft.paths import ClusterFile
    from zraft.storage.backups import Backup, Note

UP_TIMEOUT_MS = 30_000

app = noun(
    "backup",
    "A cluster's state as of one index in a file; a new cluster of any size begins with it.",
    [
        "zraft backup save monday.zbak",
        "zraft backup verify monday.zbak",
        "zraft backup restore monday.zbak -C again -n 3 --yes",
    ],
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]


@command(app, "backup save", examples=["zraft backup save monday.zbak"])
def save(run: Run, path: File) -> int:
    """Save the state of a running cluster: all that was acknowledged before this began."""
    from zraft.client.backups import save_backup
    from zraft.client.sync import Client

    begun_ms = clock.now_ms()
    cluster = run.cluster_file()
    path = path.absolute()
    with run.out.working("saving"):
        timeout_s = run.timeout_ms(UP_TIMEOUT_MS) / 1000
        with Client(run.cluster, environ=run.environ, timeout_s=timeout_s) as client:
            where = client.barrier()
        directory = run.directory / where.node
        backup = save_backup(directory, path, note_of(cluster), index=where.index, writing=True)
    document = {
        "schema": "zraft.backup.save/1",
        "ok": True,
        **backup_document(backup),
        "node": where.node,
        "elapsed_ms": clock.now_ms() - begun_ms,
    }

    def human() -> None:
        meta = backup.meta
        run.out.line(
            f"saved {backup.path} from {where.node}'s disk: consistent at index {meta.index}"
            f" (term {meta.term}), {meta.size_bytes} bytes, {document['elapsed_ms']}ms"
        )
        run.out.hint(f"check it: zraft backup verify {path.name}")

    run.out.result(document, human)
    return EXIT_OK


def note_of(cluster: ClusterFile) -> Note:
    """Return what a backup of this cluster says of it."""
    from zraft.config import BUILT_IN_MACHINE
    from zraft.storage.backups import Note

    machine = cluster.settings.get("machine", {})
    name, directory = machine.get("name", BUILT_IN_MACHINE), machine.get("directory", "")
    return Note(cluster.name, str(name), str(directory))


@command(app, "backup verify", examples=["zraft backup verify monday.zbak"])
def verify(run: Run, path: File) -> int:
    """Check every byte of a backup, load it, and compare its digest. Exit 65 when damaged."""
    from zraft.client.backups import verify_backup

    with run.out.working("reading"):
        backup = verify_backup(path.absolute())
    document = {"schema": "zraft.backup.verify/1", "ok": True, **backup_document(backup)}
    run.out.result(document, lambda: _print_backup(document, run.out))
    return EXIT_OK


def backup_document(backup: Backup) -> dict[str, Any]:
    """Return what a backup says of itself, for programs."""
    meta, note = backup.meta, backup.note
    return {
        "path": str(backup.path),
        "cluster": note.cluster,
        "cluster_id": f"{backup.cluster_id:016x}",
        "state_machine": note.machine,
        "index": meta.index,
        "term": meta.term,
        "log_time_ms": meta.log_time_ms,
        "digest": f"{meta.digest:016x}",
        "size_bytes": meta.size_bytes,
        "crc": f"{meta.crc:08x}",
        "voters": len(meta.configuration.voters),
    }


def _print_backup(document: Mapping[str, Any], out: Output) -> None:
    size = f"{document['size_bytes']} bytes, checksum {document['crc']}: every byte was checked"
    rows = [
        ("backup", document["path"]),
        ("of", f"cluster {document['cluster']} ({document['cluster_id']})"),
        ("state", f"after index {document['index']} (term {document['term']})"),
        ("machine", document["state_machine"]),
        ("digest", f"{document['digest']}: it was loaded, and has this digest"),
        ("size", size),
    ]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        out.line(f"{label.ljust(width)}  {printable(str(text))}")


@command(
    app,
    "backup restore",
    examples=["zraft backup restore monday.zbak -C again -n 3 --yes"],
)
def restore(
    run: Run,
    path: File,
    nodes: Annotated[
        int | None, typer.Option("--nodes", "-n", metavar="N", help="How many nodes (5).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> int:
    """Make a new cluster, with an id of its own, whose state is the backup's; start it."""
    from zraft.client.backups import verify_backup

    path = path.absolute()
    with run.out.working("reading"):
        backup = verify_backup(path)
    confirm(run, f'make cluster "{run.cluster}" from {path}', yes=yes)
    result = new_cluster(run, backup, nodes)
    print_restored(run, backup, result)
    return EXIT_OK


def confirm(run: Run, what: str, *, yes: bool) -> None:
    """Ask, unless --yes was given; ControlError when nobody can be asked or the answer is no."""
    if yes:
        return
    if run.no_input:
        raise ControlError(
            f"this would {what}", why="nobody can be asked here", try_="the same with --yes"
        )
    run.out.stderr.write(f"{what[:1].upper()}{what[1:]}? [y/N] ")
    run.out.stderr.flush()
    if typer.get_text_stream("stdin").readline().strip().lower() not in {"y", "yes"}:
        raise ControlError("nothing was made", why="the answer was no")


def new_cluster(run: Run, backup: Backup, nodes: int | None) -> UpResult:
    """Bring up the cluster that `-C` names, which must be new, with the state of a backup."""
    from zraft.cli.config import cluster_settings
    from zraft.client.control import Cluster, UpSpec
    from zraft.config import Config, to_jsonable

    note = backup.note
    settings = cluster_settings(run, None, None, None) or to_jsonable(Config())
    settings["machine"] = {"name": note.machine, "directory": note.directory}
    spec = UpSpec(
        name=run.cluster,
        nodes=nodes,
        settings=settings,
        restore=os.fspath(backup.path),
        timeout_ms=run.timeout_ms(UP_TIMEOUT_MS),
    )
    with run.out.working("starting"):
        return Cluster.up(spec, run.environ, None)


def print_restored(run: Run, backup: Backup, result: UpResult) -> None:
    """Tell which cluster was made from what."""
    meta, cluster = backup.meta, run.cluster_file()
    document = {
        "schema": "zraft.backup.restore/1",
        "ok": True,
        "backup": backup_document(backup),
        "cluster": result.name,
        "cluster_id": cluster.cluster_id,
        "dir": result.directory,
        "nodes": [{"name": name, "pid": pid} for name, pid in result.pids.items()],
        "leader": result.leader,
        "term": result.term,
        "elapsed_ms": result.elapsed_ms,
    }

    def human() -> None:
        count = plural(len(result.pids), "node")
        run.out.line(
            f'Restored index {meta.index} of "{backup.note.cluster}" into the new cluster'
            f' "{result.name}" ({count}, id {cluster.cluster_id}); leader {result.leader}'
            f" in term {result.term}"
        )
        run.out.line(f"Data   {result.directory}      Next   zraft cluster status{run.suffix}")

    run.out.result(document, human)
