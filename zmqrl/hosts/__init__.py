"""Machines: the inventory, ways to reach and check them, and the launcher that starts processes on them."""
