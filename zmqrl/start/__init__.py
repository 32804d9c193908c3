"""The start of a run: the game, the initial parameters, the jobs of processes, and the progress of the start."""
