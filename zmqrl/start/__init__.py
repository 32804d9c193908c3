"""The start of a run: the game, the initial parameters, and the progress of the start."""
