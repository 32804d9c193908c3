"""Profiles of a run: the times that each process records, and the reports on these times."""
