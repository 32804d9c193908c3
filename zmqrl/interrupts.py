"""What Ctrl-C means for a command. Standard library only."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block Ctrl-C raises KeyboardInterrupt, so that it can clean up. Elsewhere it ends ``zmqrl`` at once."""
    outside = signal.getsignal(signal.SIGINT)
    if callable(outside):  # else it is ignored, as in the background of a script
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, outside)
