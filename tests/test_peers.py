"""The comparison with other libraries: its tables, the scores of a peer, and the picture with both."""

import json
import re
import signal
import statistics
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import learning
import marked
import measure
import numpy as np
import pytest
from scores import SB3_FLAVOUR, Scores
from support.paths import ROOT
from support.record_rig import row, run_directory, summary

ROW: dict[str, Any] = {"wall_s": 60.0, "agent_steps": 16_000, "episodes": 60, "score_mean_50": 1.5}


def test_every_library_is_compared_with_one_training_of_zmqrl() -> None:
    for trainings in measure.COMPARISONS.values():
        for training in trainings.values():
            is_ours = training.environment is None
            assert (training.against is None) == is_ours
            if training.against is not None:
                assert trainings[training.against].environment is None


def test_ppo_as_shipped_counts_against_the_recipe_with_four_epochs() -> None:
    rates = {
        "zmqrl breakout": [900.0],
        "zmqrl breakout-ppo": [500.0, 600.0, 400.0],
        "Stable-Baselines3 PPO": [100.0, 50.0, 200.0],
    }
    lines = measure.tables({"as shipped": rates}).splitlines()
    assert lines[0].startswith("| as shipped | agent steps/s |")
    assert lines[3] == "| zmqrl breakout-ppo | 500 | 400 to 600 |  |"
    assert lines[4] == "| Stable-Baselines3 PPO | 100 | 50 to 200 | 5.00 (zmqrl breakout-ppo) |"


def test_without_its_training_of_zmqrl_a_library_has_no_ratio() -> None:
    table = measure.tables({"as shipped": {"zmqrl breakout": [900.0], "Stable-Baselines3 A2C": [300.0]}})
    assert table.splitlines()[-1] == "| Stable-Baselines3 A2C | 300 | 300 to 300 |  |"


def test_a_rate_is_that_of_whole_rollouts_however_rarely_they_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, told = Clock(), tmp_path / "told"
    told.write_text("agent steps: 0\nagent steps: 1024\nagent steps: 1024\n", encoding="utf-8")

    def sleep(seconds: float) -> None:
        before = now.now
        now.now += seconds
        if now.now // 5 > before // 5:  # a line every 5 s, for a rollout of 12 s
            with told.open("a", encoding="utf-8") as file:
                file.write(f"agent steps: {1024 * int(now.now / 12)}\n")

    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=now, sleep=sleep))
    lines = measure.steps_told(told, re.compile(r"agent steps: (\d+)"))
    assert [steps for _, steps in (next(lines), next(lines))] == [1024, -1], "the second line tells nothing new"
    begun_at, begun = measure.wait_for(lines, 106.0, 60.0, told)
    assert (round(begun_at), begun) == (110, 9 * 1024)
    ended_at, ended = measure.wait_for(lines, begun_at + 61.0, 300.0, told)
    assert (round(ended_at), ended) == (180, 15 * 1024), "the line at 175 s tells nothing new"


def test_a_library_that_tells_its_steps_rarely_is_measured_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def wait_for(lines: Iterator[tuple[float, int]], at: float, within_s: float, output: Path) -> tuple[float, int]:
        waits.append(at)
        return at, int(100 * at)

    monkeypatch.setattr(measure, "wait_for", wait_for)
    monkeypatch.setattr(measure, "started", lambda command, output: nullcontext())
    rarely = measure.COMPARISONS["as shipped"]["Sample Factory"]
    assert measure.measure(rarely, Path("python"), 60.0) == pytest.approx(100.0)
    assert waits == [0.0, 10.0, 130.0]
    assert measure.seconds_of(measure.COMPARISONS["as shipped"]["zmqrl breakout"], 60.0) == 60.0


@pytest.mark.parametrize("name", ["peers", "scores"])
def test_the_page_has_a_place_for_each_result(name: str) -> None:
    assert marked.part(measure.RESULTS / "README.md", name)


@pytest.mark.parametrize("options", [["--only", "A2C"], ["--only", "A2C", "--output", "kept"], []])
def test_a_part_of_the_trainings_does_not_replace_the_kept_results(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(measure, "python_of", lambda environment, environments: Path("python"))
    monkeypatch.setattr(measure, "measure", lambda training, python, seconds: 100.0)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(sys, "argv", ["measure.py", "--rounds", "1", *options])
    measure.main()
    assert (tmp_path / "kept/results.json").exists() == (options != ["--only", "A2C"])


def test_the_table_of_the_project_has_the_speeds_of_the_kept_results() -> None:
    results = json.loads((measure.RESULTS / "results.json").read_text(encoding="utf-8"))["agent_steps_per_s"]
    (row,) = re.findall(
        r"^\| Breakout on the same two cores, .*", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    stated = [int(found.replace(" ", "")) for found in re.findall(r"\b\d{1,3}(?: \d{3})*\b", row)]
    speeds = [(name, round(statistics.median(each))) for of in results.values() for name, each in of.items()]
    assert sorted(stated) == sorted(speed for name, speed in speeds if name != "zmqrl breakout")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_score_of_a_peer_is_unknown_until_all_first_games_have_ended(tmp_path: Path) -> None:
    scores = Scores(tmp_path / "scores.jsonl", 2, Clock())
    for _ in range(60):
        scores.ended(0, 1.0)
    assert scores.row(10)["score_mean_50"] is None, "the first game of environment 1 still runs"
    scores.ended(1, 51.0)
    assert scores.row(10) == {"wall_s": 0.0, "agent_steps": 10, "episodes": 61, "score_mean_50": 2.0}


def test_the_scores_of_a_peer_are_written_every_ten_seconds_and_at_the_end(tmp_path: Path) -> None:
    file, clock = tmp_path / "scores.jsonl", Clock()
    file.write_text('{"peer": "p"}\n', encoding="utf-8")
    scores = Scores(file, 1, clock)
    for agent_steps, now in enumerate((105.0, 110.0, 119.0, 121.0)):
        clock.now = now
        scores.write(agent_steps)
    scores.write(7, last=True)
    _, *rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert [(each["wall_s"], each["agent_steps"]) for each in rows] == [(10.0, 1), (21.0, 3), (21.0, 7)]


def peer_file(path: Path, *rows: dict[str, Any]) -> Path:
    """The scores of a peer, as ``learning.py`` and a peer write them."""
    about = {"peer": "Other 1.0 PPO", "flavour": SB3_FLAVOUR, "cpu": "EPYC", "cores": 2}
    path.write_text("".join(json.dumps(line) + "\n" for line in (about, *rows)), encoding="utf-8")
    return path


def test_the_last_score_of_a_peer_is_beside_its_flavour(tmp_path: Path) -> None:
    unknown = ROW | {"wall_s": 10.0, "agent_steps": 2_000, "score_mean_50": None}
    peer = learning.Training.of_peer(peer_file(tmp_path / "sb3-ppo.jsonl", unknown, ROW))
    assert np.isnan(peer.score[0])
    assert peer.row() == f"| Other 1.0 PPO | 1 | 16,000 | 1.5 | {SB3_FLAVOUR} | EPYC, 2 cores |"
    empty = learning.Training.of_peer(peer_file(tmp_path / "sb3-a2c.jsonl", unknown))
    assert empty.row() == f"| Other 1.0 PPO | - | - | - | {SB3_FLAVOUR} | EPYC, 2 cores |"


def test_the_training_of_a_peer_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[list[str], float]] = []
    monkeypatch.setattr(learning, "python_of", lambda environment, environments: Path("python"))
    monkeypatch.setattr(learning, "train_with", lambda command, within_s: given.append((command, within_s)))
    learning.train("ppo", 2.0, tmp_path, tmp_path, {"commit": "abc"}, subprocesses=True)
    file = tmp_path / "sb3-ppo-subprocesses.jsonl"
    ((command, within_s),) = given
    assert command[2:] == ["ppo", "--minutes", "2.0", "--subprocesses", "--scores", str(file)]
    assert within_s == 120.0
    about = json.loads(file.read_text(encoding="utf-8"))
    assert (about["commit"], about["options"]) == ("abc", ["ppo", "--minutes", "2.0", "--subprocesses"])


@pytest.mark.processes  # draws for seconds
def test_a_peer_and_zmqrl_are_in_one_picture_with_their_flavours(tmp_path: Path) -> None:
    ended = summary(flavour="as zmqrl plays", provenance={"cpu": "EPYC", "cores": 2})
    run = run_directory(tmp_path / "run", [row(60), row(120)], summary=ended)
    trainings = [
        learning.Training.of_zmqrl(run),
        learning.Training.of_peer(peer_file(tmp_path / "sb3-ppo.jsonl", ROW, ROW | {"wall_s": 120.0})),
    ]
    assert trainings[0].row() == "| zmqrl cartpole | 2 | 120,000 | 120.0 | as zmqrl plays | EPYC, 2 cores |"
    assert trainings[0].minutes.tolist() == [1.0, 2.0]
    learning.draw(trainings, tmp_path / "score.svg")
    drawn = (tmp_path / "score.svg").read_text(encoding="utf-8")
    for words in ("zmqrl cartpole: as zmqrl plays", "Other 1.0 PPO: sticky 0", "minutes"):
        assert words in drawn
    assert learning.table(trainings).startswith("![score against minutes](score.svg)\n\n| Breakout, one seed each |")
