"""Simulation and checking, shipped because users need them too."""
