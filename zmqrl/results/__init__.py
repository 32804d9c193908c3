"""Shows the results of runs that have ended, repeats these runs, and judges whether a repetition agrees."""
