"""Verbs that run something: train, launch, worker, stop."""
