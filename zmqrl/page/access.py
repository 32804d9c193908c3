"""Decides which connections and requests the page accepts.

It answers the requests of a browser that was opened with the printed address.
"""

import asyncio
import hmac
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS: Final = 100  # a browser opens about six
COOKIE: Final = "zmqrl"
LOCAL: Final = ("127.0.0.1", "localhost", "[::1]")
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# A browser that came from another site would not send the strict cookie after a redirect with a 3xx status.
OPENED = (
    '<!doctype html><html lang="en"><meta http-equiv="refresh" content="0;url=./">'
    '<link rel="icon" href="static/icon.svg"><title>zmqrl</title></html>'
)


class AccessCheck:
    """Answers only GET and HEAD requests for the host names of this machine, from a browser that has the token.

    The token is in the address that zmqrl prints. The first answer gives the browser a cookie, and leads to the same
    page without the token. Scripts cannot read the cookie, and other sites cannot use it. Host names other than
    ``LOCAL`` and ``address`` are refused: another site can make its own name point to this machine (DNS rebinding).

    A browser sends a cookie to every port of a host name. To keep the cookie from other servers, all paths begin with
    ``base``, a random path that starts and ends with a slash, and the cookie is valid only there. The token cannot be
    computed from the cookie.
    """

    def __init__(self, app: ASGIApp, *, token: str, base: str, address: str) -> None:
        self._app, self._base, self._token = app, base, token
        self._hosts = {*LOCAL, f"[{address}]" if ":" in address else address}
        self._proof = hmac.digest(token.encode(), b"cookie", "sha256").hex()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # an application without web sockets
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refused = self._refusal(scope["method"], Headers(scope=scope), scope["path"], scope["query_string"])
        if refused is None:
            scope["app"].state.asked_at = time.monotonic()
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers, path: str, query: bytes) -> Response | None:
        """The answer to a request that must not reach the application."""
        host = headers.get("host", "")
        if _without_port(host) not in self._hosts:
            sentence = f"this page does not answer for the host name {host!r}: use 127.0.0.1 or localhost.\n"
            return PlainTextResponse(sentence, 421)
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("this page only shows runs: use GET.\n", 405, {"allow": "GET, HEAD"})
        below = _same(path[: len(self._base)], self._base)
        if below and len(path) == len(self._base):  # only at the secret path: a stranger's long query is not parsed
            given = parse_qs(query.decode("latin-1")).get("token", [])
            if given and _same(given[0], self._token):
                opened = HTMLResponse(OPENED)
                opened.set_cookie(COOKIE, self._proof, path=self._base, httponly=True, samesite="strict")
                return opened
        if not (below and _same(_cookies(headers).get(COOKIE, ""), self._proof)):
            return PlainTextResponse("open the address that zmqrl printed: it contains a token.\n", 403)
        return None


class FewConnections(H11Protocol):
    """Closes each new connection while there are ``MOST_CONNECTIONS`` others.

    Every user of the machine can connect. The server waits without a limit for the rest of a request. The part that
    has arrived, up to ``server.REQUEST_BYTES``, takes memory of a machine that may be training.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()


def _same(text: str, secret: str) -> bool:
    """Whether ``text`` equals ``secret``, in a time that does not show how much of ``text`` is right."""
    return hmac.compare_digest(text.encode(errors="surrogateescape"), secret.encode())


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _cookies(headers: Headers) -> Mapping[str, str]:
    return cookie_parser("; ".join(headers.getlist("cookie")))
