"""The version of zraft: the single source, read by the build and by `zraft version`."""

__version__ = "0.1.0"
