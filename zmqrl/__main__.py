"""The ``zmqrl`` command, also run as ``python -m zmqrl``. Ctrl-C never shows a traceback, even while modules load.

SIGTERM and the end of the terminal (SIGHUP) act like Ctrl-C. A signal that was ignored at the start stays ignored, as
with ``nohup``.
"""

# Do not import slow modules here, such as signal. Until our handler is set, Ctrl-C shows a traceback.
import _signal  # type: ignore[import-not-found]
import os
import sys

INTERRUPTED = 130
THREADS_END_WITHIN_S = 3.0  # after Ctrl-C or an error: a step of a game, in a thread, may never return
LOOK_UP_EVERY_S = 1.0  # waits are this short, because a signal that arrives just before a wait does not end it


def _leave(*_: object) -> None:
    # Do not raise: a module that is being imported, or Python at exit, could swallow or print the exception.
    os._exit(INTERRUPTED)


try:  # at module level, because Ctrl-C may come before a function is called
    ANSWERED = [  # a script's background job ignores SIGINT, and a command under nohup ignores SIGHUP
        number
        for number, default in (
            (_signal.SIGINT, _signal.default_int_handler),
            (_signal.SIGHUP, _signal.SIG_DFL),
            (_signal.SIGTERM, _signal.SIG_DFL),
        )
        if _signal.getsignal(number) == default
    ]
    for _number in ANSWERED:
        _signal.signal(_number, _leave)
except KeyboardInterrupt:
    _leave()


def main() -> None:
    """Run :func:`zmqrl.cli.guarded_main`. Ctrl-C ends the process at once if there is nothing to clean up."""
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()
    import atexit

    from zmqrl import cli

    for number in ANSWERED:
        # Runs last: otherwise Python restores the default handler, and Ctrl-C can change the exit status.
        atexit.register(_signal.signal, number, _signal.SIG_IGN)
    status = 1
    try:
        cli.guarded_main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    except Exception:  # print it now: the wait for threads may end the process
        sys.excepthook(*sys.exc_info())
        sys.exit(status)
    finally:
        for number in ANSWERED:
            _signal.signal(number, _leave)
        _join_threads(status)


def _join_threads(status: int) -> None:
    """Wait for library threads in short steps. Python would use one long wait, which can miss Ctrl-C.

    If the exit ``status`` is not 0, end the process after ``THREADS_END_WITHIN_S`` even if threads are left.
    """
    import threading
    import time

    deadline = time.monotonic() + THREADS_END_WITHIN_S if status else float("inf")
    for thread in threading.enumerate():
        while thread.is_alive() and not thread.daemon and thread is not threading.current_thread():
            if time.monotonic() >= deadline:
                os._exit(status)
            thread.join(LOOK_UP_EVERY_S)


def _look_elsewhere_first() -> None:
    """Remove the current directory from the front of the import path: files there would hide other modules."""
    try:
        here = os.getcwd()  # noqa: PTH109 - importing pathlib would search the current directory
    except OSError:  # the directory was removed: cli.main reports this
        return
    if not sys.flags.safe_path and sys.path[0] in ("", here):
        del sys.path[0]


if __name__ == "__main__":
    _look_elsewhere_first()
    main()
