"""One zraft node: one process, one poll loop."""
