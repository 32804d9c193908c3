"""The supervisor of one run: its processes, members, checkpoints, rollbacks and end."""
