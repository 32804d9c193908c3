"""The start of a run: its game and its initial parameters, and how far the start is."""
