"""Measure how long the live page takes to open with many runs, and how much an open page slows down a run.

    sudo .venv/bin/python benchmarks/page.py [--runs 100] [--hours 1] [--rounds 3] [--browser] [--beside SECONDS]
        [--output DIR] [--page PAGE.md ...]

The benchmark first writes the files of the runs. In each round, it starts a new `zmqrl serve`, empties the file cache
of the machine, and asks for everything that a browser needs to draw its first curves. Only root can empty the cache.
Without root, the files stay in the cache, and the result says so. With --browser, the benchmark also measures how long
Chromium, without a window, takes to start, and then to draw the curves. It measures after how long the page has a new
run, and a new row of a run.

With --beside, it trains cartpole once, and compares parts of 10 s: without a page, with the list of runs open, and with
the timing of the run open, in turn, until each had SECONDS. The page has a server of its own, and gets the requests of
a browser, without a browser that would also use the cores.

The figures go to `results.json` in DIR, and as a table into its `README.md` and the pages of --page.
"""

import argparse
import contextlib
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import marked
from bench_lab import Run, begin, running

from zmqrl.recipes import breakout_ppo
from zmqrl.results.bootstrap import mean_interval

RESULTS: Final = Path(__file__).parent / "results/page"
DROP = Path("/proc/sys/vm/drop_caches")
DRAWN_AT_FIRST = 12  # runs whose curves the page draws, in zmqrl/page/static/runs.js
WORKERS = 16
PART_S: Final = 10.0  # of each view, before the next view is open
WARM_UP_S: Final = 10.0
WITHIN_S: Final = 60.0
POLL_S = 1.0  # the page repeats each request after this time, in zmqrl/page/static/api.js
STATIC = re.compile(r'(?:src|href)="(static/[^"]+)"')
IMPORT = re.compile(r'from "\./([^"]+)"')
DRAWN = "() => document.querySelectorAll('.uplot canvas').length > 0 && document.querySelectorAll('tbody tr').length"


def make_runs(root: Path, count: int, hours: float) -> int:
    """Write ``count`` runs of ``hours`` with a row each second. Returns the bytes of their metrics."""
    total = 0
    for seed in range(count):
        path, draw = root / f"breakout-{seed:03}", random.Random(seed)
        path.mkdir(parents=True)
        settings = breakout_ppo().to_json() | {"seed": seed, "run_dir": str(path), "workers": WORKERS}
        (path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        text = "".join(json.dumps(row(second, draw)) + "\n" for second in range(1, int(3600 * hours) + 1))
        total += (path / "metrics.jsonl").write_text(text, encoding="utf-8")
        ended = {"exit_reason": "minutes", "updates": 1, "agent_steps": 1, "wall_s": 3600 * hours, "episodes": 1}
        ended |= {"score_mean_50": 1.0, "contributions": {"used": 1}}
        (path / "summary.json").write_text(json.dumps(ended), encoding="utf-8")
    return total


def row(second: int, draw: random.Random) -> dict[str, Any]:
    """A row of metrics.jsonl with the keys of a real row, and about as long."""
    noise = draw.gauss(0.0, 1.0)
    ranks = {str(rank): round(draw.random() * second) for rank in range(WORKERS)}
    losses = ("policy_loss", "value_loss", "entropy", "loss", "grad_norm", "grad_norm_clipped", "approx_kl")
    spans = ("env_step", "act", "gradient", "encode", "push", "wait", "assemble")
    return {
        **{name: draw.random() for name in losses},
        "version": 20 * second,
        "wall_s": second + draw.random() / 100,
        "agent_steps": 4096 * second,
        "abandoned_steps": 0,
        "agent_steps_per_s": 4096 + 50 * noise,
        "updates_per_s": 20 + noise / 4,
        "score_mean_50": 400 * (1 - math.exp(-second / 1800)) + 5 * noise,
        "episodes": second,
        "gradients": 20 * WORKERS,
        "policy_lag": 1 + draw.random(),
        "policy_lag_min": 0.0,
        "policy_lag_max": 3.0,
        "contributions": {"used": 320 * second, "late": second, "duplicate": 0, "rejected": 0, "skipped": second},
        "late_by_rank": ranks,
        "skipped_by_rank": ranks,
        "missing_s": {rank: draw.random() for rank in ranks},
        "workers_present": WORKERS,
        "split_s": {name: draw.random() / 100 for name in spans},
        "learning_rate": 5e-4,
    }


def empty_cache() -> bool:
    """Empty the file cache of this machine. Returns whether that was possible."""
    try:
        os.sync()
        DROP.write_text("3")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def serving(root: Path) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """``zmqrl serve`` on a free port: its address and its process."""
    command = [sys.executable, "-m", "zmqrl", "serve", str(root), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.terminate()
        process.wait()


class Visit:
    """A browser without a window that has opened the printed address. It keeps the cookie and the connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._connection, self._base = HTTPConnection(parts.hostname, parts.port, timeout=120), parts.path
        self._headers = {"accept-encoding": "identity"}
        self.get(f"?{parts.query}")

    def get(self, path: str) -> bytes:
        """The answer to a request for ``path``, below the random path of the page."""
        status, body, _ = self.ask(path)
        assert status == 200, (path, status, body)
        return body

    def ask(self, path: str, known: str = "") -> tuple[int, bytes, str]:
        """The status, the body and the ETag of an answer. Status 304: the state is still that of the ETag ``known``."""
        headers = self._headers | ({"if-none-match": known} if known else {})
        self._connection.request("GET", self._base + path, headers=headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if cookie := answer.headers["set-cookie"]:
            self._headers["cookie"] = cookie.partition(";")[0]
        return answer.status, body, answer.headers["etag"] or ""

    def runs(self) -> list[dict[str, Any]]:
        """The runs in the table."""
        found: list[dict[str, Any]] = json.loads(self.get("api/runs"))["runs"]
        return found

    def charts(self, names: Sequence[str]) -> bytes:
        """The curves of these runs."""
        return self.get(f"api/charts?{urlencode({'run': names, 'x': 'minutes', 'fold': 'yes'}, doseq=True)}")


def open_page(url: str, server: "subprocess.Popen[str]") -> tuple[dict[str, float], dict[str, float], list[str]]:
    """Ask for everything that a browser asks for until it can draw curves.

    Returns the seconds of each part, the processor time of the server for each part, and the names of the files.
    """
    took_s, used_s = dict[str, float](), dict[str, float]()
    began_at, last_used_s = time.perf_counter(), processor_s(server)
    last_at = began_at

    def note(part: str) -> None:
        nonlocal last_at, last_used_s
        took_s[part], last_at = time.perf_counter() - last_at, time.perf_counter()
        used_s[part], last_used_s = processor_s(server) - last_used_s, processor_s(server)

    visit = Visit(url)  # the first answer only gives the cookie, and leads to the page
    asked = list(dict.fromkeys(STATIC.findall(visit.get("").decode())))
    for name in asked:  # modules import others
        text = visit.get(name).decode(errors="replace")
        asked += [found for each in IMPORT.findall(text) if (found := f"static/{each}") not in asked]
    note("files")
    runs = visit.runs()
    note("table")
    visit.charts([run["name"] for run in sorted(runs, key=lambda run: -run["begun_at"])[:DRAWN_AT_FIRST]])
    note("curves")
    return took_s | {"total": time.perf_counter() - began_at}, used_s, asked


def shown_after(root: Path, tries: int = 5) -> dict[str, float]:
    """The longest times until the table has a new run, and until the curves of a run have a new row, in seconds."""
    with serving(root) as (url, _):
        visit = Visit(url)
        waits = [waits_of_a_new_run(visit, root / f"new-{number}", (number + 0.5) / tries) for number in range(tries)]
    return dict(zip(("new run", "new row"), map(max, zip(*waits, strict=True)), strict=True))


def waits_of_a_new_run(visit: Visit, path: Path, phase: float) -> tuple[float, float]:
    """Write a run and a row of it. Returns the seconds until the page has each.

    The run is written at ``phase``, a share of the time between two requests for the table, and just after a request
    for curves, which also searches for new runs.
    """
    table, name = visit.runs(), f"{path.name}/breakout-000"
    time.sleep(phase * POLL_S)
    visit.charts([table[0]["name"]])
    make_runs(path, 1, 0.001)
    run_s = waited(lambda: name in [run["name"] for run in visit.runs()], (1 - phase) * POLL_S)
    before = visit.charts([name])
    with (path / "breakout-000" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row(10, random.Random(0))) + "\n")
    return run_s, waited(lambda: visit.charts([name]) != before, POLL_S)


def waited(is_shown: Callable[[], bool], first_s: float) -> float:
    """Ask after ``first_s``, and then as often as the page does, until the answer is yes. Returns the seconds."""
    began_at = time.perf_counter()
    time.sleep(first_s)
    while not is_shown():
        assert time.perf_counter() < began_at + WITHIN_S, "the page does not show what was written"
        time.sleep(POLL_S)
    return time.perf_counter() - began_at


def open_in_browser(root: Path) -> dict[str, float]:
    """Open the page in a Chromium that has just been started. Returns the seconds of each part."""
    from playwright.sync_api import sync_playwright

    with serving(root) as (url, _), sync_playwright() as driver:
        began_at = time.perf_counter()
        browser = driver.chromium.launch(executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"))
        page = browser.new_page()
        started_at = time.perf_counter()
        page.goto(url)
        page.wait_for_function(DRAWN)
        drawn_at = time.perf_counter()
        browser.close()
    return {"browser": started_at - began_at, "drawn": drawn_at - started_at}


def processor_s(process: "subprocess.Popen[str]") -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


VIEWS: Final[dict[str, Callable[[str], Sequence[str]]]] = {
    "no page": lambda run: (),
    "list of runs": lambda run: ("api/runs", f"api/charts?{urlencode({'run': run, 'x': 'minutes', 'fold': 'yes'})}"),
    "timing": lambda run: (f"api/run?{urlencode({'run': run})}", f"api/timing?{urlencode({'run': run})}"),
}
"""What an open page asks for again and again, for each view."""


def beside(root: Path, seconds: float) -> dict[str, list[dict[str, float]]]:
    """Train with each view open for ``seconds``. Returns the updates/s and the cores of the page, for each part."""
    rounds = math.ceil(seconds / PART_S)
    minutes = (rounds * len(VIEWS) * PART_S + 2 * WITHIN_S) / 60
    command = ["train", "cartpole", "--minutes", str(minutes), "--trackers"]
    found: dict[str, list[dict[str, float]]] = {view: [] for view in VIEWS}
    with serving(root) as (url, server), running(command, root / "run") as run:
        run.wait_for(lambda: run.row_after(WARM_UP_S), "row of metrics", WITHIN_S)
        for number in range(rounds):
            for view in [*VIEWS][number % len(VIEWS) :] + [*VIEWS][: number % len(VIEWS)]:
                found[view].append(part_beside(url, server, run, view))
                print(f"round {number + 1}, {view}: {found[view][-1]}", flush=True)
    return found


def part_beside(url: str, server: "subprocess.Popen[str]", run: Run, view: str) -> dict[str, float]:
    """Watch a view for ``PART_S``. Returns the updates/s of the run, and the cores that the page used."""
    paths = VIEWS[view](run.path.name)
    used_s, began_at, first = processor_s(server), time.perf_counter(), run.rows()[-1]
    visit, known = Visit(url), dict.fromkeys(paths, "")
    while (now := time.perf_counter()) < began_at + PART_S:
        for path in paths:
            status, _, known[path] = visit.ask(path, known[path])
            assert status in (200, 304), (path, status)
        time.sleep(max(POLL_S, 3 * (time.perf_counter() - now)))
    last = run.rows()[-1]
    cores = (processor_s(server) - used_s) / (time.perf_counter() - began_at)
    return {"updates_per_s": (last["version"] - first["version"]) / (last["wall_s"] - first["wall_s"]), "cores": cores}


def tables(results: Mapping[str, Any]) -> str:
    """The measurements as Markdown: the opening of the page, and the runs beside it."""
    rows = results["rows"]
    cache = "no file" if all(each["cold"] for each in rows) else "files"
    size = f"{results['runs']} runs of {results['hours']:g} h ({results['metrics_bytes'] / 1e6:.0f} MB of metrics)"
    drawn = min(DRAWN_AT_FIRST, results["runs"])
    parts = {
        "start of Chromium": [each["took_s"].get("browser") for each in rows],
        f"from opening the address until {drawn} curves appear": [each["took_s"].get("drawn") for each in rows],
        "all answers that this needs, without a browser": [each["took_s"]["total"] for each in rows],
        "processor time for the table of all runs": [each["processor_s"]["table"] for each in rows],
        "processor time for each drawn run": [each["processor_s"]["curves"] / drawn for each in rows],
    }
    lines = [f"| {size}, {cache} in the cache | median | lowest to highest |", "|---|---|---|"]
    lines += [
        f"| {part} | {_medians(seconds, '.2f', ' s')} |" for part, seconds in parts.items() if None not in seconds
    ]
    for what, seconds in results["shown_s"].items():
        lines.append(f"| a {what} appears, at the latest after | {seconds:.1f} s | |")
    if parts_of := results.get("beside"):
        rates = {view: [each["updates_per_s"] for each in measured] for view, measured in parts_of.items()}
        lines += ["", "| cartpole, with this open | updates/s | compared with no page | cores that the page used |"]
        lines.append("|---|---|---|---|")
        for view, measured in parts_of.items():
            used = statistics.median(each["cores"] for each in measured)
            compared = "-" if view == "no page" else _change(rates[view], rates["no page"])
            lines.append(f"| {view} | {statistics.median(rates[view]):.1f} | {compared} | {used:.3f} |")
    return "".join(f"{line}\n" for line in lines)


def _change(rates: Sequence[float], without: Sequence[float]) -> str:
    """The mean change of a rate over the rounds, and its 95 % interval."""
    changes = [rate / other - 1 for rate, other in zip(rates, without, strict=True)]
    low, high = mean_interval(changes)
    return f"{statistics.fmean(changes):+.1%} ({low:+.1%} to {high:+.1%})".replace("%", " %")


def _medians(figures: Sequence[float], form: str, unit: str = "") -> str:
    """Two cells: the median, and the lowest and highest figure."""
    cells = statistics.median(figures), min(figures), max(figures)
    median, low, high = (format(each, form) for each in cells)
    return f"{median}{unit} | {low} to {high}{unit}"


def main() -> None:
    """Make the runs, open their page several times, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--beside", type=float, default=0.0, help="seconds of each view beside a run")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, nargs="*", default=[], help="pages in which to replace the table")
    options = parser.parse_args()
    origin = begin(parser, options.output, *options.page)
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.output) as place:
        size = make_runs(Path(place), options.runs, options.hours)
        print(f"{options.runs} runs of {options.hours:g} h: {size / 1e6:.0f} MB of metrics", flush=True)
        for number in range(options.rounds):
            with serving(Path(place)) as (url, server):
                is_cold = empty_cache()
                took_s, used_s, asked = open_page(url, server)
            if options.browser:
                empty_cache()
                took_s |= open_in_browser(Path(place))
            rows.append({"cold": is_cold, "took_s": took_s, "processor_s": used_s, "files": asked})
            print(f"round {number + 1}, {'cold' if is_cold else 'files in the cache'}: {took_s}", flush=True)
        shown_s = shown_after(Path(place))
    results = {"runs": options.runs, "hours": options.hours, "metrics_bytes": size, "rows": rows, "shown_s": shown_s}
    if options.beside:
        with tempfile.TemporaryDirectory() as place:
            results["beside"] = beside(Path(place), options.beside)
    results["provenance"] = origin
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    marked.fill_readme(options.output, "page", tables(results))
    for page in options.page:
        marked.fill(page, "page", tables(results))
    print(tables(results))


if __name__ == "__main__":
    main()
