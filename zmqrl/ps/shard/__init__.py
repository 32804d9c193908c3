"""One shard of the parameter server: its state machine, and the process around it."""

START_WITHIN_S = 60.0  # how long a shard may take from its start until it reports its endpoints
