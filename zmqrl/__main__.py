"""``python -m zmqrl`` is ``zmqrl``: it answers Ctrl-C from its first line to its last, and never with a traceback."""

# Not signal, nor anything else that takes time: until there is a handler of ours, Ctrl-C shows a traceback.
import _signal  # type: ignore[import-not-found]
import os

INTERRUPTED = 130


def _leave(*_: object) -> None:
    # An exception could be lost, or shown, by modules that are being imported and by what Python does at its end.
    os._exit(INTERRUPTED)


try:  # on import, as entering a function is late already
    ANSWERS = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler  # not in the background of a script
    if ANSWERS:
        _signal.signal(_signal.SIGINT, _leave)
except KeyboardInterrupt:
    _leave()


def main() -> None:
    """Run a command line as :func:`zmqrl.cli.main` does. Ctrl-C ends it at once where there is nothing to clean up."""
    import atexit

    from zmqrl import cli

    if ANSWERS:
        # The last of all: then Python restores the default of the signal, which would change the exit status.
        atexit.register(_signal.signal, _signal.SIGINT, _signal.SIG_IGN)
    try:
        cli.main()
    finally:
        if ANSWERS:
            _signal.signal(_signal.SIGINT, _leave)


if __name__ == "__main__":
    main()
