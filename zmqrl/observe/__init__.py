"""The observability of a run: spans, metrics, the live panel."""
