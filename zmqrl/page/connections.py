"""Limits the number of connections to the page."""

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS: Final = 100  # a browser opens about six


class FewConnections(H11Protocol):
    """Closes each new connection while there are ``MOST_CONNECTIONS`` others.

    Every user of the machine can connect. The server waits without a limit for the rest of a request. The part that
    has arrived, up to ``server.REQUEST_BYTES``, takes memory of a machine that may be training.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
