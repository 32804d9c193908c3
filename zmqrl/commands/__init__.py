"""The commands of the command line.

In the module of a command, ``command`` parses the arguments, and usually ``run`` does the work. Both return the exit
status, and raise ZmqrlError.
"""
