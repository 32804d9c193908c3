"""Serves the page of one run from a separate process, which ends soon after the run (``--page``)."""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from zmqrl.child_process import ChildProcess
from zmqrl.errors import ClusterError
from zmqrl.page.server import PageServer, listen
from zmqrl.process import log_to_stderr, read_job, say
from zmqrl.rundir import RunDirectory
from zmqrl.words import ended_how

PAGE_UP_WITHIN_S = 30.0
LAST_LOOK_S = 2.0  # an open page asks every second


@contextlib.contextmanager
def page_beside(directory: RunDirectory, notice: Callable[[str], None]) -> Iterator[str]:
    """Serve the page of a run on 127.0.0.1 during the block. Yields its address, which contains a token.

    After the block, an open page has ``LAST_LOOK_S`` to show how the run ended, but not after Ctrl-C in the block. If
    the page dies, calls ``notice`` from a thread. Raises ClusterError if the page does not start.
    """
    over = threading.Event()

    def watch() -> None:
        status = child.process.wait()
        if not over.is_set():
            notice(f"the live page has ended ({ended_how(status)}); the run continues, and zmqrl serve can show it")

    child = ChildProcess("the page", ["-m", "zmqrl.page.beside"], {"run_dir": str(directory.path)})
    try:
        answer = child.hear(PAGE_UP_WITHIN_S)
        if answer is None:
            raise ClusterError(f"the page did not start within {PAGE_UP_WITHIN_S:g} s.")
        threading.Thread(target=watch, name="page", daemon=True).start()
        yield answer["url"]
    except KeyboardInterrupt:
        over.set()
        raise
    finally:
        if not over.is_set():
            over.set()
            with contextlib.suppress(ClusterError, KeyboardInterrupt):
                child.tell({})
                child.hear(LAST_LOOK_S + 1)
        child.kill()


def main() -> None:
    job = read_job(signal.SIGKILL)
    directory = RunDirectory(Path(job["run_dir"]))
    _log_to(directory.path / "logs" / "page.log")
    server = PageServer(directory.path, listen("127.0.0.1", None))
    say({"url": server.url})
    threading.Thread(target=_attend, args=(server,), name="parent", daemon=True).start()
    server.run()


def _attend(server: PageServer) -> None:
    """Answer the parent once open pages had time to show the end of the run. End when the parent hangs up."""
    with os.fdopen(0, "rb", buffering=0, closefd=False) as messages:
        for _ in messages:
            if server.is_watched():
                time.sleep(LAST_LOOK_S)
            say({})
    os._exit(0)


def _log_to(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(log, 2)
    os.dup2(log, 1)
    log_to_stderr("zmqrl.page.beside")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
