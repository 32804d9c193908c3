"""Measurements of zmqrl on this machine, beside what else could do the same work."""
