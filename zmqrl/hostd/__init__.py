"""The small program on each host that starts, watches and ends the processes of a run there.

These modules use only the standard library, so that the program starts quickly: all processes of the run wait for it.
"""
