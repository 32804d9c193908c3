"""The page in a real browser: Chromium without a window, driven by Playwright."""

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import imageio.v2 as imageio
import numpy as np
import pytest
from support.page_rig import ServedPage, served_page, write_profile
from support.paths import TESTS
from support.profiles import synthetic_run
from support.record_rig import row, run_directory, summary

from zmqrl.observe.live.figures import LiveMetrics
from zmqrl.observe.live.presence import Presence
from zmqrl.process_id import worker_id
from zmqrl.rundir import RunDirectory, write_json

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.processes

AXE = TESTS / "axe"
WITHIN_S = 120.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VIEWS = (
    "#/",
    "#/run?run=pong-1",
    "#/run?run=pong-1&tab=timing",
    "#/run?run=pong-1&tab=logs",
    "#/run?run=pong-1&tab=settings",
    "#/settings?run=pong-1&run=pong-2",
)
# The number of pixels of a canvas that have the colour of its first curve.
DRAWN = """(canvas) => {
  const wanted = getComputedStyle(document.documentElement).getPropertyValue("--c0").trim();
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(wanted.slice(at, at + 2), 16));
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let found = 0;
  for (let i = 0; i < data.length; i += 4) {
    const difference = Math.abs(data[i] - r) + Math.abs(data[i + 1] - g) + Math.abs(data[i + 2] - b);
    if (difference < 30 && data[i + 3] > 200) found++;
  }
  return found;
}"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of Pong. The first has an evaluation, a video, a log and a profile of its times."""
    root = tmp_path_factory.mktemp("browser") / "runs"
    for seed in (1, 2):
        run_directory(
            root / f"pong-{seed}",
            [row(second, score_mean_50=float(seed * second), workers_present=3) for second in range(1, 200)],
            evaluations=[
                {"version": 900, "mean": 90.0, "ci95": [80.0, 100.0], "episodes": 50, "greedy": True},
                {"version": 950, "mean": 95.0, "ci95": [95.0, 95.0], "episodes": 1, "greedy": False, "seeds": [2**31]},
            ],
            seed=seed,
        )
    run = root / "pong-1"
    (run / "summary.json").write_text(json.dumps(summary(exit_reason="failed")))
    (run / "logs").mkdir()
    (run / "logs" / "supervisor.log").write_text(
        "2026-01-05 10:12:09 failed: worker-3 died\nThe first to fail was shard-1\n"
    )
    (run / "videos").mkdir()
    frames: list[Any] = [np.full((64, 64, 3), 4 * i, np.uint8) for i in range(40)]
    imageio.mimwrite(run / "videos" / "minute-001-v00000600.mp4", frames, fps=20, codec="libx264", macro_block_size=1)
    write_profile(run / "profile", synthetic_run(versions=80, worker_extra_s={("gradient", 2): 0.05}))
    return root


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[ServedPage]:
    with served_page(root) as served:
        yield served


@pytest.fixture(scope="module")
def page(
    served: ServedPage, need_modules: Callable[..., None], skip_or_fail: Callable[[str], NoReturn]
) -> "Iterator[Page]":
    """A browser that has opened the printed address. The browser collects errors of the page's scripts."""
    need_modules("playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        skip_or_fail(f"no browser can be found on the PATH: {', '.join(BROWSERS)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=1e3 * WITHIN_S)
        try:
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.set_default_timeout(1e3 * WITHIN_S)
            errors: list[str] = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.goto(served.url)
            page.wait_for_selector("#chart-score canvas")
            yield page
            assert errors == []
        finally:
            browser.close()


@pytest.fixture
def other() -> "Iterator[tuple[int, list[str]]]":
    """The port of another server, and the headers of the requests that it got."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(str(self.headers))
            self.send_response(204 if self.path == "/favicon.ico" else 200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def axe(install_packages: Callable[[Path], None]) -> str:
    """The script of axe-core. Installs the script unless the locked version is already installed."""
    package = AXE / "node_modules" / "axe-core"
    locked = json.loads((AXE / "package-lock.json").read_text())["packages"]["node_modules/axe-core"]["version"]
    about = package / "package.json"
    if about.exists() and json.loads(about.read_text())["version"] == locked:
        return (package / "axe.min.js").read_text(encoding="utf-8")
    install_packages(AXE)
    return (package / "axe.min.js").read_text(encoding="utf-8")


def show(page: "Page", view: str) -> None:
    page.goto(page.url.partition("#")[0] + view)
    page.wait_for_selector("main h1")


def hurry(page: "Page") -> None:
    """Make the page ask for news at once, as it does when its tab is shown again."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_the_token_leaves_the_address_bar(page: "Page", served: ServedPage) -> None:
    show(page, "#/")
    assert page.url == f"http://127.0.0.1:{served.port}{served.base}/#/"
    assert page.evaluate("document.cookie") == ""


def test_another_server_on_the_same_host_name_gets_no_cookie(page: "Page", other: "tuple[int, list[str]]") -> None:
    port, asked = other
    assert page.context.cookies()
    visit = page.context.new_page()
    visit.goto(f"http://127.0.0.1:{port}/", wait_until="domcontentloaded")
    visit.close()
    assert asked
    assert "cookie" not in " ".join(asked).lower()


def test_the_curves_of_the_chosen_runs_are_drawn(page: "Page") -> None:
    show(page, "#/")
    for name in ("score", "throughput", "workers", "policy_lag", "contributions"):
        canvas = page.wait_for_selector(f"#chart-{name} canvas")
        assert canvas is not None
        page.wait_for_function(f"(canvas) => ({DRAWN})(canvas) > 100", arg=canvas)
    legend = page.locator("#chart-score .u-legend .u-series:visible").all_inner_texts()
    assert len(legend) == 2  # minutes, and both seeds as one mean
    page.get_by_label("fold seeds into mean and spread").uncheck()
    page.wait_for_function("() => document.querySelector('#chart-score .u-legend').innerText.includes('pong-2')")
    page.get_by_label("agent steps", exact=True).check()
    page.wait_for_function("() => document.querySelector('#chart-score .u-legend').innerText.includes('agent steps')")
    page.get_by_label("draw pong-2").uncheck()
    page.wait_for_function("() => !document.querySelector('#chart-score .u-legend').innerText.includes('pong-2')")
    assert "pong-1: now 199" in (page.locator("#chart-score .u-wrap").get_attribute("aria-label") or "")


def test_the_legend_hides_a_line_with_its_band_and_its_evaluations(page: "Page") -> None:
    show(page, "#/")
    page.get_by_label("draw pong-2").check()
    page.get_by_label("fold seeds into mean and spread").check()
    page.wait_for_function("() => document.querySelector('#chart-score .plot')?.plot?.bands.length === 1")
    canvas = page.locator("#chart-score canvas").element_handle()
    label = page.locator("#chart-score .u-legend .u-series:visible th").nth(1)
    try:
        label.click()
        page.wait_for_function(f"(canvas) => ({DRAWN})(canvas) === 0", arg=canvas)
        shown = "document.querySelector('#chart-score .plot').plot.series.map((each) => each.show)"
        assert page.evaluate(shown) == [True, False, False, False]
    finally:
        label.click()
    page.wait_for_function(f"(canvas) => ({DRAWN})(canvas) > 100", arg=canvas)


def test_a_chart_draws_no_evaluation_outside_of_the_zoomed_part(page: "Page") -> None:
    """The evaluation at 1.5 minutes would be drawn over the labels of the axis."""
    show(page, "#/run?run=pong-1")
    page.wait_for_selector("#chart-score canvas")
    outside = page.evaluate(
        """() => new Promise((resolve) => {
            const { plot } = document.querySelector("#chart-score .plot");
            plot.setScale("x", { min: 1.6, max: 3.3 });
            requestAnimationFrame(() => {
                const { data } = plot.ctx.getImageData(0, 0, plot.bbox.left - 2, plot.ctx.canvas.height);
                const wanted = getComputedStyle(document.documentElement).getPropertyValue("--c0").trim();
                const colour = [1, 3, 5].map((at) => parseInt(wanted.slice(at, at + 2), 16));
                let found = 0;
                for (let i = 0; i < data.length; i += 4)
                    if (data[i + 3] > 200 && colour.every((level, at) => Math.abs(level - data[i + at]) < 10)) found++;
                resolve(found);
            });
        })"""
    )
    assert outside == 0


def test_draw_none_also_clears_the_runs_that_the_filter_hides(page: "Page") -> None:
    show(page, "#/")
    page.get_by_role("button", name="draw all shown").click()
    page.wait_for_selector("#chart-score canvas")
    page.get_by_label("filter").fill("pong-1")
    try:
        page.get_by_role("button", name="draw none").click()
        page.get_by_text("no run is chosen").wait_for()
    finally:
        page.get_by_label("filter").fill("")
    assert not page.get_by_label("draw pong-2").is_checked()
    page.get_by_role("button", name="draw all shown").click()
    page.wait_for_selector("#chart-score canvas")


def test_a_list_of_objects_is_shown_with_its_contents(page: "Page") -> None:
    shown = page.evaluate("async (value) => (await import('./static/dom.js')).setting(value)", [{"rank": 1}, "a", 2])
    assert shown == '{"rank":1}, a, 2'


def test_the_legend_counts_the_seeds_if_not_all_reach_the_end(page: "Page", tmp_path: Path) -> None:
    for seed, seconds in enumerate((40, 20)):
        run_directory(tmp_path / f"pong-{seed}", [row(second) for second in range(1, seconds)], seed=seed)
    with served_page(tmp_path) as served:
        visit = page.context.new_page()
        try:
            visit.set_default_timeout(1e3 * WITHIN_S)
            visit.goto(served.url)
            legend = visit.locator("#chart-score .u-legend .u-series:visible").nth(1)
            legend.get_by_text("pong (1 of 2 seeds at the end)").wait_for()
            assert "pong (1 of 2 seeds at the end): now 39" in (
                visit.locator("#chart-score .u-wrap").get_attribute("aria-label") or ""
            )
            plot = visit.locator("#chart-score .u-over")
            width = (plot.bounding_box() or {})["width"]
            for share, shown in ((0.75, "(1 of 2 seeds)"), (0.25, "")):
                plot.hover(position={"x": share * width, "y": 20})
                value = legend.locator(".u-value")
                visit.wait_for_function(
                    "([element, text]) => element.textContent.includes(text)", arg=[value.element_handle(), shown]
                )
                assert ("seeds" in value.inner_text()) == bool(shown)
        finally:
            visit.close()


def test_a_row_that_a_run_writes_is_shown(page: "Page", root: Path) -> None:
    show(page, "#/")
    directory = RunDirectory(root / "pong-2")
    directory.claim()
    try:
        directory.cluster.write_text("{}")
        with directory.metrics.open("a") as file:
            file.write(json.dumps(row(250)) + "\n")
        line = page.locator("tr", has_text="pong-2")
        line.get_by_text("running").wait_for()
        line.get_by_text("2,500").wait_for()
        directory.cluster.unlink()
    finally:
        directory.release()


def test_a_live_run_lists_its_lost_workers(page: "Page", root: Path) -> None:
    directory = RunDirectory(root / "pong-2")
    directory.claim()
    try:
        directory.cluster.write_text("{}")
        lost = Presence(process=worker_id(1), host="h2", state="lost", for_s=12.3)
        write_json(directory.live, LiveMetrics(row=row(250), about={}, processes=[lost], quorum=3).to_json())
        show(page, "#/run?run=pong-2")
        line = page.get_by_role("region", name="missing or late processes").locator("tbody tr")
        line.get_by_text("worker-1: lost 12 s ago").wait_for()
        assert line.locator("th").inner_text() == "h2"
        directory.cluster.unlink()
    finally:
        directory.release()
    line.wait_for(state="detached")


def test_the_first_run_of_an_empty_directory_is_drawn_as_it_grows(page: "Page", tmp_path: Path) -> None:
    with served_page(tmp_path) as served:
        visit = page.context.new_page()
        try:
            visit.set_default_timeout(1e3 * WITHIN_S)
            visit.goto(served.url)
            visit.get_by_text("0 runs, 0 running").wait_for()
            run = run_directory(tmp_path / "first", [row(1)])
            visit.wait_for_selector("#chart-score canvas")
            dots = "document.querySelector('#chart-score .plot').plot.series[1].points.show()"
            assert visit.evaluate(dots) is True  # a line needs two points
            with (run / "metrics.jsonl").open("a") as file:
                file.writelines(json.dumps(row(second)) + "\n" for second in range(2, 9))
            hurry(visit)
            visit.wait_for_function(f"() => {dots} === false")
        finally:
            visit.close()


def test_a_video_plays_beside_the_score_at_its_minute(page: "Page") -> None:
    show(page, "#/run?run=pong-1")
    page.get_by_role("button", name="minute 1.0").click()
    page.wait_for_function("() => document.querySelector('video')?.currentTime > 0.2")
    assert page.evaluate("document.querySelector('video').videoWidth") == 64
    # A click at the mark in the curve plays it, too.
    page.evaluate("document.querySelector('video').pause()")
    plot = page.locator("#chart-score .u-over")
    width = (plot.bounding_box() or {})["width"]
    plot.click(position={"x": width * 60 / 199, "y": 20})
    page.wait_for_function("() => !document.querySelector('video').paused")


def test_a_failed_run_says_why_it_ended_and_lists_its_evaluations(page: "Page") -> None:
    show(page, "#/run?run=pong-1")
    page.get_by_text("The first to fail was shard-1").wait_for()
    page.get_by_text("ended: failed").wait_for()
    lines = page.get_by_role("region", name="mean score of full games").locator("tbody tr")
    lines.first.wait_for()
    assert [line.split("\t")[3:] for line in lines.all_inner_texts()] == [
        ["90.0", "80.0 to 100.0", "50", "greedy"],
        ["95.0", "\u2013", "1", "sampled, for --stop-score"],
    ]


def test_the_slow_rank_is_marked_as_the_kth_worker(page: "Page") -> None:
    show(page, "#/run?run=pong-1&tab=timing")
    page.get_by_role("rowheader", name="rank 2 ◆").wait_for()
    assert page.locator(".strip td", has_text="◆").count() == 60
    told = page.locator(".strip tr", has_text="rank 2").locator("td").last.text_content() or ""
    assert re.fullmatch(r"version [\d,]+: [\d.]+ ms, K-th◆", told), told
    assert "gradient rank 2" in " ".join(page.locator("table.data").first.inner_text().split())
    page.get_by_role("rowheader", name="w2", exact=True).wait_for()


def test_a_cell_stands_out_even_between_two_ranks(page: "Page", root: Path) -> None:
    profile = synthetic_run(versions=80, workers=2, worker_extra_s={("gradient", 1): 0.05})
    write_profile(root / "pong-2" / "profile", profile)
    show(page, "#/run?run=pong-2&tab=timing")
    page.get_by_role("rowheader", name="rank 1 ◆").wait_for()
    found = page.evaluate(
        """() => {
            const [head, ...ranks] = document.querySelectorAll(".heat tr");
            const at = [...head.cells].findIndex((cell) => cell.textContent === "gradient");
            return ranks.map((rank) => getComputedStyle(rank.cells[at]).backgroundColor);
        }"""
    )
    alpha = [float(colour.rpartition(",")[2].rstrip(")")) for colour in found]
    assert alpha[0] == 0 < 0.1 < alpha[1], found


def test_a_chart_of_zeros_shows_no_values_below_zero(page: "Page", tmp_path: Path) -> None:
    run_directory(tmp_path / "run", [row(second, policy_lag=0.0, score_mean_50=0.0) for second in (1, 2, 3)])
    with served_page(tmp_path) as served:
        visit = page.context.new_page()
        try:
            visit.set_default_timeout(1e3 * WITHIN_S)
            visit.goto(served.url)
            for name, axis in (("policy_lag", [0, 1]), ("score", [-1, 1])):
                visit.wait_for_selector(f"#chart-{name} canvas")
                scale = f"(({{min, max}}) => [min, max])(document.querySelector('#chart-{name} .plot').plot.scales.y)"
                assert visit.evaluate(scale) == axis
        finally:
            visit.close()


def test_a_log_follows_the_process(page: "Page", root: Path) -> None:
    show(page, "#/run?run=pong-1&tab=logs")
    log = page.get_by_role("log")
    log.get_by_text("The first to fail").wait_for()
    with (root / "pong-1" / "logs" / "supervisor.log").open("a") as file:
        file.writelines(f"line {number}\n" for number in range(300))
    hurry(page)
    log.get_by_text("line 299").wait_for()
    page.wait_for_function(
        "() => (log => log.scrollTop + log.clientHeight > log.scrollHeight - 5)(document.querySelector('.log'))"
    )
    (root / "pong-1" / "logs" / "worker-0.log").write_text("<b>of the worker</b>\n")
    hurry(page)
    page.get_by_label("process").select_option("worker-0")
    log.get_by_text("<b>of the worker</b>").wait_for()  # text, not HTML
    assert log.locator("b").count() == 0


def test_a_reader_who_has_scrolled_up_stays_there_as_the_log_grows(page: "Page", root: Path) -> None:
    (root / "pong-1" / "hosts.json").write_text('{"hosts": [{"host": "h2", "processes": ["worker-7"]}], "given": null}')
    path = root / "pong-1" / "logs" / "worker-7.log"
    path.write_text("".join(f"line {number}\n" for number in range(300)))
    show(page, "#/run?run=pong-1&tab=logs")
    page.locator("option", has_text="worker-7 on h2").wait_for(state="attached")
    page.get_by_label("process").select_option("worker-7")
    log = page.get_by_role("log")
    log.get_by_text("line 299").wait_for()
    assert page.get_by_label("follow").is_checked()
    log.evaluate("(log) => { log.scrollTop = 100; }")
    page.wait_for_function("() => !document.querySelector('input[type=checkbox]').checked")
    with path.open("a") as file:
        file.write("the newest\n")
    hurry(page)
    log.get_by_text("the newest").wait_for()
    assert log.evaluate("(log) => log.scrollTop") == 100
    page.get_by_label("follow").check()
    assert log.evaluate("(log) => log.scrollTop + log.clientHeight > log.scrollHeight - 5")


def test_the_last_line_of_a_log_is_shown_before_it_ends(page: "Page", root: Path) -> None:
    path = root / "pong-2" / "logs" / "worker-0.log"
    path.parent.mkdir()
    path.write_text("begun\nout of mem")
    show(page, "#/run?run=pong-2&tab=logs")
    lines = page.get_by_role("log").locator("div")
    lines.get_by_text("out of mem").wait_for()
    with path.open("a") as file:
        file.write("ory\nend")
    hurry(page)
    lines.get_by_text("end", exact=True).wait_for()
    assert lines.all_inner_texts() == ["begun", "out of memory", "end"]


def test_new_times_do_not_move_what_the_user_has_scrolled(page: "Page", root: Path) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    try:
        show(page, "#/run?run=pong-1&tab=timing")
        page.wait_for_selector(".strip")
        newest, caption = (
            page.locator(".strip td").last.bounding_box(),
            page.locator(".strip caption span").bounding_box(),
        )
        for shown in (newest, caption):
            assert shown is not None
            assert shown["x"] >= 0
            assert shown["x"] + shown["width"] <= 400
        place = "document.querySelector('.strip').parentElement"
        page.evaluate(
            f"() => {{ const place = {place}; place.scrollLeft = 50; place.focus(); place.dataset.old = 'yes'; }}"
        )
        os.utime(next((root / "pong-1" / "profile").iterdir()), (1e9, 1e9))
        hurry(page)
        page.wait_for_function(f"() => !{place}.dataset.old")
        assert page.evaluate(f"[{place}.scrollLeft, {place} === document.activeElement]") == [50, True]
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})


def test_a_request_without_a_good_answer_is_told_until_it_has_one(page: "Page") -> None:
    """The answers to other requests do not hide it."""
    visit = page.context.new_page()  # errors of other pages are not collected
    try:
        visit.set_default_timeout(1e3 * WITHIN_S)
        visit.goto(page.url.partition("#")[0])
        visit.wait_for_selector("#chart-score canvas")

        def told(text: str) -> None:
            """Wait until the status line has this text."""
            visit.wait_for_function("(text) => document.getElementById('status').textContent === text", arg=text)

        told("live")
        visit.route("**/api/charts*", lambda route: route.fulfill(status=500, body="no charts today"))
        hurry(visit)
        told("no charts today")
        visit.evaluate(
            """() => {
                const status = document.getElementById("status");
                window.told = [];
                new MutationObserver(() => told.push(status.textContent)).observe(status, { childList: true });
            }"""
        )
        for _ in range(3):
            with visit.expect_response("**/api/runs*"):
                hurry(visit)
        visit.unroute("**/api/charts*")
        hurry(visit)
        told("live")
        assert visit.evaluate("told") == ["live"]
        visit.route("**/api/charts*", lambda _: None)  # as if the connection were cut
        hurry(visit)
        told("no answer yet: the figures may be old")
    finally:
        visit.close()


def test_the_heads_of_columns_are_above_their_texts(page: "Page") -> None:
    show(page, "#/")
    page.wait_for_selector("#chart-score canvas")
    aligned = page.evaluate(
        """() => {
            const rows = [...document.querySelectorAll(".runs tr")].slice(0, 2);
            return rows.map((row) => [...row.cells].map((cell) => getComputedStyle(cell).textAlign));
        }"""
    )
    assert aligned[0] == aligned[1]
    assert aligned[0][1:4] == ["left", "left", "right"]


def test_charts_and_times_say_that_they_are_loading(page: "Page") -> None:
    visit = page.context.new_page()
    try:
        visit.set_default_timeout(1e3 * WITHIN_S)
        visit.route("**/api/charts*", lambda _: None)
        visit.route("**/api/timing*", lambda _: None)
        for view, place in (
            ("#/", ".charts"),
            ("#/run?run=pong-1", ".charts"),
            ("#/run?run=pong-1&tab=timing", "div:not(.charts)"),
        ):
            visit.goto(page.url.partition("#")[0] + view)
            visit.locator(f"{place} > p").get_by_text("loading", exact=True).wait_for()
    finally:
        visit.close()


def test_an_answer_about_another_axis_than_the_chosen_one_is_not_shown(page: "Page") -> None:
    """The user chooses agent steps while the answer with minutes is on its way."""
    visit, waiting = page.context.new_page(), list[Any]()
    try:
        visit.set_default_timeout(1e3 * WITHIN_S)
        visit.route("**/api/charts*", lambda route: waiting.append(route))
        with visit.expect_request("**/api/charts?*x=minutes*"):
            visit.goto(page.url.partition("#")[0] + "#/run?run=pong-1")
        visit.get_by_label("agent steps", exact=True).check()
        with visit.expect_request("**/api/charts?*x=agent_steps*"):
            waiting[0].continue_()
        assert visit.locator(".u-legend").count() == 0, "the minutes are shown as agent steps"
        waiting[-1].continue_()
        visit.wait_for_function("() => document.querySelector('.u-legend')?.innerText.includes('agent steps')")
    finally:
        visit.close()


def test_the_settings_of_two_runs_are_side_by_side(page: "Page") -> None:
    show(page, "#/settings?run=pong-1&run=pong-2")
    cells = page.locator("tr", has_text="seed").locator("th, td")
    cells.first.wait_for()
    assert cells.all_inner_texts() == ["seed", "1", "2"]
    page.get_by_label("only settings that differ").uncheck()
    page.get_by_role("rowheader", name="envs.num_envs").wait_for()


def test_the_keyboard_reaches_everything(page: "Page") -> None:
    show(page, "#/")
    page.reload()
    page.wait_for_selector("#chart-score canvas")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("[document.activeElement.id, location.hash]") == ["main", "#/"]
    seen: list[Any] = []
    for _ in range(20):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
        )
    assert {"draw pong-1", "pong-1", "draw pong-2", "pong-2", "runs"} <= set(seen)
    page.get_by_label("draw pong-1").focus()
    before = page.get_by_label("draw pong-1").is_checked()
    page.keyboard.press("Space")
    assert page.get_by_label("draw pong-1").is_checked() != before
    page.keyboard.press("Space")


@pytest.mark.parametrize("view", VIEWS)
def test_a_narrow_screen_needs_no_sideways_scrolling(page: "Page", view: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    try:
        show(page, view)
        page.wait_for_selector("canvas, table, .log")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize(
    ("scheme", "rules"),
    [
        ("light", None),
        ("dark", ["color-contrast", "link-in-text-block"]),
        pytest.param("dark", None, marks=pytest.mark.slow),
    ],
)
def test_axe_finds_no_violations(page: "Page", axe: str, scheme: Any, rules: list[str] | None) -> None:
    page.emulate_media(color_scheme=scheme)
    page.evaluate(f"{axe}; null")  # evaluated by the browser itself: the page allows no other scripts
    options = {"resultTypes": ["violations"], **({"runOnly": rules} if rules else {})}
    for view in VIEWS:
        show(page, view)
        page.wait_for_selector("canvas, table, .log")
        found = page.evaluate("(options) => axe.run(options)", options)
        told = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
        assert told == [], view
    page.emulate_media(color_scheme="light")
