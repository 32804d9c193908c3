"""The view of a run that has ended: its last figures and notices, and its exit status."""

import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.record_rig import row, run_directory, summary

from zmqrl.commands.inspect import attach
from zmqrl.commands.inspect.living import Living
from zmqrl.errors import ClusterError
from zmqrl.json_lines import read_json
from zmqrl.observe.console import LiveFigures
from zmqrl.observe.live.figures import LiveMetrics
from zmqrl.observe.live.presence import Presence
from zmqrl.process_id import worker_id
from zmqrl.rundir import RunDirectory, write_json


@pytest.mark.parametrize(
    ("figures", "status"),
    [
        ({"exit_status": 0}, 0),
        ({"exit_reason": "failed", "exit_status": 2}, 2),
        ({"exit_reason": "failed"}, 3),
        ({"exit_reason": "interrupted"}, 130),
        ({}, 0),
    ],
)
def test_a_view_has_the_exit_status_of_its_run_even_if_older_code_wrote_the_summary(
    figures: dict[str, object], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row(11), row(12) | {"updates_per_s": 10.0}]
    path = run_directory(tmp_path / "run", rows, summary=summary(**figures), updates=120)
    (path / "logs").mkdir()
    (path / "logs" / "supervisor.log").write_text("2026-01-05 10:12:03 ended; see summary.json\n")
    assert attach.run(attach.Options(run=path)) == status
    notice, told = capsys.readouterr().out.splitlines()
    assert notice == "2026-01-05 10:12:03 ended; see summary.json"
    assert told.startswith("time 0:00:12, 0:00:00 left; speed 1,000 agent steps/s")


class Shown:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.figures: list[LiveFigures] = []
        self.notices: list[str] = []

    def starting(self, stage: str, line: str) -> None: ...

    def update(self, figures: LiveFigures) -> None:
        self.figures.append(figures)

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def close(self) -> None: ...


def test_a_view_follows_the_newest_figures_although_a_stalled_run_writes_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(run_directory(tmp_path / "run", [row(3)], minutes=10.0, updates=None, agent_steps=None))
    directory.claim()
    lost = Presence(process=worker_id(1), host="h2", state="lost", for_s=12.3)

    def stall() -> None:
        supervisor = {"host": socket.gethostname(), "pid": os.getpid()}
        facts = {"supervisor": supervisor, "shards": [], "workers": [], "followers": []}
        session = read_json(directory.config) | {"minutes": 4.0}
        write_json(directory.cluster, facts | {"trained_before_s": 1.0, "config": session})
        figures = LiveMetrics(row=row(3, wall_s=9.0, workers_present=1), about={}, processes=[lost], quorum=2)
        write_json(directory.live, figures.to_json() | {"at": 1e9})

    turns = iter([stall, lambda: os.utime(directory.live, (1e9, 1e9)), directory.release])
    monkeypatch.setattr(time, "sleep", lambda _: next(turns)())
    console = Shown()
    attach._show(Living.read(directory.path), console)
    starting, stalled, old, ended = console.figures
    assert starting.left_s is None, "it can be a resumed run, whose session has a limit of its own"
    assert (stalled.row["wall_s"], stalled.row["workers_present"], stalled.left_s) == (9.0, 1, 232.0), (
        "the session has 4 of the 10 minutes"
    )
    assert [line.remarks for line in stalled.hosts] == ["worker-1: lost 12 s ago"]
    assert (old.row["wall_s"], old.row["workers_present"], old.hosts) == (9.0, None, [])
    assert console.notices == ["the supervisor writes no figures: it hangs, or ends the run, or writes a checkpoint"]
    assert (ended.row, ended.hosts) == (row(3), [])


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_elsewhere_that_writes_no_figures_for_a_while_is_not_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    directory = RunDirectory(run_directory(tmp_path / "run", [row(3)], minutes=10.0))
    supervisor = {"host": "another", "pid": 1}
    write_json(directory.cluster, {"supervisor": supervisor, "shards": [], "workers": [], "followers": []})
    write_json(directory.live, LiveMetrics(row=row(3), about={}, quorum=2).to_json() | {"at": 1e9})
    os.utime(directory.live, (1e9, 1e9))
    now = [100.0]

    def wait(seconds: float) -> None:
        now[0] += 10.0
        if ends and now[0] == 130.0:
            directory.cluster.unlink()

    monkeypatch.setattr(attach, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=wait))
    attach._show(Living.read(directory.path), Shown())
    assert now[0] == (130.0 if ends else 100.0 + attach.SILENT_S)


def test_a_run_without_a_summary_was_killed(tmp_path: Path) -> None:
    path = run_directory(tmp_path / "run", [row(3)])
    with pytest.raises(ClusterError, match="died before the end of the run"):
        attach.run(attach.Options(run=path))


@pytest.mark.parametrize("begins", [False, True])
def test_the_summary_of_an_earlier_session_is_not_the_result_of_the_session_that_is_viewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    path = run_directory(tmp_path / "run", [row(3)], summary=summary(exit_status=0))
    directory = RunDirectory(path)
    directory.claim()

    def end(*_: object) -> None:
        if begins:
            directory.summary.unlink()
            write_json(directory.summary, summary(exit_reason="failed", exit_status=2))
        directory.release()

    monkeypatch.setattr(attach, "_show", end)
    if begins:
        assert attach.run(attach.Options(run=path)) == 2
    else:
        with pytest.raises(ClusterError, match="describes an earlier session"):
            attach.run(attach.Options(run=path))
