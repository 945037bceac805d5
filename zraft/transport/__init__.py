"""ZeroMQ sockets between peers, and the fault rules that act on them."""
