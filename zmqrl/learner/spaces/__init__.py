"""Gymnasium's spaces: what an environment of the user returns and takes, and what a network reads and chooses."""
