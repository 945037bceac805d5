"""Pure Raft: no clock, socket, file, thread, logger or global randomness."""
