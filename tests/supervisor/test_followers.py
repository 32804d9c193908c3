"""The evaluator plays full games with new checkpoints of a run. The recorder records games at given minutes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.run_rig import training
from support.stand_ins import Notices

from zmqrl.config import Config, EvaluationConfig, RecordingConfig
from zmqrl.hosts.events import Said
from zmqrl.observe.records import is_for_stop_score
from zmqrl.process_id import EVALUATOR, RECORDER, ProcessId
from zmqrl.rundir import RunDirectory
from zmqrl.start.jobs import EvaluationRequest, FollowerRequest, RecordingRequest
from zmqrl.supervisor.followers import Followers
from zmqrl.supervisor.resume import end_of
from zmqrl.supervisor.supervisor import Supervisor

pytestmark = pytest.mark.processes


class Runner:
    """Records the started processes and their messages."""

    def __init__(self) -> None:
        self.started: list[ProcessId] = []
        self.told: list[tuple[ProcessId, FollowerRequest]] = []

    def start(self, process: ProcessId) -> None:
        self.started.append(process)

    def tell(self, process: ProcessId, message: FollowerRequest) -> None:
        self.told.append((process, message))

    def worked(self, process: ProcessId) -> None: ...


class Files:
    """Records the checkpoints on the hosts of the followers."""

    def __init__(self, brought: set[tuple[ProcessId, int]]) -> None:
        self.brought = brought
        self.missing: dict[tuple[ProcessId, int], str] = {}

    def put_checkpoint(self, process: ProcessId, version: int) -> None:
        self.brought.add((process, version))

    def why_missing(self, process: ProcessId, version: int) -> str | None:
        return self.missing.get((process, version))

    def drop_checkpoint(self, process: ProcessId, version: int) -> None:
        self.brought.discard((process, version))


@pytest.fixture
def runner() -> Runner:
    return Runner()


@pytest.fixture
def notices() -> Notices:
    return Notices()


@pytest.fixture
def brought() -> set[tuple[ProcessId, int]]:
    """The checkpoints on the hosts of the followers."""
    return set()


@pytest.fixture
def followers(tmp_path: Path, runner: Any, notices: Notices, brought: set[tuple[ProcessId, int]]) -> Followers:
    config = Config(evaluator=True, recorder=True, recording=RecordingConfig(minutes=(15, 0)))
    files: Any = Files(brought)
    return Followers(config, RunDirectory(tmp_path), runner, notices, files)


def evaluation(version: int, mean: float = 12.5) -> Said:
    found = {"version": version, "wall_s": 300.0, "mean": mean, "ci95": [10.0, 15.0], "episodes": 50}
    return Said(EVALUATOR, {"evaluation": found})


def test_checkpoints_are_evaluated_every_five_minutes_and_always_at_the_end(
    followers: Followers, runner: Runner
) -> None:
    for version, minutes in ((0, 0.0), (100, 2.0), (200, 4.9), (300, 5.1), (400, 7.0)):
        followers.on_checkpoint(version, 60 * minutes)
    followers.on_checkpoint(500, 60 * 8.0, last=True)
    assert [told.version for name, told in runner.told if name == EVALUATOR] == [0, 300, 500]


def test_a_resumed_run_does_not_evaluate_its_last_checkpoint_again(
    followers: Followers, runner: Runner, tmp_path: Path
) -> None:
    followers.on_checkpoint(300, 300.0, last=True)
    followers.on_checkpoint(300, 300.0, last=True)
    followers.on_answer(evaluation(300))
    again = Followers(followers.config, RunDirectory(tmp_path), followers.runner, followers.console, followers.files)
    again.on_checkpoint(300, 300.0)
    again.on_checkpoint(400, 400.0)
    again.on_checkpoint(700, 700.0)
    assert [told.version for name, told in runner.told if name == EVALUATOR] == [300, 700]


@pytest.mark.parametrize("evaluator", [True, False])
def test_a_resume_from_an_older_checkpoint_undoes_the_evaluations_of_later_versions(
    followers: Followers, runner: Runner, tmp_path: Path, evaluator: bool
) -> None:
    for version in (300, 400, 500):
        followers.on_checkpoint(version, version)
        followers.on_answer(evaluation(version))
    followers.close()
    config, directory = Config(evaluator=evaluator), RunDirectory(tmp_path)
    again = Followers(config, directory, followers.runner, followers.console, followers.files)
    again.undo_rows(400, 2)
    for file, versions in (("evaluations.jsonl", [300, 400]), ("evaluations.before-generation-2.jsonl", [500])):
        assert [json.loads(line)["version"] for line in (tmp_path / file).read_text().splitlines()] == versions
    again.undo_rows(400, 3)
    assert not (tmp_path / "evaluations.before-generation-3.jsonl").exists()
    if evaluator:
        runner.told.clear()
        again.on_checkpoint(500, 600.0, last=True)
        assert runner.told == [(EVALUATOR, EvaluationRequest(500))], "this is another policy"
        again.on_answer(evaluation(500, mean=9.0))
        assert json.loads((tmp_path / "evaluations.jsonl").read_text().splitlines()[-1])["mean"] == 9.0


@pytest.fixture
def confirming(tmp_path: Path, runner: Any, notices: Notices) -> Followers:
    """Followers of a run with ``--stop-score 10`` and no other evaluations."""
    files: Any = Files(set())
    return Followers(Config(stop_score=10.0), RunDirectory(tmp_path), runner, notices, files)


def test_a_score_counts_as_reached_when_new_games_with_one_checkpoint_confirm_it(
    confirming: Followers, runner: Runner
) -> None:
    confirming.on_scores(9.9, 50)
    assert not confirming.wants_checkpoint(0.0)
    confirming.on_checkpoint(100, 10.0)
    assert runner.told == []
    confirming.on_scores(10.0, 60)
    assert confirming.wants_checkpoint(0.0)
    confirming.on_checkpoint(200, 20.0)
    assert runner.told == [(EVALUATOR, EvaluationRequest(200, 50, 2**31 + 50 * 200, samples=True))]
    confirming.on_scores(11.0, 70)
    assert not confirming.wants_checkpoint(0.0), "the evaluator is busy"
    assert confirming.confirmed_score == -float("inf")
    confirming.on_answer(evaluation(200))
    assert confirming.confirmed_score == 12.5
    confirming.on_scores(13.0, 500)
    assert not confirming.wants_checkpoint(0.0), "the score has been confirmed"


def test_the_games_that_confirm_a_score_are_sampled_even_if_other_evaluations_are_greedy(
    tmp_path: Path, runner: Any, notices: Notices
) -> None:
    config = Config(stop_score=10.0, evaluator=True, evaluation=EvaluationConfig(greedy=True))
    files: Any = Files(set())
    followers = Followers(config, RunDirectory(tmp_path), runner, notices, files)
    followers.on_checkpoint(100, 0.0)
    followers.on_answer(evaluation(100))
    followers.on_scores(10.0, 60)
    followers.on_checkpoint(200, 20.0)
    confirming = EvaluationRequest(200, 50, 2**31 + 50 * 200, samples=True)
    assert [message for _, message in runner.told] == [EvaluationRequest(100), confirming]


def test_only_new_games_can_have_ended_a_run() -> None:
    assert is_for_stop_score({"seeds": [2**31]})
    assert is_for_stop_score({"seeds": [2**31], "greedy": False})
    assert is_for_stop_score({"seeds": [2**31], "greedy": True}), "older versions used greedy actions"
    assert not is_for_stop_score({"seeds": [0], "greedy": False})
    assert not is_for_stop_score({})


def test_only_the_evaluation_of_a_version_that_is_kept_can_have_ended_a_run(tmp_path: Path) -> None:
    line = {"version": 400, "mean": 12.0, "seeds": [2**31]}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    config = Config(stop_score=10.0)
    for version, reason in ((300, None), (400, "stop_score")):
        checkpoint: Any = SimpleNamespace(version=version, counters={})
        assert (end_of(config, checkpoint, tmp_path) or (None,))[0] == reason


def test_a_score_that_new_games_do_not_confirm_is_tried_again_after_fifty_games_in_training(
    confirming: Followers, runner: Runner, notices: Notices
) -> None:
    confirming.on_scores(10.0, 60)
    confirming.on_checkpoint(200, 20.0)
    confirming.on_scores(10.0, 75)
    confirming.on_answer(evaluation(200, mean=9.0))
    assert notices.texts[-1] == "version 200 does not confirm --stop-score 10: the run continues"
    confirming.on_scores(10.0, 124)
    assert not confirming.wants_checkpoint(0.0)
    confirming.on_scores(10.0, 125)
    assert confirming.wants_checkpoint(0.0)
    confirming.on_checkpoint(300, 30.0)
    confirming.on_answer(Said(EVALUATOR, {"skipped": 300, "reason": "it is gone"}))
    confirming.on_scores(10.0, 126)
    assert confirming.wants_checkpoint(0.0), "the checkpoint was not evaluated, so the score is still unconfirmed"
    confirming.give_up(EVALUATOR)
    assert notices.texts[-1] == "without the evaluator, --stop-score cannot end the run"
    confirming.on_scores(10.0, 127)


def test_an_unknown_answer_of_the_evaluator_ends_the_wait_for_a_confirmation(
    confirming: Followers, runner: Runner, notices: Notices
) -> None:
    confirming.on_scores(10.0, 60)
    confirming.on_checkpoint(200, 20.0)
    newest = confirming.pending[EVALUATOR][-1]
    confirming.pending[EVALUATOR].insert(0, EvaluationRequest(100))
    assert (newest.version, confirming.confirming) == (200, 200)
    confirming.on_answer(Said(EVALUATOR, {"nonsense": True}))
    assert confirming.confirming is None
    assert not confirming.pending[EVALUATOR]


def test_a_run_that_ends_does_not_wait_for_a_score_to_be_confirmed(
    confirming: Followers, runner: Runner, notices: Notices
) -> None:
    confirming.on_scores(10.0, 60)
    confirming.on_checkpoint(200, 20.0)
    confirming.finish(300, 30.0, lambda: pytest.fail("it waits"), lambda: False)
    confirming.on_answer(evaluation(200, mean=9.0))
    assert confirming.confirmed_score == -float("inf")
    assert not any("the run continues" in text for text in notices.texts)


def test_damaged_evaluations_do_not_stop_a_run(
    followers: Followers, runner: Runner, notices: Notices, tmp_path: Path
) -> None:
    followers.on_checkpoint(300, 300.0)
    followers.on_answer(evaluation(300))
    with (tmp_path / "evaluations.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    again = Followers(followers.config, RunDirectory(tmp_path), followers.runner, followers.console, followers.files)
    assert "evaluations.jsonl is damaged: line 2 cannot be read" in notices.texts[-1]
    again.on_checkpoint(300, 300.0)
    assert [told.version for name, told in runner.told if name == EVALUATOR] == [300]


def test_a_checkpoint_stays_with_a_follower_as_long_as_it_is_needed(
    followers: Followers, brought: set[tuple[ProcessId, int]]
) -> None:
    followers.on_checkpoint(0, 0.0)
    followers.on_checkpoint(300, 60 * 5.1)
    followers.on_checkpoint(500, 60 * 15.0)
    assert brought == {(EVALUATOR, 0), (EVALUATOR, 300), (EVALUATOR, 500), (RECORDER, 0), (RECORDER, 500)}
    followers.on_answer(evaluation(500))  # the evaluator has skipped version 300 as outdated
    assert brought == {(EVALUATOR, 0), (EVALUATOR, 500), (RECORDER, 0), (RECORDER, 500)}
    followers.on_answer(Said(RECORDER, {"skipped": 0, "reason": "none"}))
    assert brought == {(EVALUATOR, 500), (RECORDER, 500)}
    followers.on_answer(Said(RECORDER, {"skipped": 500, "reason": "none"}))
    assert not brought


def test_a_game_is_recorded_with_the_first_checkpoint_after_each_minute(followers: Followers, runner: Runner) -> None:
    assert followers.wants_checkpoint(0.0)
    followers.on_checkpoint(0, 0.0)
    assert not followers.wants_checkpoint(60 * 14.9)
    followers.on_checkpoint(100, 60 * 14.9)
    assert followers.wants_checkpoint(60 * 15.0)
    followers.on_checkpoint(200, 60 * 15.1)
    assert [told for name, told in runner.told if name == RECORDER] == [
        RecordingRequest(0, "minute-000"),
        RecordingRequest(200, "minute-015"),
    ]


def test_a_resumed_run_records_only_the_remaining_minutes(followers: Followers) -> None:
    followers.start(60 * 10.0)
    assert followers.to_record == [15]


def test_an_evaluation_is_saved_and_reported(followers: Followers, notices: Notices, tmp_path: Path) -> None:
    followers.on_checkpoint(300, 300.0)
    followers.on_answer(evaluation(300))
    assert json.loads((tmp_path / "evaluations.jsonl").read_text())["mean"] == 12.5
    assert notices.texts == [
        "evaluation of version 300 (5.0 min): mean 12.5, 95% interval 10.0 to 15.0, 50 games",
    ]
    assert not followers.pending[EVALUATOR]


def test_an_evaluation_of_one_game_is_reported_without_an_interval(followers: Followers, notices: Notices) -> None:
    told = evaluation(300)
    told.facts["evaluation"] |= {"episodes": 1, "ci95": [12.5, 12.5]}
    followers.on_checkpoint(300, 300.0)
    followers.on_answer(told)
    assert notices.texts[-1] == "evaluation of version 300 (5.0 min): mean 12.5, 1 game"


def test_the_notice_about_an_evaluation_names_the_flavour_of_the_games(followers: Followers, notices: Notices) -> None:
    followers.on_checkpoint(300, 300.0)
    told = evaluation(300)
    told.facts["evaluation"]["flavour"] = "sticky 0, no-ops 30"
    followers.on_answer(told)
    assert notices.texts[-1].endswith("10.0 to 15.0, 50 games; games: sticky 0, no-ops 30")


def test_pending_evaluations_of_a_dead_evaluator_go_to_the_next_one(followers: Followers) -> None:
    followers.on_checkpoint(0, 0.0)
    followers.on_checkpoint(300, 300.0)
    followers.on_answer(evaluation(0))
    assert followers.pending[EVALUATOR] == [EvaluationRequest(300)]
    given: list[FollowerRequest] = []
    tasks = SimpleNamespace(follower_task=lambda process, requests: given.extend(requests))
    supervisor: Any = SimpleNamespace(tasks=tasks, followers=followers)
    Supervisor._task(supervisor, EVALUATOR)
    assert given == [EvaluationRequest(300)]
    followers.on_answer(Said(EVALUATOR, {"skipped": 300, "reason": "it was pruned"}))
    assert not followers.pending[EVALUATOR]


def test_a_skip_names_the_full_disk_that_caused_it(followers: Followers, notices: Notices) -> None:
    files: Any = followers.files
    files.missing[EVALUATOR, 300] = "host h2 cannot write config.json: No space left on device"
    followers.on_checkpoint(300, 300.0)
    followers.on_answer(Said(EVALUATOR, {"skipped": 300, "reason": "config.json is not valid JSON"}))
    followers.on_answer(Said(RECORDER, {"skipped": 300, "reason": "it was pruned"}))
    assert notices.texts == [
        "evaluator-0 skipped version 300: host h2 cannot write config.json: No space left on device",
        "recorder-0 skipped version 300: it was pruned",
    ]


UNKNOWN = ({"surprise": 1}, {"evaluation": {"version": 0, "mean": None}}, {"recording": {"version": 0}})


@pytest.mark.parametrize("facts", UNKNOWN)
def test_an_unknown_answer_settles_all_versions_of_the_evaluator_and_the_oldest_of_the_recorder(
    followers: Followers, notices: Notices, brought: set[tuple[ProcessId, int]], facts: dict[str, Any]
) -> None:
    followers.on_checkpoint(0, 0.0)
    followers.on_checkpoint(300, 300.0)
    followers.on_answer(Said(EVALUATOR, facts))
    assert followers.pending[EVALUATOR] == [], "it works on the newest version"
    assert notices.texts == [f"evaluator-0 skipped version 300: a follower gave the unknown answer {facts!r}."]
    followers.on_answer(Said(RECORDER, facts))
    assert followers.pending[RECORDER] == []
    assert not brought
    followers.on_answer(Said(RECORDER, facts))
    assert notices.texts[-1] == f"recorder-0: a follower gave the unknown answer {facts!r}."
    followers.on_answer(evaluation(300))
    followers.finish(300, 310.0, lambda: pytest.fail("it waits"), lambda: False)


def test_a_score_is_confirmed_again_after_an_unknown_answer(confirming: Followers) -> None:
    confirming.on_scores(10.0, 60)
    confirming.on_checkpoint(200, 20.0)
    confirming.on_answer(Said(EVALUATOR, {"surprise": 1}))
    confirming.on_scores(10.0, 61)
    assert confirming.wants_checkpoint(0.0)


def test_a_run_continues_without_an_evaluator_that_keeps_dying(followers: Followers) -> None:
    followers.on_checkpoint(0, 0.0)
    followers.give_up(EVALUATOR)
    followers.on_checkpoint(600, 600.0)
    waited: list[None] = []
    followers.on_answer(Said(RECORDER, {"recording": {"version": 0, "path": "a.mp4", "score": 1.0}}))
    followers.finish(700, 660.0, lambda: waited.append(None), lambda: len(waited) > 3)
    assert not waited


def test_the_run_waits_for_both_games_recorded_with_one_checkpoint(followers: Followers) -> None:
    followers.on_checkpoint(900, 60 * 40.0)
    assert followers.pending[RECORDER] == [
        RecordingRequest(900, "minute-000"),
        RecordingRequest(900, "minute-015"),
    ]
    followers.on_answer(Said(RECORDER, {"recording": {"version": 900, "path": "a.mp4", "score": 1.0}}))
    assert followers.pending[RECORDER] == [RecordingRequest(900, "minute-015")]


@pytest.mark.slow
def test_a_run_is_followed_from_its_first_checkpoint_to_its_last(tmp_path: Path) -> None:
    path = tmp_path / "run"
    game = ("--env", "ALE/Breakout-v5", "--model", "small", "--network.hidden", "16", "--envs.max-frames", "400")
    options = ("--evaluator", "--evaluation.episodes", "3", "--recorder", "--recording.minutes", "0")
    with training(path, *game, *options, "--updates", "40") as run:
        assert run.wait() == 0, run.said()
        run.wait_to_say("evaluation of version 40")
        run.wait_to_say("recorded ")
    rows = [json.loads(line) for line in (path / "evaluations.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows] in ([0, 40], [40])
    assert all(len(row["scores"]) == row["episodes"] == 3 for row in rows)
    assert rows[-1]["wall_s"] == run.files.summary()["wall_s"]
    assert [video.name for video in (path / "videos").iterdir()] == ["minute-000-v00000000.mp4"]


@pytest.mark.slow
def test_an_interrupted_run_does_not_wait_for_an_evaluation(tmp_path: Path) -> None:
    with training(tmp_path / "run", "--evaluator", "--evaluation.episodes", "5000") as run:
        run.wait_for(3)
        run.interrupt()
        assert "waiting for" not in run.said().partition("stopping")[2]
