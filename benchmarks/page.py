"""Measure how long the live page takes to open with many runs, from the first request to the data of its curves.

    sudo .venv/bin/python benchmarks/page.py [--runs 100] [--hours 1] [--rounds 3] [--browser] [--output DIR]

The benchmark first writes the files of the runs. In each round, it starts a new `zmqrl serve` and empties the file
cache of the machine. Only root can empty the cache. Without root, the files stay in the cache, and the result says so.
With --browser, the benchmark also measures how long Chromium, without a window, takes to draw the curves. At the end,
it measures after how long the page has a new run, and a new row of a run. The figures go to `results.json` in DIR.
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
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from zmqrl.observe.provenance import provenance
from zmqrl.recipes import breakout_ppo

DROP = Path("/proc/sys/vm/drop_caches")
DRAWN_AT_FIRST = 12  # runs whose curves the page draws, in zmqrl/page/static/runs.js
WORKERS = 16
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
        self._connection.request("GET", self._base + path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (path, answer.status, body)
        if cookie := answer.headers["set-cookie"]:
            self._headers["cookie"] = cookie.partition(";")[0]
        return body

    def runs(self) -> list[dict[str, Any]]:
        """The runs in the table."""
        found: list[dict[str, Any]] = json.loads(self.get("api/runs"))["runs"]
        return found

    def charts(self, names: Sequence[str]) -> bytes:
        """The curves of these runs."""
        return self.get(f"api/charts?{urlencode({'run': names, 'x': 'minutes', 'fold': 'yes'}, doseq=True)}")


def open_page(url: str) -> tuple[dict[str, float], list[str]]:
    """Ask for everything that a browser asks for until it can draw curves.

    Returns the seconds of each part, and the names of the files.
    """
    took_s: dict[str, float] = {}
    began_at = last_at = time.perf_counter()

    def note(part: str) -> None:
        nonlocal last_at
        took_s[part], last_at = time.perf_counter() - last_at, time.perf_counter()

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
    return took_s | {"total": time.perf_counter() - began_at}, asked


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


def main() -> None:
    """Make the runs, open their page several times, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("page"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.output) as place:
        size = make_runs(Path(place), options.runs, options.hours)
        print(f"{options.runs} runs of {options.hours:g} h: {size / 1e6:.0f} MB of metrics", flush=True)
        for number in range(options.rounds):
            with serving(Path(place)) as (url, process):
                is_cold, started_s = empty_cache(), processor_s(process)
                took_s, asked = open_page(url)
                used_s = processor_s(process) - started_s
            if options.browser:
                empty_cache()
                took_s |= open_in_browser(Path(place))
            rows.append({"cold": is_cold, "took_s": took_s, "processor_s": used_s, "files": asked})
            print(f"round {number + 1}, {'cold' if is_cold else 'files in the cache'}: {took_s}", flush=True)
        shown_s = shown_after(Path(place))
    median_s = {part: statistics.median(each["took_s"][part] for each in rows) for part in rows[0]["took_s"]}
    print("median: " + ", ".join(f"{part} {seconds:.2f} s" for part, seconds in median_s.items()))
    print("longest: " + ", ".join(f"{what} after {seconds:.2f} s" for what, seconds in shown_s.items()))
    about = {"runs": options.runs, "hours": options.hours, "metrics_bytes": size}
    found = {**about, "rows": rows, "median_s": median_s, "shown_s": shown_s, "provenance": provenance()}
    (options.output / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
