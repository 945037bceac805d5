"""A member's directory: made whole or not at all, checked when opened, used by one process."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.wal_logs import LOSE_ALL
from zraft.core.model import Configuration, Entries, HardState, Recovered
from zraft.errors import CorruptLogError, ForeignDataError, LockedError, StorageError
from zraft.storage.base import Identity
from zraft.storage.directory import (
    Member,
    NamedMember,
    create_member,
    lock,
    lock_holder,
    new_id,
    next_incarnation,
    open_member,
)
from zraft.storage.files import OS_FILES, Files, OsFiles
from zraft.storage.wal import Wal
from zraft.testing.disk import SimulatedDisk, Stopped

MEMBERS = (NamedMember("n1", 0x30), NamedMember("n2", 0x10), NamedMember("n3", 0x20))
CLUSTER_ID = 0xC0FFEE


def make(parent: Path, name: str = "n1", *, files: Files = OS_FILES) -> Member:
    """Make the directory of a member of a cluster of three."""
    return create_member(
        parent,
        name,
        member_id=dict(MEMBERS)[name],
        cluster="demo",
        cluster_id=CLUSTER_ID,
        members=MEMBERS,
        files=files,
    )


# ------------------------------------------------------------------------------------------ create


def test_made_directory_opens_as_that_member(tmp_path: Path) -> None:
    """It holds the identity, the base configuration and an empty log of the same identity."""
    member = make(tmp_path)
    assert member == open_member(tmp_path / "n1")
    assert member.identity == Identity(CLUSTER_ID, 0x30)
    assert member.configuration == Configuration((0x10, 0x20, 0x30))
    wal = Wal(member.wal_directory, member.identity)
    recovered = wal.load()
    wal.close()
    assert recovered == Recovered(HardState(0, 0), member.configuration, Entries(1, [], []))
    assert sorted(os.listdir(tmp_path)) == ["n1"]
    assert (tmp_path / "n1").stat().st_mode & 0o777 == 0o700


def test_configuration_has_equal_bytes_in_every_directory(tmp_path: Path) -> None:
    """The base configuration is the same for all; only name and id differ."""
    configurations = []
    for name in ("n1", "n2", "n3"):
        member = make(tmp_path, name)
        record = msgspec.json.decode((member.directory / "member.json").read_bytes())
        assert record["member_id"] == f"{member.member_id:016x}"
        configurations.append(record["configuration"])
    assert configurations[0] == configurations[1] == configurations[2]


def test_making_it_again_changes_nothing(tmp_path: Path) -> None:
    """A repeated `up` finds what the first one made, with all that is in it."""
    member = make(tmp_path)
    wal = Wal(member.wal_directory, member.identity)
    wal.load()
    wal.save(HardState(3, 0x30), None)
    wal.sync()
    wal.close()
    assert make(tmp_path) == member
    wal = Wal(member.wal_directory, member.identity)
    assert wal.load().hard_state == HardState(3, 0x30)
    wal.close()


def test_an_empty_directory_is_filled_and_another_is_left_alone(tmp_path: Path) -> None:
    """Only nothing is replaced; other people's files, and other members, are refused."""
    (tmp_path / "n1").mkdir()
    make(tmp_path)
    (tmp_path / "n2").mkdir()
    (tmp_path / "n2" / "thesis.txt").write_text("x")
    with pytest.raises(ForeignDataError):
        make(tmp_path, "n2")
    assert (tmp_path / "n2" / "thesis.txt").read_text() == "x"
    with pytest.raises(ForeignDataError, match="another member"):
        create_member(
            tmp_path,
            "n1",
            member_id=0x30,
            cluster="demo",
            cluster_id=CLUSTER_ID + 1,
            members=MEMBERS,
        )


def test_interrupted_at_any_step_it_can_be_repeated() -> None:
    """After a crash at each step, with and without power loss, the next call succeeds."""
    parent = Path("/cluster")
    for power, tries in [(False, 1), *((True, tries) for tries in range(20))]:
        for stop_at in range(100):
            disk = SimulatedDisk()
            disk.mkdir(parent)
            disk.put(parent / "cluster.toml", b"x")
            disk.sync_everything()
            left = [stop_at]

            def stop(step: str, path: Path, left: list[int] = left) -> None:
                if left[0] == 0:
                    raise Stopped
                left[0] -= 1

            disk.on_step = stop
            finished = True
            try:
                make(parent, files=disk)
            except Stopped:
                finished = False
            disk.on_step = lambda step, path: None
            disk.kill()
            if power:
                disk.cut_power(random.Random(stop_at + 1000 * tries))
            if finished:
                assert open_member(parent / "n1", files=disk).name == "n1", "it was durable"
            member = make(parent, files=disk)
            disk.cut_power(LOSE_ALL)
            assert open_member(parent / "n1", files=disk) == member
            wal = Wal(member.wal_directory, member.identity, files=disk)
            wal.load()
            wal.close()
            assert sorted(disk.listdir(parent)) == ["cluster.toml", "n1"]
            if finished:
                break
        else:
            raise AssertionError("it never ended")


def test_full_disk_is_a_storage_error() -> None:
    """Making a directory on a full disk: exit 74, and it can be repeated."""
    parent, disk = Path("/cluster"), SimulatedDisk()
    disk.mkdir(parent)

    def refuse(step: str, path: Path) -> None:
        if step == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk.on_step = refuse
    with pytest.raises(StorageError, match="No space left") as caught:
        make(parent, files=disk)
    assert caught.value.exit_code == 74
    disk.on_step = lambda step, path: None
    make(parent, files=disk)
    assert disk.open_count == 0


def test_ids_are_random_and_never_nobody() -> None:
    """0 means nobody."""
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert 0 not in ids
    assert all(0 < one < 1 << 64 for one in ids)


# -------------------------------------------------------------------------------------------- open


def spoil(directory: Path, how: str) -> None:
    """Damage a member's directory."""
    path = directory / "member.json"
    record = msgspec.json.decode(path.read_bytes())
    if how == "gone":
        directory.rename(directory.with_name("elsewhere"))
    elif how == "a file":
        directory.rename(directory.with_name("elsewhere"))
        directory.write_text("x")
    elif how == "empty":
        directory.rename(directory.with_name("elsewhere"))
        directory.mkdir()
    elif how == "no member.json":
        path.unlink()
    elif how == "no wal":
        (directory / "wal").rename(directory.with_name("elsewhere"))
    elif how == "not JSON":
        path.write_bytes(path.read_bytes()[:-5])
    elif how == "empty member.json":
        path.write_bytes(b"")
    elif how == "a field is missing":
        path.write_bytes(msgspec.json.encode({"format": 1}))
    elif how == "not an id":
        path.write_bytes(msgspec.json.encode(record | {"member_id": "0x30"}))
    elif how == "not itself":
        path.write_bytes(msgspec.json.encode(record | {"name": "n2"}))
    elif how == "newer":
        path.write_bytes(msgspec.json.encode(record | {"format": 2}))


@pytest.mark.parametrize(
    "how",
    [
        "gone",
        "a file",
        "empty",
        "no member.json",
        "no wal",
        "not JSON",
        "empty member.json",
        "a field is missing",
        "not an id",
        "not itself",
        "newer",
    ],
)
def test_what_is_not_a_members_directory_is_refused(tmp_path: Path, how: str) -> None:
    """Exit 65, with what happened, why, and what to try."""
    make(tmp_path)
    spoil(tmp_path / "n1", how)
    with pytest.raises(ForeignDataError) as caught:
        open_member(tmp_path / "n1")
    assert caught.value.exit_code == 65
    assert str(tmp_path / "n1") in caught.value.what
    assert caught.value.why
    assert caught.value.try_


@pytest.mark.parametrize("expect", [Identity(CLUSTER_ID, 0x10), Identity(1, 0x30)])
def test_another_members_directory_is_refused(tmp_path: Path, expect: Identity) -> None:
    """Directories that were swapped, or belong to another cluster of the same name."""
    member = make(tmp_path)
    assert open_member(tmp_path / "n1", expect=member.identity) == member
    with pytest.raises(ForeignDataError, match="belongs to n1"):
        open_member(tmp_path / "n1", expect=expect)


def test_fields_of_a_newer_version_are_ignored(tmp_path: Path) -> None:
    """A version may add fields; the format number says when old ones can't go on."""
    member = make(tmp_path)
    path = tmp_path / "n1" / "member.json"
    record = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(record | {"color": "green"}))
    assert open_member(tmp_path / "n1") == member


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO])
def test_refusals_of_the_disk_are_storage_errors(tmp_path: Path, number: int) -> None:
    """Permissions, read-only file systems and bad disks: exit 74, since the data may be fine."""

    def refuse(path: Path) -> bytes:
        raise OSError(number, os.strerror(number))

    class Refusing(OsFiles):
        read = staticmethod(refuse)

    make(tmp_path)
    with pytest.raises(StorageError, match=str(tmp_path)) as caught:
        open_member(tmp_path / "n1", files=Refusing())
    assert caught.value.exit_code == 74


# -------------------------------------------------------------------------------------------- lock

HOLDER = """
import sys
from pathlib import Path
from zraft.storage.directory import lock
lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.cluster
def test_second_process_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    """Exit 75 with the holder's pid, also while it is stopped; free when it is gone."""
    assert lock_holder(tmp_path / "lock") is None
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert select.select([holder.stdout], [], [], 30)[0], "it never locked"
        assert holder.stdout.readline() == b"locked\n"
        for stop in (False, True):
            if stop:
                holder.send_signal(signal.SIGSTOP)
            with pytest.raises(LockedError, match=str(holder.pid)) as caught:
                lock(tmp_path)
            assert caught.value.exit_code == 75
            assert lock_holder(tmp_path / "lock") == holder.pid
        holder.kill()
    assert lock_holder(tmp_path / "lock") is None
    fd = lock(tmp_path)
    assert lock_holder(tmp_path / "lock") == os.getpid()
    os.close(fd)


def test_lock_is_not_inherited_and_ends_with_its_descriptor(tmp_path: Path) -> None:
    """A program that the node executes does not keep its lock."""
    fd = lock(tmp_path)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    with pytest.raises(LockedError, match=str(os.getpid())):
        lock(tmp_path)
    os.close(fd)
    os.close(lock(tmp_path))


def test_lock_in_a_missing_directory_is_a_storage_error(tmp_path: Path) -> None:
    """It says which directory."""
    with pytest.raises(StorageError, match="nowhere"):
        lock(tmp_path / "nowhere")


# -------------------------------------------------------------------------------------------- boot


def test_incarnation_counts_starts(tmp_path: Path) -> None:
    """1, 2, 3: every start of a directory has its number."""
    assert [next_incarnation(tmp_path) for _ in range(4)] == [1, 2, 3, 4]


def test_incarnation_never_falls_whatever_crashes() -> None:
    """A number that was returned is never returned again, wherever the power was cut."""
    directory = Path("/n1")
    for stop_at in range(1, 20):
        disk = SimulatedDisk()
        disk.mkdir(directory)
        disk.sync_everything()
        left = [stop_at]

        def stop(step: str, path: Path, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Stopped
            left[0] -= 1

        disk.on_step = stop
        last = 0
        try:
            for _ in range(4):
                last = next_incarnation(directory, files=disk)
        except Stopped:
            disk.on_step = lambda step, path: None
        disk.on_step = lambda step, path: None
        disk.cut_power(random.Random(stop_at))
        assert next_incarnation(directory, files=disk) > last


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b'{"incarnation": 0}', b'{"incarnation": "1"}'])
def test_spoiled_counter_is_corrupt(tmp_path: Path, data: bytes) -> None:
    """Starting again at 1 would make this member look like a rolled-back disk."""
    (tmp_path / "boot.json").write_bytes(data)
    with pytest.raises(CorruptLogError, match=r"boot\.json"):
        next_incarnation(tmp_path)
