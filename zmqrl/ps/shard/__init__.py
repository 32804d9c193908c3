"""One shard of the parameter server: its state machine, and the process around it."""
