"""Measuring: throughput, latency and failover of real clusters, beside what the machine can do.

A number without its machine says nothing, and this machine is another one every minute. So each
figure stands beside a bare loop, a ZeroMQ round trip, an fdatasync and the largest wake-up delay of
an idle loop, all of the same run.
"""
