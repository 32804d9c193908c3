"""Decides which requests the page answers: those of a browser that was opened with the printed address."""

import hashlib
import hmac
import html
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL: Final = ("127.0.0.1", "localhost", "[::1]")
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# After a redirect by status, a browser that came from another site would not send the strict cookie.
OPENED = (
    '<!doctype html><html lang="en"><meta http-equiv="refresh" content="0;url=./">'
    '<link rel="icon" href="static/icon.svg"><title>zmqrl</title></html>'
)


class Guard:
    """Answers only reading requests for the host names of this machine, from a browser that has the token.

    The token is in the address that zmqrl prints. The first answer puts it into a cookie, which scripts cannot read and
    other sites cannot use, and leads to the same page without the token. A host name that is not ``LOCAL`` or
    ``address`` is refused: a foreign site could have made its own name lead to this machine (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, token: str, address: str) -> None:
        self._app, self._token = app, token.encode()
        self._hosts = {*LOCAL, f"[{address}]" if ":" in address else address}
        # The pages on all ports of a machine share their cookies, so each page has a name of its own.
        self._cookie = f"zmqrl-{hashlib.sha256(self._token).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
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
        await (refused or self._app)(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers, path: str, query: bytes) -> Response | None:
        """The answer to a request that must not reach the application."""
        host = headers.get("host", "")
        if _without_port(host) not in self._hosts:
            sentence = f"this page does not answer for the host name {host!r}: use 127.0.0.1 or localhost.\n"
            return PlainTextResponse(sentence, 421)
        if method not in ("GET", "HEAD"):
            return PlainTextResponse("this page only shows runs: use GET.\n", 405, {"allow": "GET, HEAD"})
        given = parse_qs(query.decode("latin-1")).get("token", [])
        if path == "/" and given and self._is_token(given[0]):
            opened = HTMLResponse(OPENED)
            opened.set_cookie(self._cookie, self._token.decode(), httponly=True, samesite="strict")
            return opened
        if not self._is_token(_cookies(headers).get(self._cookie, "")):
            return HTMLResponse(_page("Open the address that zmqrl printed: it contains a token."), 403)
        return None

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(errors="surrogateescape"), self._token)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _cookies(headers: Headers) -> Mapping[str, str]:
    return cookie_parser("; ".join(headers.getlist("cookie")))


def _page(sentence: str) -> str:
    return f'<!doctype html><html lang="en"><title>zmqrl</title><p>{html.escape(sentence)}</p></html>\n'
