"""Processes and hosts: who is started where, watched, restarted and stopped."""
