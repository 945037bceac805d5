"""Real processes under load and faults, and the judge's verdict on what the clients saw."""
