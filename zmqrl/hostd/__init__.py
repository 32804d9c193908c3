"""The small program on each host that starts, watches and ends the processes of a run there."""
