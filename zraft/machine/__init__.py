"""Replicated state machines: the contract and the key-value store."""
