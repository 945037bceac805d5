"""`zraft doctor DIR… --new-cluster NAME`: what is left of a lost cluster becomes another one.

The state after the last entry of the best log is saved as a backup, beside the clusters, and the
new cluster begins with it: new ids, so that no member of the old one, should it come back, is ever
taken for a member of the new one. The old directories are read and left as they are.

It is refused when there is nothing to recover (the survivors can elect a leader themselves), while
a survivor still runs, and, without `--accept-loss`, when the missing members may hold acknowledged
writes that no survivor has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zraft.cli.backup import new_cluster, note_of, print_restored
from zraft.cli.errors import EXIT_OK
from zraft.cli.options import Run
from zraft.cli.output import join_and
from zraft.client.backups import save_backup
from zraft.config import BUILT_IN_MACHINE
from zraft.errors import Conflict, ControlError, LockedError, NotRunning
from zraft.paths import check_cluster_name, cluster_dir, read_cluster_file, state_root
from zraft.storage.backups import Note
from zraft.storage.directory import LOCK_FILE, lock_holder
from zraft.storage.survivors import Finding, Survivor, compare

if TYPE_CHECKING:
    from zraft.storage.directory import Member


def recover_cluster(
    run: Run, survivors: Sequence[Survivor], name: str, *, nodes: int | None, accept_loss: bool
) -> int:
    """Make the new cluster `name` from the best of the survivors' logs, and start it.

    Raises:
        ControlError: no directories were named, or the new cluster exists (exit 2).
        Conflict: there is a quorum, or acknowledged writes may be lost (exit 5).
        LockedError: a survivor runs (exit 75).
        StorageError: the best log is damaged, or the disk refused.
    """
    if not survivors:
        raise ControlError("--new-cluster needs the directories of what is left", try_=_EXAMPLE)
    finding = compare(survivors)
    check_recoverable(finding, accept_loss=accept_loss)
    run.cluster = check_cluster_name(name)
    if cluster_dir(name, run.environ).exists():
        raise ControlError(
            f'cluster "{name}" exists',
            why="what is recovered becomes a new cluster, and none is ever replaced",
            try_="another name",
        )
    best = finding.best
    path = state_root(run.environ) / f"{name}.zbak"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with run.out.working("saving the best log"):
        index = best.last_id.index
        backup = save_backup(
            best.member.directory, path, _note(best.member), index=index, writing=False
        )
    result = new_cluster(run, backup, nodes)
    print_restored(run, backup, result)
    run.out.hint(f"the state it began with is in {path}; the old directories were not changed")
    return EXIT_OK


_EXAMPLE = "zraft doctor /old/n1 /old/n2 --new-cluster rescued -n 3"


def check_recoverable(finding: Finding, *, accept_loss: bool) -> None:
    """Refuse what needs no recovery, what still runs, and what may lose writes unasked."""
    best = finding.best
    for one in finding.survivors:
        holder = lock_holder(one.member.directory / LOCK_FILE)
        if holder is not None:
            raise LockedError(
                f"{one.member.directory} is in use",
                why=f"process {holder} runs on it: its log may still grow",
                try_=f"zraft cluster down -C {best.member.cluster}",
            )
    if finding.has_quorum:
        raise Conflict(
            "nothing has to be recovered",
            why="a majority of the voters is here: they elect a leader, and nothing is lost",
            try_=f"zraft cluster up -C {best.member.cluster}",
        )
    if finding.may_be_lost and not accept_loss:
        here = join_and([one.member.name for one in finding.survivors])
        raise Conflict(
            f"acknowledged writes after index {best.last_id.index} may be lost",
            why=f"only {here} is left, and the missing members alone may have committed more",
            try_=("find the missing directories", "the same with --accept-loss"),
        )


def _note(member: Member) -> Note:
    """Return which state machine the lost cluster ran; without its cluster file, the built-in."""
    directory: Path = member.directory.parent
    try:
        return note_of(read_cluster_file(directory))
    except NotRunning:
        return Note(member.cluster, BUILT_IN_MACHINE, "")
