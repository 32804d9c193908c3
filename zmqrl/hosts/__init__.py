"""Machines: which there are, how they are reached and checked, and what starts processes on them."""
