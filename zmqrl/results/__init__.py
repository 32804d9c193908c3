"""Shows the results of runs, repeats these runs, and judges whether a repetition agrees."""
