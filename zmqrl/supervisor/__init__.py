"""One run: its processes, members, checkpoints, rollback and end."""
