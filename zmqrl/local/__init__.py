"""This machine: its optional packages, its resources, and what limits a run here."""
