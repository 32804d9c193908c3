"""The supervisor of one run. It controls the processes, members, checkpoints, rollbacks and end of the run."""
