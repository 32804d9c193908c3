"""What a run shows of itself: spans, metrics, the live panel."""
