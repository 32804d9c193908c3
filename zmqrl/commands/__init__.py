"""The commands of the command line. Each command has its own module."""
