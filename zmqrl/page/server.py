"""Serves the page on one address of this machine."""

import errno
import ipaddress
import os
import secrets
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zmqrl.errors import ClusterError, UsageError, cannot_listen, require, unfit_part
from zmqrl.process import LOOK_UP_EVERY_S

if TYPE_CHECKING:
    from starlette.applications import Starlette

PORT: Final = 8470
TOKEN_BYTES = 24
BASE_BYTES = 12
CLOSE_WITHIN_S = 1.0
ASKED_WITHIN_S = 5.0  # by an open page, unless answers are slow
REQUEST_BYTES = 1 << 20  # one request names all runs of a chart: 500 names can have 2 KB each


def listen(address: str, port: int | None) -> socket.socket:
    """A socket on ``address`` and ``port``. Default: ``PORT``, or any free port if it is in use. Raises UsageError."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        raise UsageError(f"--address {address}: must be an IP address.") from None
    own = getattr(known, "ipv4_mapped", None) or known
    require(not own.is_unspecified, f"--address {address} would listen on every network: use one address.")
    require(0 <= (port or 0) < 65536, f"--port {port}: must be from 0 to 65535.")
    family = socket.AF_INET6 if known.version == 6 else socket.AF_INET
    for each in (PORT, 0) if port is None else (port,):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, each))
            listener.listen()
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and port is None and each:
                continue
            what = unfit_part(error)
            raise UsageError(f"--{what}: {cannot_listen(error, address, each)}: choose another {what}.") from error
        return listener
    raise AssertionError("port 0 is never in use")


class PageServer:
    """Serves the runs at and below ``root`` at ``url``, which contains a random path and the token."""

    def __init__(self, root: Path, listener: socket.socket) -> None:
        self._root, self._listener = root, listener
        self._app: Starlette | None = None
        address, self.port = listener.getsockname()[:2]
        self._address, self._token = address, secrets.token_urlsafe(TOKEN_BYTES)
        self._base = f"/{secrets.token_urlsafe(BASE_BYTES)}/"
        self.host = f"[{address}]" if ":" in address else address
        self.url = f"http://{self.host}:{self.port}{self._base}?token={self._token}"

    def is_watched(self) -> bool:
        """Whether a page in a browser has asked for something within the last seconds."""
        return self._app is not None and time.monotonic() - self._app.state.asked_at < ASKED_WITHIN_S

    def run(self) -> None:
        """Serve until a signal, such as Ctrl-C, raises an exception. Call this in the main thread.

        The process then ends within ``CLOSE_WITHIN_S``, even if the thread of an answer hangs. The page runs at a low
        priority, so as not to slow down runs. Raises ClusterError if the server fails.
        """
        import uvicorn  # takes 0.25 s, and only the page needs it

        from zmqrl.page.access import FewConnections
        from zmqrl.page.app import make_app

        os.nice(10)
        self._app = app = make_app(self._root, token=self._token, base=self._base, address=self._address)
        settings = uvicorn.Config(
            app,
            loop="asyncio",
            http=FewConnections,
            h11_max_incomplete_event_size=REQUEST_BYTES,
            access_log=False,
            server_header=False,
            date_header=False,
            log_level="error",  # a warning for each invalid request would let other users fill a log
            lifespan="off",
            ws="none",
        )
        server = uvicorn.Server(settings)
        over = threading.Event()  # after Ctrl-C in Thread.join, Python 3.11 takes a living thread for dead

        def serve() -> None:
            try:
                server.run([self._listener])
            finally:
                over.set()

        try:
            threading.Thread(target=serve, name="page", daemon=True).start()
            while not over.wait(LOOK_UP_EVERY_S):
                pass
            raise ClusterError("the server of the page failed: start the page again.")
        finally:
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not disturb the end
            server.should_exit = True
            if not over.wait(CLOSE_WITHIN_S):
                os._exit(128 + signal.SIGINT)  # otherwise, the interpreter would wait for the threads of all answers
