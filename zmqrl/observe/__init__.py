"""Shows what a run does, with spans, metrics and a live panel."""
