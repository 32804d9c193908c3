"""The view of a run that has ended: its last figures and notices, and its exit status."""

from pathlib import Path

import pytest
from support.record_rig import row, run_directory, summary

from zmqrl.commands.inspect import attach
from zmqrl.errors import ClusterError
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
