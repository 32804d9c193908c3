"""Ways to reach a host. Each way turns the words of a command into the command that runs these words on that host."""
