"""Trackers get every row, continue in a resumed run, and cannot fail the run or slow it down."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.record_rig import row
from support.rig import eventually

from zmqrl.commands.run.train import config_from
from zmqrl.errors import UsageError
from zmqrl.observe import trackers
from zmqrl.observe.trackers import Tracked, Tracker, Trackers
from zmqrl.recipes import cartpole
from zmqrl.rundir import RunDirectory, write_json

SETTINGS = cartpole().to_json()
SUMMARY = {"exit_reason": "updates", "updates": 20, "contributions": {"used": 72}}


def tracked(path: Path) -> Tracked:
    return Tracked(directory=RunDirectory(path), settings=SETTINGS)


def track(
    path: Path, *names: str, rows: int = 2, first: int = 1, summary: bool = True, within_s: float = 30.0
) -> list[str]:
    """Log rows from ``first`` on as a run does, then close. Returns the notices."""
    notices: list[str] = []
    run = Trackers(names, tracked(path), notices.append)
    for second in range(first, first + rows):
        run.log(row(second), 10 * second)
    if summary:
        write_json(path / "summary.json", SUMMARY)
    run.close(within_s)
    return notices


# all trackers


class Recorder:
    """A tracker that records its calls. ``fails`` names a method that raises. ``log`` waits for the event ``stuck``."""

    def __init__(self, fails: str | None = None, stuck: threading.Event | None = None) -> None:
        self.fails, self.stuck = fails, stuck
        self.steps: list[int] = []
        self.summaries: list[Mapping[str, Any] | None] = []
        self.fail_in("start")

    def fail_in(self, call: str) -> None:
        if call == self.fails:
            raise OSError(f"no network in {call}\nat host")

    def log(self, row: Mapping[str, Any], step: int) -> None:
        if self.stuck is not None:
            self.stuck.wait(60)
        self.fail_in("log")
        self.steps.append(step)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        self.fail_in("close")
        self.summaries.append(summary)


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The known kinds of trackers. There are none until the test adds some."""
    own: dict[str, Any] = {}
    monkeypatch.setattr(trackers, "KINDS", own)
    return own


def kind(tracker: Tracker) -> Any:
    return lambda run: tracker


def test_every_tracker_gets_every_row_and_the_summary(tmp_path: Path, kinds: dict[str, Any]) -> None:
    one, other = Recorder(), Recorder()
    kinds.update(one=kind(one), other=kind(other))
    assert track(tmp_path, "one", "other", "one", rows=3) == []
    assert one.steps == other.steps == [10, 20, 30]
    assert one.summaries == other.summaries == [SUMMARY]


def test_a_run_without_a_summary_closes_its_trackers_without_one(tmp_path: Path, kinds: dict[str, Any]) -> None:
    kinds["one"] = kind(one := Recorder())
    assert track(tmp_path, "one", summary=False) == []
    assert one.summaries == [None]


@pytest.mark.parametrize("call", ["start", "log", "close"])
def test_a_tracker_that_fails_is_reported_once_and_left_out(tmp_path: Path, kinds: dict[str, Any], call: str) -> None:
    good = Recorder()
    kinds["bad"] = lambda run: Recorder(fails=call)
    kinds["good"] = kind(good)
    assert track(tmp_path, "bad", "good", rows=20) == [f"the run continues without bad: no network in {call}"]
    assert len(good.steps) == 20


def test_a_tracker_that_hangs_is_left_out_and_the_run_does_not_wait(
    tmp_path: Path, kinds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    stuck = Recorder(stuck=released)
    kinds["stuck"] = kind(stuck)
    monkeypatch.setattr(trackers, "ROWS_WAITING", 5)
    assert track(tmp_path, "stuck", rows=50) == ["the run continues without stuck: it is more than 5 rows behind"]
    released.set()


def test_the_run_waits_only_a_limited_time_for_a_tracker_to_finish(tmp_path: Path, kinds: dict[str, Any]) -> None:
    released = threading.Event()
    kinds["stuck"] = kind(Recorder(stuck=released))
    assert track(tmp_path, "stuck", within_s=0.0) == ["stuck may lack the last rows: it did not finish within 0 s"]
    released.set()


def test_tensorboard_works_in_a_directory_whose_path_is_not_text(
    tmp_path: Path, need_modules: Callable[..., None]
) -> None:
    need_modules("tensorboard")
    path = tmp_path / os.fsdecode(b"run-\xff")
    path.mkdir()
    assert track(path, "tensorboard") == []
    (events,) = (path / "tensorboard").iterdir()
    assert has(events, b"charts/score_mean_50")


def test_a_tracker_that_needs_another_path_says_so(tmp_path: Path, kinds: dict[str, Any]) -> None:
    def refuse(run: Tracked) -> Tracker:
        os.fsdecode(b"run-\xff").encode()
        raise AssertionError

    kinds["one"] = refuse
    said = "it needs a run directory whose path is text in UTF-8: choose another --run-dir"
    assert track(tmp_path, "one") == [f"the run continues without one: {said}"]


def test_the_option_takes_any_number_of_trackers() -> None:
    assert config_from(["cartpole"]).trackers == ("tensorboard",)
    assert config_from(["cartpole", "--trackers"]).trackers == ()
    assert config_from(["cartpole", "--trackers", "wandb", "mlflow"]).trackers == ("wandb", "mlflow")
    with pytest.raises(UsageError, match="tensorbored"):
        config_from(["cartpole", "--trackers", "tensorbored"])


# MLflow


@pytest.fixture
def no_mlflow_server(monkeypatch: pytest.MonkeyPatch, need_modules: Callable[..., None]) -> None:
    need_modules("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("no_mlflow_server")
def test_mlflow_keeps_settings_rows_and_summary_in_the_run_directory_and_continues_on_resume(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    path = tmp_path / "run"
    path.mkdir()
    assert track(path, "mlflow", summary=False) == []
    client = MlflowClient(tracking_uri=f"sqlite:///{path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'zmqrl'")
    (begun,) = client.search_runs([experiment.experiment_id])
    assert begun.info.status == "FAILED"
    assert begun.data.params["envs.num_envs"] == "8"

    assert track(path, "mlflow", first=3) == []
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (begun.info.run_id, "run", "FINISHED")
    assert run.data.tags["exit_reason"] == "updates"
    scores = client.get_metric_history(run.info.run_id, "charts/score_mean_50")
    assert [(score.step, score.value) for score in scores] == [(10, 1), (20, 2), (30, 3), (40, 4)]
    (summary,) = path.glob("mlflow-artifacts/*/artifacts/summary.json")
    assert json.loads(summary.read_text(encoding="utf-8")) == SUMMARY


@pytest.mark.slow
@pytest.mark.usefixtures("no_mlflow_server")
def test_environment_variables_of_mlflow_set_its_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    database = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "games")
    assert track(tmp_path, "mlflow") == []
    client = MlflowClient(tracking_uri=database)
    (experiment,) = client.search_experiments(filter_string="name = 'games'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["contributions/used"] == 72
    assert not (tmp_path / "mlflow.db").exists()


# Weights & Biases


@pytest.fixture
def wandb_mode(monkeypatch: pytest.MonkeyPatch, need_modules: Callable[..., None]) -> Iterator[pytest.MonkeyPatch]:
    """W&B without an account. The process of W&B ends with the test."""
    need_modules("wandb")
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    yield monkeypatch
    wandb.teardown()


def has(path: Path, words: bytes) -> bool:
    return words in path.read_bytes()


@pytest.mark.processes
@pytest.mark.usefixtures("wandb_mode")
def test_wandb_keeps_settings_rows_and_summary_in_the_run_directory_and_continues_on_resume(tmp_path: Path) -> None:
    assert track(tmp_path, "wandb") == []
    (kept,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    for words in (b"num_envs", b"charts/score_mean_50", b"contributions/used", b"exit_reason"):
        # W&B's own process writes the file, and may not have finished.
        eventually(partial(has, kept, words), f"{words!r} in {kept}")
    assert track(tmp_path, "wandb", first=3) == []
    assert {path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb")} == {kept.name}
    assert kept.name == f"run-{(tmp_path / 'wandb-run-id').read_text(encoding='utf-8').strip()}.wandb"


def test_wandb_without_an_account_is_left_out_of_the_run(tmp_path: Path, wandb_mode: pytest.MonkeyPatch) -> None:
    wandb_mode.setenv("WANDB_MODE", "online")
    wandb_mode.setenv("HOME", str(tmp_path))
    wandb_mode.setenv("NETRC", str(tmp_path / "netrc"))
    wandb_mode.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    (notice,) = track(tmp_path, "wandb")
    assert notice.startswith("the run continues without wandb: it has no API key")
