"""``python -m zmqrl`` is ``zmqrl``. It answers Ctrl-C from its first line to its last without a traceback."""

# Not signal or other modules that take time: until our handler is set, Ctrl-C shows a traceback.
import _signal  # type: ignore[import-not-found]
import os
import sys

INTERRUPTED = 130
LOOK_UP_EVERY_S = 1.0  # a wait ends this often, because a signal just before it does not wake it


def _leave(*_: object) -> None:
    # A module during its import, or Python at its end, could swallow an exception or show it.
    os._exit(INTERRUPTED)


try:  # on import: a call of a function would be too late
    ANSWERS = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler  # not in the background of a script
    if ANSWERS:
        _signal.signal(_signal.SIGINT, _leave)
except KeyboardInterrupt:
    _leave()


def main() -> None:
    """Run :func:`zmqrl.cli.main`. Ctrl-C ends it at once when there is nothing to clean up."""
    import atexit

    from zmqrl import cli

    if ANSWERS:
        # Runs last. After it, Python restores the default handler, which would change the exit status.
        atexit.register(_signal.signal, _signal.SIGINT, _signal.SIG_IGN)
    try:
        cli.main()
    finally:
        if ANSWERS:
            _signal.signal(_signal.SIGINT, _leave)
        _join_threads()


def _join_threads() -> None:
    """Wait for the threads of libraries, which Python does too at its end, but in one wait."""
    import threading

    for thread in threading.enumerate():
        while thread.is_alive() and not thread.daemon and thread is not threading.current_thread():
            thread.join(LOOK_UP_EVERY_S)


def _look_elsewhere_first() -> None:
    """Undo that Python looks in the current directory first: files there would hide modules of the same name."""
    try:
        here = os.getcwd()  # noqa: PTH109 - the import of pathlib would look there
    except OSError:  # it was removed, which cli.main says
        return
    if not sys.flags.safe_path and sys.path[0] in ("", here):
        del sys.path[0]


if __name__ == "__main__":
    _look_elsewhere_first()
    main()
