"""The supervisor: spawns, watches, breaks and repairs the nodes of a cluster."""
