"""What Ctrl-C means for a command. Standard library only."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in the block, which can clean up. Elsewhere it ends ``zmqrl`` at once."""
    outside = signal.getsignal(signal.SIGINT)
    if callable(outside):  # a script that runs us in the background has it ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, outside)
