"""Commands that measure, draw and predict runs: eval, record, plot, compare, bench, simulate, plan."""
