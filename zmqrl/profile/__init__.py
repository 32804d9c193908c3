"""Profiles of a run: the times that processes record, and the reports on these times."""
