"""zraft: Raft for Python, one operating-system process per node."""

from zraft._version import __version__

__all__ = ["__version__"]
