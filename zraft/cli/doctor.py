"""`zraft doctor`: is this machine fit, what was left behind, and what is left of a lost cluster.

Without arguments it looks at the environment and at every cluster of this user. With directories,
which may be those of members or of whole clusters, it compares the logs in them and says who holds
the most, what may be lost and what can not be known. It changes nothing; only `--new-cluster` makes
something, and that is another cluster (`cli.recovery`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zraft.cli.errors import EXIT_CHECK_FAILED, EXIT_OK
from zraft.cli.options import Run
from zraft.cli.output import Output, join_and, printable
from zraft.errors import ControlError

if TYPE_CHECKING:
    from zraft.client.environment import Check
    from zraft.storage.survivors import Finding, Survivor

MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "error": ("✗", "red")}


def doctor(
    run: Run,
    directories: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DIR...]", help="Data of a cluster that lost its quorum."),
    ] = None,
    new_cluster: Annotated[
        str | None,
        typer.Option("--new-cluster", metavar="NAME", help="Make one from the best log in DIR…"),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option("--nodes", "-n", metavar="N", help="Of the new cluster (5).")
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Although acknowledged writes may be lost.")
    ] = False,
) -> int:
    """Check this machine and what was left behind; with DIR…, what is left of a lost cluster.

    Exit 8 when something is wrong, or when acknowledged writes may be lost.
    """
    if new_cluster is not None:
        from zraft.cli.recovery import recover_cluster

        found = find_survivors([Path(text) for text in directories or ()])
        return recover_cluster(run, found, new_cluster, nodes=nodes, accept_loss=accept_loss)
    if nodes is not None or accept_loss:
        raise ControlError("--nodes and --accept-loss belong to --new-cluster NAME")
    if directories:
        return _examine(run, directories)
    from zraft.client.environment import check_clusters, check_environment

    with run.out.working("measuring the disk"):
        checks = [*check_environment(run.environ), *check_clusters(run.environ)]
    wrong = any(check.verdict == "error" for check in checks)
    document = {
        "schema": "zraft.doctor/1",
        "ok": not wrong,
        "checks": [
            {"name": one.name, "verdict": one.verdict, "says": one.says, "try": one.try_ or None}
            for one in checks
        ],
    }
    run.out.result(document, lambda: _print_checks(checks, run.out))
    return EXIT_CHECK_FAILED if wrong else EXIT_OK


def _print_checks(checks: Sequence[Check], out: Output) -> None:
    for check in checks:
        mark, style = MARKS[check.verdict]
        title = f"{check.name}: " if check.name.startswith("cluster") else ""
        advice = f" → {check.try_}" if check.try_ else ""
        out.line(f"{out.paint(mark, style)} {printable(title + check.says + advice)}")


# --------------------------------------------------------------------------- a cluster that is lost


def _examine(run: Run, given: Sequence[str]) -> int:
    from zraft.storage.survivors import compare

    finding = compare(find_survivors([Path(text) for text in given]))
    document = finding_document(finding)
    run.out.result(document, lambda: _print_finding(finding, run.out))
    return EXIT_OK if document["ok"] else EXIT_CHECK_FAILED


def find_survivors(directories: Sequence[Path]) -> list[Survivor]:
    """Read the members' directories that are meant; a cluster's directory means all in it.

    Raises:
        ControlError: none is there, they are of several clusters, or one is there twice.
        ForeignDataError, StorageError: a directory can not be read at all.
    """
    from zraft.cli.snapshot import newest_snapshot
    from zraft.storage.directory import LOCK_FILE, lock_holder, open_member
    from zraft.storage.inspection import inspect_log
    from zraft.storage.survivors import Survivor

    found: dict[int, Survivor] = {}
    for directory in _member_directories(directories):
        member = open_member(directory)
        writing = lock_holder(directory / LOCK_FILE) is not None
        log = inspect_log(member.wal_directory, writing=writing)
        one = Survivor(member, log, newest_snapshot(directory))
        twin = found.get(member.member_id)
        if twin is not None:
            raise ControlError(
                f"{directory} and {twin.member.directory} are the same member",
                why="one is a copy of the other, and a copy adds nothing to a majority",
                try_="name the newer one only",
            )
        found[member.member_id] = one
    clusters = {one.member.cluster_id: one.member for one in found.values()}
    if len(clusters) > 1:
        names = [f"{member.directory} of {member.cluster}" for member in clusters.values()]
        raise ControlError(
            "these directories are of different clusters",
            why=join_and(names),
            try_="the directories of one cluster",
        )
    return list(found.values())


def _member_directories(directories: Sequence[Path]) -> list[Path]:
    from zraft.storage.directory import MEMBER_FILE

    found: list[Path] = []
    for directory in directories:
        if (directory / MEMBER_FILE).exists():
            found.append(directory)
            continue
        inside = sorted(path.parent for path in directory.glob(f"*/{MEMBER_FILE}"))
        if not inside:
            raise ControlError(
                f"{directory} holds no member's data",
                why=f"there is no {MEMBER_FILE} in it, nor one level below",
                try_="zraft doctor ~/.local/state/zraft/default/n1",
            )
        found += [path for path in inside if not path.name.startswith(".")]
    return found


def finding_document(finding: Finding) -> dict[str, Any]:
    """Return what is known of a lost cluster, for programs."""
    best, names = finding.best, _names(finding)
    return {
        "schema": "zraft.doctor.survivors/1",
        "ok": not finding.may_be_lost,
        "cluster": best.member.cluster,
        "cluster_id": f"{best.member.cluster_id:016x}",
        "best": best.member.name,
        "last_index": best.last_id.index,
        "last_term": best.last_id.term,
        "members": [_survivor_document(one) for one in finding.survivors],
        "voters": [names[member] for member in finding.configuration.voters],
        "missing": sorted(names[member] for member in finding.missing),
        "has_quorum": finding.has_quorum,
        "may_be_lost": finding.may_be_lost,
        "certain_index": finding.certain_index,
        "shared_index": finding.shared_index,
        "contradictions": [
            {"name": name, "from_index": index} for name, index in finding.contradictions
        ],
    }


def _survivor_document(one: Survivor) -> dict[str, Any]:
    log = one.log
    return {
        "name": one.member.name,
        "member_id": f"{one.member.member_id:016x}",
        "directory": str(one.member.directory),
        "term": log.hard_state.term,
        "first_index": log.entries.first_index,
        "last_index": one.last_id.index,
        "last_term": one.last_id.term,
        "snapshot_index": 0 if one.snapshot is None else one.snapshot.index,
        "last_written": _last_written(one).isoformat(),
        "torn": None if log.torn is None else log.torn._asdict(),
        "damage": None if log.damage is None else log.damage._asdict(),
    }


def _names(finding: Finding) -> Mapping[int, str]:
    known = {member_id: name for name, member_id in finding.best.member.members}
    known |= {one.member.member_id: one.member.name for one in finding.survivors}
    known |= {member.member_id: member.name for member in finding.configuration.members}
    everybody = [*finding.configuration.electorate, *finding.missing]
    return {member: known.get(member, f"{member:016x}") for member in everybody} | known


def _last_written(one: Survivor) -> datetime:
    """Return when the log was last written, by the wall clock of the machine that wrote it."""
    times = [path.stat().st_mtime for path in one.member.wal_directory.glob("*.wal")]
    return datetime.fromtimestamp(max(times, default=0), UTC)


def _print_finding(finding: Finding, out: Output) -> None:
    rows = []
    for one in finding.survivors:
        log = one.log
        note = "best" if one is finding.best else ""
        if log.damage is not None:
            note = f"{note} damaged: {log.damage.what}".strip()
        elif log.torn is not None:
            note = f"{note} torn end, never acknowledged".strip()
        last = f"{one.last_id.index} (term {one.last_id.term})"
        cells = [one.member.name, str(log.hard_state.term), last]
        rows.append([*cells, f"{_last_written(one):%Y-%m-%d %H:%M:%S}Z", printable(note)])
    out.table(["NODE", "TERM", "LAST", "WRITTEN", "NOTE"], rows)
    for mark, text in findings_in_words(finding):
        out.line(f"{out.paint(*MARKS[mark])} {printable(text)}")


def findings_in_words(finding: Finding) -> list[tuple[str, str]]:
    """Return what the comparison means, as lines with a verdict each."""
    best, names = finding.best, _names(finding)
    last = best.last_id.index
    voters = [names[member] for member in finding.configuration.voters]
    lines = []
    missing = sorted(names[member] for member in finding.missing)
    gone = f"{len(missing)} of {len(voters)} voters are missing ({join_and(missing)})"
    if finding.has_quorum:
        lines.append(("ok", "a majority of voters is here: start the cluster, nothing is lost"))
    elif finding.may_be_lost:
        text = (
            f"{gone or 'too many logs are damaged'}; they are a majority: writes after index {last}"
            f" that were acknowledged by them alone are lost, and nobody can say how many"
        )
        lines.append(("error", text))
    else:
        text = f"{gone}, too few to have committed anything alone: nothing acknowledged is lost"
        lines.append(("ok", text))
    certain = max(finding.certain_index, finding.shared_index if finding.has_quorum else 0)
    if certain:
        lines.append(("ok", f"committed for certain: everything up to index {certain}"))
    if last > finding.shared_index:
        first = max(finding.shared_index, finding.certain_index) + 1
        if first <= last:
            text = f"indices {first} to {last} may never have been committed; they would count now"
            lines.append(("warn", text))
    for name, index in finding.contradictions:
        text = f"{name} holds other entries from index {index} on: never committed, they go"
        lines.append(("warn", text))
    return lines
