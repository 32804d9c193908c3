"""Benchmarks of zmqrl on this machine, compared with alternatives."""
