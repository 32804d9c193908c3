"""Where Python looks for modules. Importing this module imports nothing that is slow or that a file can hide."""

import os
import sys

VARIABLE = "PYTHONPATH"


def entries_elsewhere() -> list[str]:
    """The entries of PYTHONPATH that do not mean the current directory."""
    return [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if os.path.normpath(entry) != os.curdir]


def search_here_last() -> None:
    """Move the current directory to the end of the import path if only an empty entry or ``.`` of PYTHONPATH names it.

    Files there would hide other modules. The variable stays as it is, for programs that the user's code starts. Each
    entry point of zmqrl therefore calls this function before it imports other modules.
    """
    entries, named = os.environ.get(VARIABLE, "").split(os.pathsep), entries_elsewhere()
    if entries == [""] or named == entries:  # Python ignores an empty variable
        return
    try:
        here = os.getcwd()  # noqa: PTH109 - importing pathlib would search the current directory
    except OSError:  # the directory was removed: cli.main reports this
        return
    if here in sys.path and here not in map(os.path.abspath, named):
        sys.path[:] = [*(entry for entry in sys.path if entry != here), here]
