"""Serves the page of one run from a separate process, which ends with the run (``--page``)."""

if __name__ == "__main__":
    from zmqrl.hostd.import_path import search_here_last

    search_here_last()  # before the first import that a file in the current directory can hide

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from zmqrl.child_process import ChildProcess
from zmqrl.errors import ClusterError
from zmqrl.page.server import PageServer, listen
from zmqrl.process import Messages, log_to_stderr, read_job, say
from zmqrl.rundir import RunDirectory

PAGE_UP_WITHIN_S = 30.0


@contextlib.contextmanager
def page_beside(directory: RunDirectory) -> Iterator[str]:
    """Serve the page of a run on 127.0.0.1 during the block. Yields its address, which contains a token.

    Raises ClusterError if the page does not start.
    """
    child = ChildProcess("the page", ["-m", "zmqrl.page.beside"], {"run_dir": str(directory.path)})
    try:
        answer = child.hear(PAGE_UP_WITHIN_S)
        if answer is None:
            raise ClusterError(f"the page did not start within {PAGE_UP_WITHIN_S:g} s.")
        yield answer["url"]
    finally:
        child.kill()


def main() -> None:
    job = read_job(signal.SIGKILL)
    directory = RunDirectory(Path(job["run_dir"]))
    _log_to(directory.path / "logs" / "page.log")
    server = PageServer(directory.path, listen("127.0.0.1", None))
    Messages()  # ends this process when the parent hangs up
    say({"url": server.url})
    server.run()


def _log_to(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(log, 2)
    os.dup2(log, 1)
    log_to_stderr("zmqrl.page.beside")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
