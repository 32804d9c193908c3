"""Gymnasium's spaces: from the values of an environment to those of a network, and back."""
