"""Shows what a run does: spans, metrics, the live panel."""
