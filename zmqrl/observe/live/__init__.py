"""The state of a live run, as another terminal, the live panel and Prometheus show it."""
