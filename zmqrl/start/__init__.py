"""The start of a run: its game, its initial parameters, and its progress."""
