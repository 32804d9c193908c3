"""The page's HTTP answers: who gets an answer, and what it contains. Each test talks to a real ``zmqrl serve``."""

import asyncio
import contextlib
import hmac
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from starlette.applications import Starlette
from starlette.types import Message, Scope
from support.page_rig import WITHIN_S, Answer, ServedPage, served_page
from support.record_rig import row, run_directory, summary
from support.rig import ending, eventually, is_alive

from zmqrl.child_process import ChildProcess
from zmqrl.errors import UsageError
from zmqrl.page import beside, server
from zmqrl.page.access import MOST_CONNECTIONS
from zmqrl.page.app import MOST_RUNS, make_app
from zmqrl.page.beside import page_beside
from zmqrl.page.runs import Runs, UnknownRun
from zmqrl.page.server import listen
from zmqrl.rundir import RunDirectory
from zmqrl.supervisor import run

pytestmark = pytest.mark.processes
VIDEO = bytes(range(256)) * 40
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page") / "runs"
    for seed in (1, 2):
        run = run_directory(root / f"seed-{seed}", [row(1), row(2)], seed=seed, summary=summary())
    (run / "videos").mkdir()
    (run / "videos" / "v00000010.mp4").write_bytes(VIDEO)
    (run / "logs").mkdir()
    (run / "logs" / "worker-0.log").write_text("alone\n")
    bad = run_directory(root / os.fsdecode(b"bad\xff"), [row(1), row(2)], seed=3, summary=summary())
    for directory, name, content in (("logs", b"w\xff.log", b"bad\n"), ("videos", b"v\xff.mp4", VIDEO)):
        (bad / directory).mkdir()
        (bad / directory / os.fsdecode(name)).write_bytes(content)
    (root.parent / "secret.mp4").write_text("secret")
    (run / "videos" / "link.mp4").symlink_to(root.parent / "secret.mp4")
    return root


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[ServedPage]:
    with served_page(root) as page:
        page.open()
        yield page


def test_the_printed_address_gives_a_cookie_that_no_script_and_no_other_site_can_use(page: ServedPage) -> None:
    token = parse_qs(urlsplit(page.url).query)["token"][0]
    answer = page.ask(f"/?token={token}", cookie="")
    assert answer.status == 200
    assert b'http-equiv="refresh" content="0;url=./"' in answer.body  # the token leaves the address bar
    attributes = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict"} <= attributes
    assert f"Path={page.base}/" in answer.headers["set-cookie"]  # not for other servers on this host name
    assert len(page.base) > 16
    assert token not in str(answer.headers)  # the cookie holds a value that is computed from the token
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_every_start_has_a_new_path_and_a_new_token(root: Path) -> None:
    with listen("127.0.0.1", 0) as listener:
        first, second = (urlsplit(server.PageServer(root, listener).url) for _ in range(2))
    assert first.path != second.path
    assert first.query != second.query
    assert min(len(part) for each in (first, second) for part in (each.path, each.query)) > 16


@pytest.mark.parametrize("path", ["/", "/?token=wrong", "/?token=", "/api/runs", "/static/page.js", "/video", "/none"])
def test_without_the_token_nothing_is_answered(page: ServedPage, path: str) -> None:
    name, token = page.cookie.partition("=")[0], page.url.partition("token=")[2]
    for cookie in ("", page.cookie + "x", f"{name}=", f"{name}={token}"):
        assert_refused(page.ask(path, cookie=cookie))


@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/page.js"])
def test_only_the_path_of_the_printed_address_is_answered(page: ServedPage, path: str) -> None:
    for base in ("", "/api", page.base[:-1], page.base + "x", "/" + page.base):
        assert_refused(page.ask(path, base=base))
        assert_refused(page.ask(f"{path}?{urlsplit(page.url).query}", base=base, cookie=""))
    assert_refused(page.ask(""))


def assert_refused(answer: Answer) -> None:
    assert answer.status == 403
    assert b"token" in answer.body
    assert b"<" not in answer.body  # a page that is already open shows this text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.2", "x"])
def test_a_foreign_host_name_is_refused_even_with_the_cookie(page: ServedPage, host: str) -> None:
    assert page.ask("/api/runs", host=host).status == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1:80", "[::1]:8470"])
def test_a_forwarded_port_is_accepted(page: ServedPage, host: str) -> None:
    assert page.ask("/api/runs", host=host).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_page_only_reads(page: ServedPage, method: str) -> None:
    assert page.ask("/api/runs", method=method).status == 405


def test_a_browser_may_load_only_what_the_page_itself_serves(page: ServedPage) -> None:
    for path in ("/", "/api/runs", "/video?run=seed-2&name=v00000010.mp4", "/none"):
        headers = page.ask(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static//etc/passwd",
        "/api/run?run=..",
        "/api/run?run=../runs/seed-1",
        "/api/run?run=/etc",
        "/api/log?run=seed-2&process=../metrics",
        "/api/log?run=seed-2&process=/etc/passwd",
        "/video?run=seed-2&name=../config.json",
        "/video?run=seed-2&name=../../../secret.mp4",
        "/video?run=seed-2&name=link.mp4",
        "/video?run=..&name=secret.mp4",
        "/api/settings?run=seed-1&run=none",
    ],
)
def test_no_path_leads_out_of_the_runs(page: ServedPage, path: str) -> None:
    answer = page.ask(path)
    assert answer.status == 404
    assert b"secret" not in answer.body.replace(b"secret.mp4", b"")


def test_a_request_without_a_run_is_refused(page: ServedPage) -> None:
    assert page.ask("/api/run").status == 400
    assert page.ask("/api/run?run=seed-1&run=seed-2").status == 400


def test_all_runs_are_listed_with_their_newest_figures(page: ServedPage, root: Path) -> None:
    found = page.json("runs")
    assert found["root"] == str(root)
    assert [(run["name"], run["version"], run["exit_reason"]) for run in found["runs"]] == [
        (r"bad\xff", 60, "updates"),
        ("seed-1", 60, "updates"),
        ("seed-2", 60, "updates"),
    ]


def test_seeds_are_folded_and_settings_are_side_by_side(page: ServedPage) -> None:
    charts = page.json("charts", run=["seed-1", "seed-2"], x="agent_steps")
    assert [group["runs"] for group in charts["groups"]] == [["seed-1", "seed-2"]]
    assert charts["x"][-1] == 2000
    settings = page.json("settings", run=["seed-1", "seed-2"])
    assert "seed" in settings["differ"]
    assert settings["settings"]["seed"] == [1, 2]


def test_a_run_that_is_gone_hides_the_curves_of_no_other_run(page: ServedPage) -> None:
    found = page.json("charts", run=["none", "seed-1"], fold="no")
    assert [group["runs"] for group in found["groups"]] == [["seed-1"]]
    assert page.ask("/api/charts?run=none").status == 404


def test_names_that_are_not_utf8_can_be_asked_for(page: ServedPage) -> None:
    bad = page.json("runs")["runs"][0]["name"]
    found = page.json("charts", run=[bad, "seed-1"], fold="no")
    assert [group["runs"] for group in found["groups"]] == [[bad], ["seed-1"]]
    about = page.json("run", run=bad)
    (process,), (video,) = about["logs"], about["videos"]
    assert page.json("log", run=bad, process=process)["lines"] == ["bad"]
    assert page.ask(f"/video?{urlencode({'run': bad, 'name': video['name']})}").body == VIDEO


def test_curves_of_many_runs_with_long_names_are_asked_for_in_one_request(page: ServedPage) -> None:
    """The request arrives in pieces."""
    names = [f"{number:03d}/{'breakout-lr0.00025-' * 80}" for number in range(MOST_RUNS - 1)]
    path = f"{page.base}/api/charts?{urlencode({'run': [*names, 'seed-1']}, doseq=True)}"
    with socket.create_connection(("127.0.0.1", page.port), WITHIN_S) as browser:
        browser.sendall(f"GET {path}".encode())
        assert not select.select([browser], [], [], 0.3)[0], "the server does not wait for the rest"
        browser.sendall(f" HTTP/1.1\r\nhost: 127.0.0.1\r\ncookie: {page.cookie}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(browser)
        answer.begin()
        assert answer.status == 200
        assert [group["runs"] for group in json.loads(answer.read())["groups"]] == [["seed-1"]]


def test_an_unchanged_answer_is_not_sent_again(page: ServedPage) -> None:
    for path in ("/api/runs", "/api/charts?run=seed-1", "/api/timing?run=seed-1", "/static/page.js"):
        first = page.ask(path)
        again = page.ask(path, if_none_match=first.headers["etag"])
        assert (first.status, again.status, again.body) == (200, 304, b"")


def test_a_video_is_sent_in_the_ranges_that_the_browser_asks_for(page: ServedPage) -> None:
    path = "/video?run=seed-2&name=v00000010.mp4"
    whole = page.ask(path, accept_encoding="gzip")
    assert (whole.status, whole.body, whole.headers["content-type"]) == (200, VIDEO, "video/mp4")
    assert "content-encoding" not in whole.headers
    part = page.ask(path, range="bytes=100-299")
    assert (part.status, part.body) == (206, VIDEO[100:300])
    assert part.headers["content-range"] == f"bytes 100-299/{len(VIDEO)}"
    assert page.ask(path, range="bytes=10200-").body == VIDEO[10200:]
    assert page.ask(path, range=f"bytes={len(VIDEO)}-").status == 416


def test_a_log_is_followed_line_by_line(page: ServedPage, root: Path) -> None:
    log = root / "seed-2" / "logs" / "shard-0.log"
    log.write_text("one\ntwo\nthr")
    first = page.json("log", run="seed-2", process="shard-0")
    assert first == {"process": "shard-0", "from": 0, "to": 8, "lines": ["one", "two"], "rest": "thr"}
    assert page.json("log", run="seed-2", process="shard-0", after=8)["lines"] == []
    with log.open("a") as file:
        file.write("ee\nfour\n")
    assert page.json("log", run="seed-2", process="shard-0", after=8)["lines"] == ["three", "four"]


def test_an_offset_beyond_every_file_gives_the_end_of_the_log(page: ServedPage) -> None:
    for after in ("9" * 19, "9" * 5000, "-1", "1e3", "x"):
        assert page.json("log", run="seed-2", process="worker-0", after=after)["lines"] == ["alone"]


def test_a_run_that_is_being_deleted_is_not_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(root, token="token", base="/base/", address="127.0.0.1")

    def deleted(_: Runs, name: str) -> RunDirectory:
        raise UnknownRun(name)

    def gone(_: Runs, name: str) -> dict[str, Any]:
        raise FileNotFoundError(2, "No such file or directory", name)

    monkeypatch.setattr(Runs, "overview", gone)
    assert status(app, "/base/api/run", "run=seed-1") == 404
    assert status(app, "/base/api/runs") == 200
    monkeypatch.setattr(Runs, "find", deleted)
    for view in ("run", "charts", "timing", "log", "settings"):
        assert status(app, f"/base/api/{view}", "run=seed-1") == 404


def status(app: Starlette, path: str, query: str = "") -> int:
    """The status of the answer of ``app`` to a browser that has the cookie."""
    found: list[int] = []
    cookie = f"zmqrl={hmac.digest(b'token', b'cookie', 'sha256').hex()}".encode()

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        found.extend([message["status"]] if message["type"] == "http.response.start" else [])

    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost"), (b"cookie", cookie)],
    }
    asyncio.run(app(scope, receive, send))
    return found[0]


def test_a_new_run_and_a_new_row_appear(page: ServedPage, root: Path) -> None:
    run = run_directory(root / "new", [row(1)])

    def versions() -> dict[str, int]:
        return {each["name"]: each["version"] for each in page.json("runs")["runs"]}

    eventually(lambda: versions().get("new") == 10, "the new run is listed")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row(5)) + "\n")
    assert versions()["new"] == 50
    shutil.rmtree(run)
    eventually(lambda: "new" not in versions(), "the deleted run is listed no longer")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_page_ends_at_once_when_it_is_interrupted(root: Path, number: signal.Signals) -> None:
    with served_page(root) as page:
        page.open()
        waiting = socket.create_connection(("127.0.0.1", page.port), WITHIN_S)  # an idle browser
        assert page.process is not None
        page.process.send_signal(number)
        assert page.process.wait(WITHIN_S) == 130
        waiting.close()


HANGING = """
import signal, time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
from zmqrl.__main__ import main
from zmqrl.page.runs import Runs

def details(runs, name):
    print("asked", flush=True)
    time.sleep(3600)

Runs.details = details
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_the_page_ends_even_if_an_answer_hangs(root: Path, number: signal.Signals) -> None:
    command, pipe = [sys.executable, "-c", HANGING, "serve", str(root), "--port", "0"], subprocess.PIPE
    with ending(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        page = ServedPage(process.stdout.readline().strip(), process)
        page.open()
        request = f"GET {page.base}/api/run?run=seed-1 HTTP/1.1\r\nhost: 127.0.0.1\r\ncookie: {page.cookie}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", page.port), WITHIN_S) as browser:
            browser.sendall(request.encode())
            assert process.stdout.readline() == "asked\n"
            process.send_signal(number)
            time.sleep(0.2)
            process.send_signal(number)  # an impatient user
            assert process.wait(WITHIN_S) == 130
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("address", "port", "sentence"),
    [
        ("0.0.0.0", None, "would listen on every network"),
        ("::", 0, "would listen on every network"),
        ("::ffff:0.0.0.0", 0, "would listen on every network"),
        ("localhost", None, "must be an IP address"),
        ("192.0.2.1", 0, "--address: 192.0.2.1 is not an address of this machine: choose another address."),
        ("127.0.0.1", 70_000, "must be from 0 to 65535"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, port: int | None, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        listen(address, port)


def test_a_taken_port_is_refused_only_if_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use"):
            listen("127.0.0.1", port)
        monkeypatch.setattr(server, "PORT", port)
        with listen("127.0.0.1", None) as other:
            assert other.getsockname()[1] != port


def test_the_hint_for_another_machine_is_a_command_that_ssh_accepts(
    root: Path, skip_or_fail: Callable[[str], NoReturn]
) -> None:
    try:
        listen("::1", 0).close()
    except UsageError:
        skip_or_fail("this machine has no IPv6")
    command = [sys.executable, "-m", "zmqrl", "serve", str(root), "--port", "0", "--address", "::1"]
    with ending(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)) as process:
        assert process.stderr is not None
        hint = process.stderr.readline()
    assert re.search(r"`ssh -L (\d+):\[::1\]:\1 THIS_MACHINE`", hint), hint


def test_unfinished_requests_of_other_users_take_only_a_few_connections(root: Path) -> None:
    with served_page(root) as page, contextlib.ExitStack() as stack:
        page.open()
        strangers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", page.port), WITHIN_S))
            for _ in range(MOST_CONNECTIONS + 20)
        ]

        def refused() -> int:
            """The number of connections that the page has closed."""
            return len(select.select(strangers, [], [], 0)[0])

        eventually(lambda: refused() >= 20, "the page closes the newest connections")
        assert refused() <= 21  # the connection of our own request may still have been there
        stack.close()
        eventually(lambda: _answers(page), "the page answers")


def test_a_request_that_is_no_http_leaves_no_line_in_the_log(root: Path) -> None:
    """Otherwise, other users could fill the disk of a run."""
    command, pipe = [sys.executable, "-m", "zmqrl", "serve", str(root), "--port", "0"], subprocess.PIPE
    with ending(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        page = ServedPage(process.stdout.readline().strip(), process)
        with socket.create_connection(("127.0.0.1", page.port), WITHIN_S) as stranger:
            stranger.sendall(b"\x00\r\n\r\n")
            assert b"400" in stranger.recv(100)
        process.send_signal(signal.SIGINT)
        assert process.wait(WITHIN_S) == 130
        assert len(process.stderr.read().splitlines()) == 1  # the command for ssh


def with_last_look(seconds: float) -> str:
    """A program that serves a page for ``seconds`` after the end of the run if it was opened in the last minutes."""
    return (
        "from zmqrl.page import beside, server; "
        f"server.ASKED_WITHIN_S = {PATIENCE_S}; beside.LAST_LOOK_S = {seconds}; beside.main()"
    )


PARENT = """
import sys
from pathlib import Path
from zmqrl.child_process import ChildProcess
from zmqrl.page import beside
from zmqrl.rundir import RunDirectory

path, program, beside.LAST_LOOK_S = sys.argv[1], sys.argv[2], float(sys.argv[3])
beside.ChildProcess = lambda name, _, job: ChildProcess(name, ["-c", program], job)
with beside.page_beside(RunDirectory(Path(path)), lambda text: print(text, flush=True)) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def parent_of_page(
    run: Path, last_look_s: float = beside.LAST_LOOK_S
) -> Iterator[tuple["subprocess.Popen[str]", ServedPage]]:
    """A process that serves the page of a run beside it, until its standard input ends."""
    command, pipe = (
        [sys.executable, "-c", PARENT, str(run), with_last_look(last_look_s), str(last_look_s)],
        subprocess.PIPE,
    )
    with ending(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) as parent:
        assert parent.stdout is not None
        yield parent, ServedPage(parent.stdout.readline().strip(), parent)


@pytest.mark.parametrize("killed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_page_beside_a_run_ends_with_the_run(tmp_path: Path, killed: bool) -> None:
    run = run_directory(tmp_path / "run", [row(1)])
    with parent_of_page(run) as (parent, page):
        assert parent.stdin is not None
        eventually(lambda: _answers(page), "the page answers")
        assert [(each["name"], each["version"]) for each in page.json("runs")["runs"]] == [(".", 10)]
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert os.getpriority(os.PRIO_PROCESS, int(child)) >= 10  # it gives way to the run
        if killed:
            parent.kill()
        else:
            parent.stdin.close()
        assert parent.wait(WITHIN_S) == (-signal.SIGKILL if killed else 0)
        eventually(lambda: not is_alive(int(child)), "the page has ended")
    assert page.url.partition("token=")[2] not in (run / "logs" / "page.log").read_text()


def test_an_open_page_shows_how_its_run_ended(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "run", [row(1)])
    with parent_of_page(run, last_look_s=10.0) as (parent, page):
        assert parent.stdin is not None
        page.open()
        assert page.json("run", run=".")["exit_reason"] is None
        parent.stdin.close()
        time.sleep(1.0)  # without the last look, the page would have ended by now
        (run / "summary.json").write_text(json.dumps(summary()))
        eventually(lambda: page.json("run", run=".")["exit_reason"] == "updates", "the page shows the end")
        assert parent.wait(WITHIN_S) == 0
        assert not _answers(page)


def test_a_run_does_not_wait_for_its_page_if_none_is_open_or_after_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = with_last_look(PATIENCE_S)
    monkeypatch.setattr(beside, "LAST_LOOK_S", PATIENCE_S)
    monkeypatch.setattr(beside, "ChildProcess", lambda name, program, job: ChildProcess(name, ["-c", patient], job))
    directory = RunDirectory(run_directory(tmp_path / "run", [row(1)]))
    for is_open in (False, True):
        with contextlib.suppress(KeyboardInterrupt), page_beside(directory, pytest.fail) as url:
            if is_open:
                page = ServedPage(url)
                page.open()
                page.json("runs")
            began = time.monotonic()
            if is_open:
                raise KeyboardInterrupt
        assert time.monotonic() - began < PATIENCE_S / 2


def test_a_page_that_dies_is_told_once_and_the_run_continues(tmp_path: Path) -> None:
    directory, told = RunDirectory(run_directory(tmp_path / "run", [row(1)])), list[str]()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text().split()
    with page_beside(directory, told.append):
        (child,) = {*children.read_text().split()} - {*before}
        os.kill(int(child), signal.SIGKILL)
        eventually(lambda: bool(told), "the page has ended")
    assert told == ["the live page has ended (killed by SIGKILL); the run continues, and zmqrl serve can show it"]


def test_the_address_of_a_page_is_printed_only_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others may be able to read the output of a job."""
    monkeypatch.setattr(run, "page_beside", lambda directory, notice: contextlib.nullcontext("http://x/?token=y"))
    directory = RunDirectory(tmp_path)
    with run._page(directory, None):
        assert capsys.readouterr().out == f"live page: its address is in {directory.page}\n"
        assert json.loads(directory.page.read_text()) == {"url": "http://x/?token=y"}
        assert directory.page.stat().st_mode & 0o777 == 0o600
    directory.page.unlink()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with run._page(directory, pytest.fail):
        assert capsys.readouterr().out == "live page: http://x/?token=y\n"
        assert not directory.page.exists()
    assert capsys.readouterr().out == f"page: zmqrl serve {tmp_path} shows this run again\n"


@pytest.mark.slow
def test_a_run_shows_itself_while_it_trains(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zmqrl", "train", "cartpole", "--ppo.rollout-steps", "32", "--page"]
    command += ["--run-dir", str(tmp_path / "run")]
    with ending(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as run:
        assert run.stdout is not None
        line = next(line for line in run.stdout if line.startswith("live page: "))
        path = Path(line.removeprefix("live page: its address is in ").strip())
        assert path.stat().st_mode & 0o777 == 0o600
        address = json.loads(path.read_text())["url"]
        page = ServedPage(address, run)
        eventually(lambda: _answers(page), "the page answers")
        eventually(lambda: bool(page.json("runs")["runs"][0]["version"]), "the first row is shown", 2 * WITHIN_S)
        assert page.json("runs")["runs"][0]["state"] == "running"
        run.send_signal(signal.SIGINT)
        eventually(lambda: page.json("run", run=".")["exit_reason"] == "interrupted", "the end is shown", 2 * WITHIN_S)
        printed = run.stdout.read()
        assert run.wait(2 * WITHIN_S) == 130
        assert not _answers(page)
        assert f"page: zmqrl serve {tmp_path / 'run'} shows this run again\n" in printed
    assert not path.exists()
    token = address.partition("token=")[2]
    assert token not in printed
    assert not [path for path in (tmp_path / "run" / "logs").iterdir() if token in path.read_text()]


def _answers(page: ServedPage) -> bool:
    try:
        page.open()
    except ConnectionError:
        return False
    return True
