"""Directories and the cluster file: private, repeatable, and removed without touching the rest."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import msgspec
import pytest

from zraft.client.ownership import runs_node
from zraft.client.record import read_state, rows_without_supervisor
from zraft.client.refusals import check_place, check_platform, check_same
from zraft.config import Config, to_jsonable
from zraft.control_api import LastExit, NodeRecord, StateFile, Up
from zraft.errors import ConfigError, ControlError, ForeignDataError, StorageError, ZraftError
from zraft.paths import TCP_PORTS_PER_SLOT, ClusterFile, read_cluster_file
from zraft.procfs import file_system
from zraft_supervisor.creation import (
    free_base_port,
    make_members,
    new_cluster,
    render_cluster_file,
    with_settings,
    write_cluster_file,
)
from zraft_supervisor.layout import (
    EPHEMERAL_PREFIX,
    Place,
    make_place,
    make_private,
    remove_data,
)
from zraft_supervisor.state import StateStore


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """STATE/c, which is not there yet."""
    return tmp_path / "state" / "c"


def made(link: Path, **wishes: object) -> tuple[Place, ClusterFile]:
    """Make a place and describe a cluster of three in it."""
    place = make_place(link, data=None, ephemeral=False)
    up = msgspec.convert({"type": "up", "name": "c", "nodes": 3, **wishes}, Up)
    return place, new_cluster(place, up, {"XDG_RUNTIME_DIR": "/tmp/zrt"})


def ignore(_step: str) -> None:
    """Take no notice of a step."""


def test_a_place_is_private_and_may_be_made_again(link: Path) -> None:
    """Every directory has mode 0700; a second time is the same place."""
    place = make_place(link, data=None, ephemeral=False)
    for path in (link, link / "supervisor"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert make_place(link, data=None, ephemeral=False) == place


def test_links_files_and_open_directories_are_refused(tmp_path: Path) -> None:
    """78: who can write there, or lead us elsewhere, can pretend to be a node."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir(mode=0o700)
    (tmp_path / "open").chmod(0o750)
    for name in ("link", "file", "open"):
        with pytest.raises(ConfigError) as caught:
            make_private(tmp_path / name)
        assert caught.value.exit_code == 78
        assert caught.value.why
        assert caught.value.try_


def test_what_the_disk_refuses_is_a_storage_error(tmp_path: Path) -> None:
    """74 with the path: here a file stands where a directory has to be made."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        make_private(tmp_path / "file" / "below")
    assert caught.value.exit_code == 74
    assert str(tmp_path) in caught.value.what


def test_a_lost_ephemeral_directory_is_replaced_and_a_lost_disk_is_not(
    link: Path, tmp_path: Path
) -> None:
    """/tmp was cleaned: begin anew. Any other target that is gone may be a disk not mounted."""
    make_place(tmp_path / "state" / "other", data=None, ephemeral=False)
    link.symlink_to(tmp_path / f"{EPHEMERAL_PREFIX}gone")
    assert make_place(link, data=None, ephemeral=False).directory == link
    lost = link.with_name("lost")
    lost.symlink_to(tmp_path / "disk")
    with pytest.raises(StorageError, match="not there"):
        make_place(lost, data=None, ephemeral=False)


def test_removing_a_cluster_leaves_what_is_not_its_own(link: Path, tmp_path: Path) -> None:
    """In a directory given with --dir, other files stay; the link in STATE goes."""
    data = tmp_path / "data"
    place = make_place(link, data=data, ephemeral=False)
    _, cluster = made(link)
    write_cluster_file(place.directory, cluster)
    make_members(place, cluster, ignore)
    (data / "notes.txt").touch()
    remove_data(place, cluster)
    assert os.listdir(data) == ["notes.txt"]
    assert not os.path.lexists(link)


def test_a_cluster_file_is_read_back_as_it_was_written(link: Path) -> None:
    """Strings with quotes and backslashes, integers and booleans; every key is there."""
    place, cluster = made(link)
    odd = msgspec.structs.replace(cluster, socket_dir='/tmp/a "b" \\c ü')
    write_cluster_file(place.directory, odd)
    assert read_cluster_file(place.directory) == odd
    assert cluster.settings == to_jsonable(Config())
    assert render_cluster_file(cluster).startswith("#")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('member_id = "', 'member_id = "x'),
        ('cluster_id = "', 'cluster_id = "0x'),
        ('name = "n1"', 'name = "../n1"'),
        ('name = "n1"', 'name = ""'),
        ('name = "n1"', "name = 1"),
        ("new = true", "new = 1"),
        ("[[members]]", "[[member]]"),
    ],
)
def test_a_cluster_file_that_was_edited_wrongly_is_refused_with_its_place(
    link: Path, old: str, new: str
) -> None:
    """No command reads on with half of it, or ends in a traceback."""
    place, cluster = made(link)
    write_cluster_file(place.directory, cluster)
    path = place.directory / "cluster.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ForeignDataError, match="is not a cluster file") as caught:
        read_cluster_file(place.directory)
    assert caught.value.why


def test_ids_are_random_and_different(link: Path) -> None:
    """Cluster id and member ids: 64 bits each, never the same twice."""
    _, one = made(link)
    _, two = made(link)
    ids = [file.cluster_id for file in (one, two)]
    ids += [member.member_id for file in (one, two) for member in file.members]
    assert len(set(ids)) == 8
    assert all(len(text) == 16 and int(text, 16) for text in ids)


def test_a_known_member_never_gets_a_directory_again(link: Path) -> None:
    """Only members that the file lists as new are made; making them twice changes nothing."""
    place, cluster = made(link)
    write_cluster_file(place.directory, cluster)
    make_members(place, cluster, ignore)
    known = make_members(place, cluster, ignore)  # as after a crash before the second file
    assert not any(member.new for member in known.members)
    assert read_cluster_file(place.directory) == known
    for path in sorted((link / "n2").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (link / "n2").rmdir()
    make_members(place, known, ignore)
    assert not (link / "n2").exists()


@pytest.mark.parametrize("wish", [{"nodes": 5}, {"transport": "tcp"}, {"ephemeral": True}])
def test_up_with_other_wishes_than_the_cluster_has_is_refused(
    link: Path, wish: dict[str, object]
) -> None:
    """2, and at least one command that goes on."""
    _, cluster = made(link)
    with pytest.raises(ControlError) as caught:
        check_same(msgspec.convert({"type": "up", "name": "c", **wish}, Up), cluster)
    assert caught.value.try_
    check_same(Up(name="c", nodes=3, transport="ipc"), cluster)


def test_settings_are_completed_checked_and_fixed_while_nodes_run(link: Path) -> None:
    """A part is completed by the defaults; nonsense is refused; so is a change under way."""
    _, cluster = made(link)
    same = with_settings(Up(name="c", settings={"timing": {}}), cluster, alive=True)
    assert same is cluster
    other = Up(name="c", settings={"timing": {"heartbeat_ms": 10}})
    assert with_settings(other, cluster, alive=False).settings["timing"]["heartbeat_ms"] == 10
    with pytest.raises(ControlError, match="other settings"):
        with_settings(other, cluster, alive=True)
    for wrong in ({"timing": {"heartbeat_ms": 500}}, {"timing": {"beat": 1}}):
        with pytest.raises(ZraftError) as caught:
            made(link, settings=wrong)
        assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("system", "release"),
    [("darwin", "23.1.0"), ("win32", "10"), ("linux", "5.3.18"), ("linux", "")],
)
def test_another_platform_is_refused_with_one_sentence(system: str, release: str) -> None:
    """78; Linux 5.4, WSL2's kernels and odd local versions are taken."""
    with pytest.raises(ConfigError) as caught:
        check_platform(system, release)
    assert "needs Linux 5.4 or newer" in caught.value.what
    for good in ("5.4.0-150-generic", "5.15.133.1-microsoft-standard-WSL2", "6.18.44-fc", "10.0"):
        check_platform("linux", good)


def test_a_cluster_is_in_one_place(link: Path, tmp_path: Path) -> None:
    """--dir must agree with where it is; --ephemeral and --dir exclude each other."""
    make_place(link, data=None, ephemeral=False)
    check_place(link, link, ephemeral=False)
    for data, ephemeral in ((tmp_path, False), (link, True)):
        with pytest.raises(ControlError):
            check_place(link, data, ephemeral=ephemeral)


def test_tcp_ports_are_below_the_range_that_connections_take_theirs_from(tmp_path: Path) -> None:
    """A port that a connection may take can connect to itself; the same directory, same ports."""
    port = free_base_port(tmp_path, 9)
    assert port >= 21000
    assert port + TCP_PORTS_PER_SLOT <= 32768
    assert free_base_port(tmp_path, 9) == port
    with socket.socket() as taken:
        # A connection of another test that ended a moment ago may have left this port waiting.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port + 3))
        taken.listen()
        other = free_base_port(tmp_path, 9)
        assert other != port
        assert (other - port) % TCP_PORTS_PER_SLOT == 0


def test_a_record_is_read_back_and_written_only_when_it_changed(link: Path) -> None:
    """Write, sync, rename; the same records again cost nothing."""
    place, cluster = made(link)
    store = StateStore(place.directory)
    assert store.load() == ({}, "")
    records = {
        name: NodeRecord(desired="up", last_exit=LastExit(pid=1, code=0)) for name in cluster.names
    }
    store.save(records)
    written = store.path.stat().st_ino
    store.save(dict(records))
    assert store.path.stat().st_ino == written
    assert StateStore(place.directory).load() == (records, "")


def test_times_of_another_boot_are_due_at_once(link: Path) -> None:
    """CLOCK_BOOTTIME begins anew: what was to be undone then is to be undone now."""
    place, _ = made(link)
    store = StateStore(place.directory)
    record = NodeRecord(desired="paused", until_ms=10**12, crashes_ms=[10**12])
    state = StateFile(format=1, boot_id="another", nodes={"n1": record})
    store.path.write_bytes(msgspec.json.encode(state))
    read = read_state(place.directory)
    assert read is not None
    assert (read.nodes["n1"].until_ms, read.nodes["n1"].crashes_ms) == (0, [])


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"format": 99}', b"\xff\xfe"])
def test_a_record_that_is_none_is_set_aside(link: Path, garbage: bytes) -> None:
    """It is kept beside, the reason is told, and rows come from the locks alone."""
    place, cluster = made(link)
    store = StateStore(place.directory)
    store.path.write_bytes(garbage)
    rows = rows_without_supervisor(place.directory, cluster)
    assert {row.state for row in rows.values()} == {"down"}
    records, reason = store.load()
    assert (records, bool(reason)) == ({}, True)
    assert store.path.with_name("state.json.broken").read_bytes() == garbage


def test_a_node_is_recognised_by_program_and_directory() -> None:
    """The command line of another directory, another program or none is not ours."""
    ours = ["python", "-P", "-m", "zraft.node", "--dir", "/s/c/n1", "--ready-fd", "7"]
    assert runs_node(ours, Path("/s/c/n1"), "zraft.node")
    assert not runs_node(ours, Path("/s/c/n2"), "zraft.node")
    assert not runs_node(["vim", "--dir", "/s/c/n1"], Path("/s/c/n1"), "zraft.node")
    assert not runs_node(["python", "-m", "zraft.node", "--dir"], Path("/s/c/n1"), "zraft.node")
    assert not runs_node([], Path("/s/c/n1"), "zraft.node")


MOUNTS = """\
1 0 254:0 / / rw,relatime - overlay overlay rw,lowerdir=/a
2 1 0:21 / /proc rw,nosuid - proc proc rw
3 1 8:1 / /mnt/my\\040disk rw master:1 - ext4 /dev/sda1 rw
4 1 0:30 / /mnt/my\\040disk/t rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "overlay"),
        ("/mnt/my disk/zraft", "ext4"),
        ("/mnt/my disk/t/zraft", "tmpfs"),
        ("/mnt/my disk/tt", "ext4"),
        ("/process", "overlay"),
    ],
)
def test_the_type_of_a_file_system_is_that_of_the_longest_mount(path: str, kind: str) -> None:
    """`up` warns on tmpfs and overlay: what is synced there does not survive the machine."""
    assert file_system(Path(path), MOUNTS) == kind
