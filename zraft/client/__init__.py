"""Clients of a cluster: requests to nodes, control of clusters."""
