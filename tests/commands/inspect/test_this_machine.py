"""``zmqrl doctor`` without hosts checks this machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from zmqrl import cli
from zmqrl.commands.inspect import this_machine
from zmqrl.errors import UsageError
from zmqrl.hosts import probe
from zmqrl.hosts.preflight import Judgement
from zmqrl.local.extras import EXTRAS
from zmqrl.process import CORES

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("quick")]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe, "LOAD_OVER_S", 0.01)


def doctor(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    status = cli.run(["doctor", "cartpole", *options, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_machine_that_can_run_the_job_is_described(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, found = doctor(capsys)
    assert (status, found["problems"]) == (0, [])
    machine = found["machine"]
    assert machine["usable_cores"] >= 1
    assert machine["extras"].keys() == EXTRAS.keys()
    assert machine["run_directory"] == str(tmp_path), "the nearest directory that exists"
    assert not list(tmp_path.iterdir()), "the doctor leaves nothing behind"


def test_the_table_names_every_fact_and_the_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(this_machine, "judgement_of", lambda *_: Judgement([], []))
    assert cli.run(["doctor", "cartpole"]) == 0
    shown = capsys.readouterr().out
    for name in ("processor", "bfloat16", "cores", "torch", "open files", "/dev/shm", "clock source", "run directory"):
        assert f"\n{name} " in f"\n{shown}", name
    assert "CartPole-v1: can be played" in shown
    assert shown.endswith("no problems found: this machine can run this job\n")


def test_the_verdict_counts_the_warnings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(this_machine, "judgement_of", lambda *_: Judgement([], ["one.", "two."]))
    assert cli.run(["doctor", "cartpole"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("warning: one.\nwarning: two.\nthis machine can run this job, with 2 warnings (see above)\n")


def test_variables_about_threads_are_shown_with_what_a_run_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert cli.run(["doctor", "cartpole"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("variables ")]
    assert "OMP_NUM_THREADS=7" in row
    assert "(a run sets its own numbers of threads)" in row


@pytest.mark.parametrize(
    ("options", "game"),
    [
        ([], "CartPole-v1: can be played"),
        (["--workers", "1"], "CartPole-v1: can be played"),
        (["pendulum"], "Pendulum-v1: can be played"),
        (["--env", "MountainCar-v0", "--model", "mlp"], "MountainCar-v0: can be played"),
    ],
)
def test_a_machine_without_atari_games_is_checked_with_another_game_unless_one_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], game: str
) -> None:
    monkeypatch.setitem(EXTRAS, "atari", {"ale-py": "no_such_module"})
    assert cli.run(["doctor", *options]) == 0
    said = capsys.readouterr()
    assert game in said.out
    told = "ale-py is not installed, so these checks are for the recipe cartpole. For Atari games, run "
    assert (told in said.err) == game.startswith("CartPole")


def test_a_named_atari_game_that_is_not_installed_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "ALE/Breakout-v5 needs ale-py"
    tried = {"game_error": reason, "network_error": None, "game_notice": None}
    monkeypatch.setattr(this_machine, "_tried", lambda config: tried)
    monkeypatch.setitem(EXTRAS, "atari", {"ale-py": "no_such_module"})
    assert cli.run(["doctor", "breakout"]) == 3
    said = capsys.readouterr()
    assert reason in said.out
    assert "cartpole" not in said.err


def test_more_workers_than_cores_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = doctor(capsys, "--workers", "1000")
    assert status == 0
    assert any("1,000 workers on" in text for text in found["warnings"])


def test_the_load_of_other_programs_is_measured_and_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = probe.facts
    busy = {"busy_cores": float(CORES), "machine_cores": CORES, "steal_share": 0.0}
    monkeypatch.setattr(probe, "facts", lambda work: real(work) | busy)
    _, found = doctor(capsys)
    assert found["machine"]["busy_cores"] == CORES
    (told,) = [text for text in found["warnings"] if "other programs use" in text or "other work keeps" in text]
    assert f"other programs use {CORES:.1f} of " in told


def test_what_prevents_a_run_is_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(EXTRAS, "page", {"starlette": "no_such_module"})
    monkeypatch.setitem(EXTRAS, "video", {"imageio": "no_such_module"})
    real = probe.facts
    monkeypatch.setattr(probe, "facts", lambda work: real(work) | {"disk_bytes": 5e6, "open_files": 60})
    tried = {"game_error": "no ROM", "network_error": None, "game_notice": None}
    monkeypatch.setattr(this_machine, "_tried", lambda config: tried)
    status, found = doctor(capsys, "--page", "--recorder")
    assert status == 3
    problems = "\n".join(found["problems"])
    assert "this machine: CartPole-v1 cannot be played there: no ROM." in problems
    assert f"the disk of {tmp_path} is full (5.0 MB left)" in problems
    assert "a process may open 60 files" in problems
    assert "--recorder needs imageio: run " in problems
    assert "--page needs starlette: run " in problems
    assert len(found["problems"]) == 5


def test_a_network_that_does_not_fit_the_game_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = doctor(capsys, "--model", "narrow")
    assert status == 3
    (problem,) = found["problems"]
    assert problem.startswith("this machine: model 'narrow' does not fit observations of shape (4,)")


def test_a_schedule_without_an_end_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"--schedule\.minutes"):
        doctor(capsys, "--optimizer.final-learning-rate", "0")


def test_invalid_settings_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--workers 0"):
        doctor(capsys, "--workers", "0")


def test_options_about_hosts_still_need_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no hosts given"):
        doctor(capsys, "--iface", "eth0")


def test_images_that_the_policy_would_see_as_vectors_are_a_warning(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = {"game_error": None, "network_error": None, "game_notice": "Maze-v0: the policy sees a vector"}
    monkeypatch.setattr(this_machine, "_tried", lambda config: tried)
    status, found = doctor(capsys)
    assert (status, found["problems"]) == (0, [])
    assert "Maze-v0: the policy sees a vector." in found["warnings"]
