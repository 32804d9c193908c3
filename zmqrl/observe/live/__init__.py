"""What another terminal, the live panel and Prometheus show of a run that is alive."""
