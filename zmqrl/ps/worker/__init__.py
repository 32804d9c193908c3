"""The worker's side of the parameter server: its state machine, and its connection."""
