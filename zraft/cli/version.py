"""`zraft version`: what is installed, for bug reports."""

from __future__ import annotations

import platform
from typing import Any

from zraft._version import __version__
from zraft.cli.errors import EXIT_OK
from zraft.cli.options import Run


def version_document() -> dict[str, Any]:
    """Return the versions of zraft and of what it stands on."""
    import msgpack
    import zmq

    from zraft.api import CONTROL_VERSION, PROTOCOL_VERSION

    return {
        "schema": "zraft.version/1",
        "ok": True,
        "zraft": __version__,
        "python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "msgpack": ".".join(map(str, msgpack.version)),
        "protocol": PROTOCOL_VERSION,
        "control": CONTROL_VERSION,
    }


def version(run: Run) -> int:
    """Print the versions of zraft, Python, pyzmq, libzmq, msgpack and of the protocol."""
    document = version_document()

    def human() -> None:
        run.out.line(f"zraft {document['zraft']}")
        for name in ("python", "pyzmq", "libzmq", "msgpack", "protocol", "control"):
            run.out.line(f"  {name:<9}{document[name]}")

    run.out.result(document, human)
    return EXIT_OK
