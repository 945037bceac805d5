"""The diagnostic files of a cluster, read while others write them.

Per process there are `log.jsonl` and `trace.jsonl`, rotated to `.1`, `.2` …, and `err`, what the
process wrote to stderr. It reads from the end backwards, follows files that grow, are rotated or
appear later, and wraps what is not JSON as a line with the event `stderr`. It opens files read-only
and keeps at most one descriptor per file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec.json

from zraft import clock
from zraft.cli.merge import Line

STREAMS = ("log.jsonl", "trace.jsonl", "err")
SUPERVISOR = "supervisor"
READ_BYTES = 1 << 20

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def boot_time() -> str:
    """Return the wall time of the last boot: lines before it have another CLOCK_MONOTONIC."""
    seconds = (clock.wall_time_ns() - clock.now_ns()) / 1e9 - 5
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class LogFile:
    """One file that grows: complete lines come out once, also across a rotation."""

    def __init__(self, path: Path, node: str, boot: str) -> None:
        self.path = path
        self.node = node
        self.stream = path.name
        self._boot = boot
        self._descriptor = -1
        self._offset = 0
        self._rest = b""
        self._last: Line | None = None
        self._extra = 0

    def read_tail(self, budget_bytes: int) -> tuple[list[Line], bool]:
        """Return the last lines, also of rotated files, and whether that is all there is.

        Afterwards `read_new` goes on where the file ended now.
        """
        self.close()
        self._rest, self._last, self._extra = b"", None, 0
        chunks: list[bytes] = []
        whole = True
        for place, path in enumerate(self._generations()):
            if budget_bytes <= 0:
                whole = False
                break
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            size = os.fstat(descriptor).st_size
            start = max(0, size - budget_bytes)
            data = _read_all(descriptor, start, size)
            budget_bytes -= len(data)
            if start:
                whole = False
                data = data.partition(b"\n")[2]
            chunks.append(data)
            if place == 0:
                self._descriptor, self._offset = descriptor, size
            else:
                os.close(descriptor)
        return self._lines(b"".join(reversed(chunks))), whole

    def read_new(self) -> list[Line]:
        """Return the lines that were completed since the last call; cheap when there are none."""
        if self._descriptor < 0 and not self._open():
            return []
        lines = self._lines(self._grown())
        if self._replaced():
            lines += self._lines(self._grown())
            self.close()
            if self._open():
                lines += self._lines(self._grown())
        return lines

    def close(self) -> None:
        """Close the file; the next read opens it again from its beginning."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _generations(self) -> list[Path]:
        """Return the file and its rotated predecessors, newest first."""
        older = []
        for path in self.path.parent.glob(f"{self.stream}.*"):
            number = path.name.removeprefix(f"{self.stream}.")
            if number.isdigit():
                older.append((int(number), path))
        return [self.path, *(path for _, path in sorted(older))]

    def _open(self) -> bool:
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        self._offset = 0
        return True

    def _grown(self) -> bytes:
        size = os.fstat(self._descriptor).st_size
        if size < self._offset:  # truncated: whatever is there now is new
            self._offset = 0
        data = _read_all(self._descriptor, self._offset, size)
        self._offset += len(data)
        return data

    def _replaced(self) -> bool:
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return found.st_ino != os.fstat(self._descriptor).st_ino

    def _lines(self, data: bytes) -> list[Line]:
        if not data:
            return []
        *complete, self._rest = (self._rest + data).split(b"\n")
        return [self._parse(raw) for raw in complete if raw.strip()]

    def _parse(self, raw: bytes) -> Line:
        try:
            fields = _decode(raw)
            seq, mono_ns = fields["seq"], fields["mono_ns"]
            if type(seq) is not int or type(mono_ns) is not int:
                return self._wrap(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
            return self._wrap(raw)
        ts = str(fields.get("ts", ""))
        self._extra = 0
        self._last = Line(
            node=str(fields.get("node", self.node)),
            inc=_whole(fields.get("inc")),
            pid=_whole(fields.get("pid")),
            place=(seq, 0),
            mono_ns=mono_ns,
            old=ts if ts and ts < self._boot else "",
            trace=self.stream == "trace.jsonl",
            raw=raw,
            fields=fields,
        )
        return self._last

    def _wrap(self, raw: bytes) -> Line:
        """Return a line for what is not one: it stands where it was found."""
        self._extra += 1
        before = self._last
        mono_ns, ts = self._when()
        fields: dict[str, Any] = {
            "ts": ts,
            "level": "error",
            "event": "stderr",
            "msg": raw.decode("utf-8", "replace"),
            "node": self.node,
            "mono_ns": mono_ns,
            "v": 1,
        }
        return Line(
            node=self.node,
            inc=before.inc if before else 0,
            pid=before.pid if before else 0,
            place=(before.place[0] if before else 0, self._extra),
            mono_ns=before.mono_ns if before else mono_ns,
            old=ts if ts < self._boot else "",
            trace=False,
            raw=msgspec.json.encode(fields),
            fields=fields,
        )

    def _when(self) -> tuple[int, str]:
        """Return the time of what carries none: when the file was written last."""
        try:
            wall_ns = os.fstat(self._descriptor).st_mtime_ns
        except OSError:
            wall_ns = clock.wall_time_ns()
        mono_ns = clock.monotonic_ns() - (clock.wall_time_ns() - wall_ns)
        stamp = datetime.fromtimestamp(wall_ns / 1e9, UTC)
        return mono_ns, f"{stamp:%Y-%m-%dT%H:%M:%S.%f}Z"


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _read_all(descriptor: int, start: int, end: int) -> bytes:
    chunks: list[bytes] = []
    while start < end:
        chunk = os.pread(descriptor, min(READ_BYTES, end - start), start)
        if not chunk:
            break
        chunks.append(chunk)
        start += len(chunk)
    return b"".join(chunks)


class LogFiles:
    """All files of a cluster, or of some of its nodes; new nodes join when their files appear."""

    def __init__(self, directory: Path, nodes: Sequence[str] | None) -> None:
        """Look at `nodes`, or at every node and the supervisor when that is None."""
        self._directory = directory
        self._nodes = nodes
        self._boot = boot_time()
        self._files: dict[Path, LogFile] = {}
        self.discover()

    def discover(self) -> None:
        """Take in the files of nodes that appeared since the last look."""
        for node in self._nodes if self._nodes is not None else self._found():
            for stream in STREAMS:
                path = self._directory / node / stream
                if path not in self._files:
                    self._files[path] = LogFile(path, node, self._boot)

    def tails(self, budget_bytes: int) -> tuple[list[Line], list[Line]]:
        """Return the last lines of all files; second, the oldest line of each cut-off file."""
        lines: list[Line] = []
        cut: list[Line] = []
        for file in self._files.values():
            found, whole = file.read_tail(budget_bytes)
            lines += found
            if not whole and found:
                cut.append(found[0])
        return lines, cut

    def read_new(self) -> list[Line]:
        """Return all lines that were completed since the last call."""
        return [line for file in self._files.values() for line in file.read_new()]

    def close(self) -> None:
        """Close every file."""
        for file in self._files.values():
            file.close()

    def _found(self) -> Iterable[str]:
        try:
            entries = sorted(entry.name for entry in os.scandir(self._directory) if entry.is_dir())
        except OSError:
            return []
        return [name for name in entries if name == SUPERVISOR or self._is_node(name)]

    def _is_node(self, name: str) -> bool:
        directory = self._directory / name
        return any((directory / part).exists() for part in ("member.json", *STREAMS))
