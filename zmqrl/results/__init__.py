"""Results of runs that have ended: what they reached, how to repeat them, and whether a repetition agrees."""
