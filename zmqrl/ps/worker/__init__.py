"""The worker's side of the parameter server: the state machine of a worker, and the worker's connection."""
