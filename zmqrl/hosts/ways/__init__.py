"""Ways to reach a host: each turns a command into the command that runs it on that host."""
