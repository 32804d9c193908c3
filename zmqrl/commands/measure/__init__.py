"""Commands that measure what was learned: eval, record, plot, compare."""
