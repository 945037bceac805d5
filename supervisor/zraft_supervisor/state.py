"""`supervisor/state.json`: what is wanted of each node, on disk before anybody acts on it.

Written whole, by write, sync, rename. When it cannot be read it is set aside and rebuilt from the
locks: what runs is wanted, what does not run is not; nothing is started or ended because a record
was lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from zraft import procfs
from zraft.client.record import STATE_FORMAT, read_state, supervisor_dir
from zraft.control_api import NodeRecord, StateFile
from zraft.errors import ForeignDataError, StorageError
from zraft.storage.files import OS_FILES, replace_file


class StateStore:
    """The file of one cluster. It writes only what changed."""

    def __init__(self, directory: Path) -> None:
        """Touch nothing yet."""
        self.path = supervisor_dir(directory) / "state.json"
        self._directory = directory
        self._saved: dict[str, NodeRecord] | None = None

    def load(self) -> tuple[dict[str, NodeRecord], str]:
        """Return the records by name, and why they had to be rebuilt (empty: they had not).

        A file that cannot be understood is kept as `state.json.broken`.

        Raises:
            StorageError: the disk refused.
        """
        try:
            state = read_state(self._directory)
        except ForeignDataError as error:
            with contextlib.suppress(FileNotFoundError):
                self.path.replace(self.path.with_name("state.json.broken"))
            return {}, error.why or error.what
        return (dict(state.nodes) if state is not None else {}), ""

    def save(self, nodes: Mapping[str, NodeRecord]) -> None:
        """Make the records durable, if they differ from the last ones.

        Raises:
            StorageError: the disk refused; nothing may be acted on.
        """
        if nodes == self._saved:
            return
        state = StateFile(format=STATE_FORMAT, boot_id=procfs.boot_id(), nodes=dict(nodes))
        data = msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n"
        try:
            replace_file(OS_FILES, self.path, data)
        except OSError as error:
            raise StorageError(
                f"{self.path} cannot be written",
                why=error.strerror or str(error),
                try_="free the disk, then repeat the command: the nodes go on meanwhile",
            ) from error
        self._saved = dict(nodes)
