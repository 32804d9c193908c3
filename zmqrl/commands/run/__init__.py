"""Commands that start and end runs: train, launch, worker, stop."""
