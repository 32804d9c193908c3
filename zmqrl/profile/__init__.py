"""Where the time of a run goes: what each process records, and what can be read from it."""
