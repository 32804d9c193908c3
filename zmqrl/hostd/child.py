"""``python -P -m zmqrl.hostd.child MODULE``: run MODULE as ``python -m`` would, in a process that can report its stack.

Forked processes run their modules in this way, too.

The process writes its stack to standard error when it gets one of two signals, even during imports, which can hang.

- ASK: a Python handler writes the stacks of all threads, as soon as the main thread runs Python code.
- ASK_BLOCKED: a C handler writes the stack of the main thread at once. Send this signal only if the main thread runs no
  Python code. Otherwise the handler can read an unfinished frame, and crash. The handler skips other threads for the
  same reason.
"""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import faulthandler
import runpy
import signal
import sys

ASK = signal.SIGUSR2
ASK_BLOCKED = signal.SIGRTMIN + 4
STANDARD_ERROR = 2


def answer(*_: object) -> None:
    """Write the stacks of all threads. No other thread runs Python code meanwhile."""
    faulthandler.dump_traceback(STANDARD_ERROR, all_threads=True)


if __name__ == "__main__":
    faulthandler.register(ASK_BLOCKED, STANDARD_ERROR, all_threads=False)
    signal.signal(ASK, answer)
    signal.siginterrupt(ASK, False)  # the signal must not break a library that does not expect EINTR
    from zmqrl.process import look_for_modules_there

    look_for_modules_there()
    module = sys.argv.pop(1)
    if module == "zmqrl.hostd.fork_server":
        from zmqrl.hostd.fork_server import serve

        module = serve(int(sys.argv[1]), sys.argv[2])
    runpy.run_module(module, run_name="__main__", alter_sys=True)
