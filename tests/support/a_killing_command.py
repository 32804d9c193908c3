"""Runs a command on a host as some programs do, such as lxc: ``python a_killing_command.py HOST WORDS...``.

When this process is killed, the process that it has started is killed, too.
"""

import contextlib
import os
import signal
import subprocess
import sys


def main() -> None:
    """Run the command, and exit with its status."""
    command = subprocess.Popen(sys.argv[2:], start_new_session=True)
    reader, writer = os.pipe()
    if not os.fork():
        os.setsid()
        for descriptor in (0, 1, 2, writer):
            os.close(descriptor)
        os.read(reader, 1)  # until this process has ended
        with contextlib.suppress(ProcessLookupError):
            os.kill(command.pid, signal.SIGKILL)
        os._exit(0)
    sys.exit(command.wait())


if __name__ == "__main__":
    main()
