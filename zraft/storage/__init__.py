"""Durable storage of one node: the write-ahead log and what it guarantees."""
