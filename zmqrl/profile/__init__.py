"""Profiles of a run: the timings that each process records, and the reports made from them."""
