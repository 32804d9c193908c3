"""Ways to reach a host. Each turns the words of a command into the command that runs them on that host."""
