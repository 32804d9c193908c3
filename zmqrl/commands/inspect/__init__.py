"""Commands that look at a run or at hosts and change nothing."""
