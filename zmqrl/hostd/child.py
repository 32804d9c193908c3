"""``python -m zmqrl.hostd.child MODULE`` runs MODULE as ``python -m`` would, in a process that answers STACK_SIGNAL.

C code writes the answer, the stacks of all threads, to standard error. So it also comes from a process that hangs in an
import, in C code or on a lock. The handler is registered before MODULE imports anything.
"""

import faulthandler
import runpy
import signal
import sys

STACK_SIGNAL = signal.SIGUSR2

if __name__ == "__main__":
    faulthandler.register(STACK_SIGNAL, all_threads=True)
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
