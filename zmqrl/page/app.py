"""The HTTP requests of the page."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Hashable
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from zmqrl.json_lines import nulled
from zmqrl.observe.records import differing
from zmqrl.page.access import AccessCheck
from zmqrl.page.charts import ChartAxis, charts
from zmqrl.page.following import follow
from zmqrl.page.runs import VIDEOS, Runs, UnknownRun, files_in, logs, stamp, text_of
from zmqrl.page.timing import read_timing
from zmqrl.words import counted

STATIC: Final = Path(__file__).with_name("static")
TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MOST_RUNS = 500  # in one chart
OFFSET_DIGITS = 20  # more than an offset in a file can have


def make_app(root: Path, *, token: str, base: str, address: str) -> Starlette:
    """The application that shows the runs at and below ``root``. All its paths begin with ``base``.

    ``state.asked_at`` is the time of the last accepted request, on the clock ``time.monotonic``.
    """
    page = Page(Runs(root))
    # Videos are not compressed: a browser asks for ranges of their bytes.
    compressed = [Middleware(GZipMiddleware, minimum_size=1000, compresslevel=4)]
    texts = {
        "/": page.static,
        "/static/{name:path}": page.static,
        "/api/runs": page.runs,
        "/api/charts": page.charts,
        "/api/run": page.run,
        "/api/timing": page.timing,
        "/api/log": page.log,
        "/api/settings": page.settings,
    }
    routes = [
        Route("/video", page.video),
        *(Route(path, text, middleware=compressed) for path, text in texts.items()),
    ]
    app = Starlette(
        routes=[Mount(base, routes=routes)],
        middleware=[Middleware(AccessCheck, token=token, base=base, address=address)],
        exception_handlers={UnknownRun: _gone, OSError: _gone},
    )
    app.state.asked_at = -inf
    return app


class Page:
    """Answers requests. Starlette calls these methods in threads."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        files = (path for path in STATIC.rglob("*") if path.is_file())
        self._static = {str(path.relative_to(STATIC)): path.read_bytes() for path in files}

    def static(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        content = self._static.get(name)
        if content is None:
            raise HTTPException(404, f"there is no {name}.")
        tag = hashlib.sha256(content).hexdigest()[:16]
        kind = TYPES.get(Path(name).suffix, "text/plain")
        return _unless_known(request, tag, lambda: Response(content, media_type=kind))

    def runs(self, request: Request) -> Response:
        return _json(request, None, lambda: {"root": str(self._runs.root), "runs": list(self._runs.overviews())})

    def charts(self, request: Request) -> Response:
        """The curves of the chosen runs. Runs that are gone are left out."""
        names, runs = self._named(request), self._runs
        stamps: dict[str, Hashable] = {}
        for name in names:
            with contextlib.suppress(UnknownRun):
                stamps[name] = runs.stamp(name)
        if not stamps:
            raise UnknownRun(names[0])
        x: ChartAxis = "agent_steps" if request.query_params.get("x") == "agent_steps" else "minutes"
        fold = request.query_params.get("fold") != "no"
        known, changed = list(stamps), tuple(stamps.items())
        return _json(request, changed, lambda: charts(known, [runs.record(name) for name in known], x, fold=fold))

    def run(self, request: Request) -> Response:
        (name,) = self._named(request, 1)
        return _json(request, None, lambda: self._runs.details(name))

    def timing(self, request: Request) -> Response:
        """The heat map, the blame table and the hosts of one run."""
        (name,) = self._named(request, 1)
        run = self._runs.find(name)
        changed = tuple(map(stamp, files_in(run.profile)))

        def read() -> dict[str, Any]:
            record = self._runs.record(name)
            shards, asynchronous = record.shards, record.is_asynchronous
            return self._runs.kept(
                "timing", name, changed, lambda: read_timing(run.profile, shards=shards, asynchronous=asynchronous)
            )

        return _json(request, (name, changed), read)

    def log(self, request: Request) -> Response:
        """The lines that a process has added to its log since the last request."""
        (name,) = self._named(request, 1)
        process = request.query_params.get("process", "")
        found = logs(self._runs.find(name).path)
        if process not in found:
            raise HTTPException(404, f"{name} has no log of {process}.")
        after = request.query_params.get("after", "")
        lines = follow(found[process], int(after) if after.isdecimal() and len(after) < OFFSET_DIGITS else None)
        return _json(request, None, lambda: lines | {"process": process})

    def settings(self, request: Request) -> Response:
        """The settings of runs side by side, and the names of those that differ."""
        names = self._named(request)
        runs = [self._runs.record(name) for name in names]
        settings = sorted(set().union(*(run.settings for run in runs)))
        return _json(
            request,
            None,
            lambda: {
                "runs": names,
                "differ": list(differing(runs)),
                "settings": {name: [run.settings.get(name) for run in runs] for name in settings},
            },
        )

    def video(self, request: Request) -> Response:
        """A video, or the part that the browser asks for."""
        (name,) = self._named(request, 1)
        wanted = request.query_params.get("name", "")
        for path in files_in(self._runs.find(name).path / "videos"):
            if text_of(path.name) == wanted and path.suffix in VIDEOS:
                kind, headers = VIDEOS[path.suffix], {"cache-control": "private, no-cache"}
                return FileResponse(path, media_type=kind, headers=headers, stat_result=path.stat())
        raise HTTPException(404, f"{name} has no video {wanted}.")

    def _named(self, request: Request, count: int | None = None) -> list[str]:
        names = list(dict.fromkeys(request.query_params.getlist("run")))
        if not 1 <= len(names) <= (count or MOST_RUNS):
            wanted = "1 run" if count == 1 else f"1 to {counted(count or MOST_RUNS, 'run')}"
            raise HTTPException(400, f"choose {wanted}, not {len(names)}.")
        return names


def _gone(request: Request, error: Exception) -> Response:
    """The answer for a run that does not exist, or that was deleted during the request."""
    what = f"there is no run {error.args[0]}" if isinstance(error, UnknownRun) else f"the run cannot be read: {error}"
    return PlainTextResponse(f"{what}.", 404)


def _json(request: Request, changed: Hashable, make: Callable[[], Any]) -> Response:
    """An answer in JSON. With ``changed``, it is made only if the browser does not have this state yet."""
    if changed is not None:
        tag = hashlib.sha256(repr((request.url.query, changed)).encode()).hexdigest()[:16]
        return _unless_known(request, tag, lambda: _as_json(make()))
    made = _as_json(make())
    return _unless_known(request, hashlib.sha256(made.body).hexdigest()[:16], lambda: made)


_dumps = partial(json.dumps, allow_nan=False, separators=(",", ":"))


def _as_json(found: Any) -> Response:
    try:
        text = _dumps(found)
    except ValueError:  # a number that is not finite
        text = _dumps(nulled(found))
    return Response(text, media_type="application/json")


def _unless_known(request: Request, tag: str, make: Callable[[], Response]) -> Response:
    etag = f'W/"{tag}"'
    headers = {"etag": etag, "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    answer = make()
    answer.headers.update(headers)
    return answer
