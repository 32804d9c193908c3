"""Evaluations: full games that depend only on their own seeds, and the report of their scores."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from support.commands import ran
from support.paths import ROOT
from support.policy_rig import BREAKOUT, CARTPOLE, write_failing_network, write_run
from support.rig import Interrupted, ending, eventually, is_alive, signal_that_does_not_wake

from zmqrl import cli
from zmqrl.commands.measure import play
from zmqrl.commands.measure.evaluate import _report, evaluate, play_games
from zmqrl.commands.measure.play import Turn, whole_game
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.learner.envs import EnvConfig
from zmqrl.policy import Policy, load_policy

pytestmark = pytest.mark.processes

KEYS = {"episodes", "mean", "median", "min", "max", "ci95", "flavour", "scores"}


@pytest.fixture(scope="module")
def breakout_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "breakout", BREAKOUT, 0)


@pytest.fixture(scope="module")
def cartpole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counters = {"wall_s": 90.0, "agent_steps": 81920}
    return write_run(tmp_path_factory.mktemp("runs") / "cartpole", CARTPOLE, 0, 40, counters=counters)


def games(policy: Policy, seeds: list[int], *, threads: int = 1, greedy: bool = False) -> list[Turn]:
    played = play_games(policy, seeds, greedy=greedy, threads=threads, on_game=lambda last: None)
    return [game.last for game in played]


@pytest.mark.slow
def test_a_game_depends_on_its_own_seed_only(breakout_run: Path) -> None:
    """The number, order and threads of other games do not matter."""
    policy = load_policy(breakout_run)
    six = games(policy, list(range(6)), threads=2)
    assert games(policy, [2, 0, 1]) == [six[2], six[0], six[1]]
    assert games(policy, [5, 4, 3, 2], threads=3) == six[:1:-1]
    assert len({(last.score, last.agent_steps) for last in six}) > 2


KEEPING = """
import time
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, num_actions):
        super().__init__()
        self.body, self.actor = nn.Linear(*shape, 16), nn.Linear(16, num_actions)

    def forward(self, observations):
        self.features = self.body(observations)
        time.sleep(0.001)
        logits = 100 * self.actor(self.features)
        return logits, logits[:, 0]
"""


def test_games_in_other_threads_do_not_matter_to_a_custom_network_that_keeps_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keeping_network.py").write_text(KEEPING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    policy = load_policy(write_run(tmp_path / "run", dataclasses.replace(CARTPOLE, model="keeping_network:Net"), 0))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(-1.5)  # as training would change them
    alone = games(policy, list(range(8)))
    assert len({last.agent_steps for last in alone}) > 2
    assert games(policy, list(range(8)), threads=4) == alone


def test_a_seed_decides_every_step_of_its_game(cartpole_run: Path) -> None:
    policy = load_policy(cartpole_run)
    turns = list(whole_game(policy, 5, greedy=False))
    again = list(whole_game(policy, 5, greedy=False))
    assert turns == again
    np.testing.assert_array_equal([turn.observation for turn in turns], [turn.observation for turn in again])
    assert turns != list(whole_game(policy, 6, greedy=False))
    assert [turn.agent_steps for turn in turns] == list(range(1, len(turns) + 1))
    np.testing.assert_array_equal([turn.score for turn in turns], np.cumsum([turn.reward for turn in turns]))
    greedy = list(whole_game(policy, 5, greedy=True))
    assert [turn.action for turn in greedy] != [turn.action for turn in turns]


def test_a_score_equals_the_score_of_the_whole_game_in_the_bare_emulator(tmp_path: Path) -> None:
    """The game has several lives and rewards above 1, although the run learns from single lives and clipped rewards."""
    envs = EnvConfig(noop_max=0, fire_reset=False, max_frames=3200)
    policy = load_policy(write_run(tmp_path / "run", Config(env="ALE/SpaceInvaders-v5", envs=envs), 0))
    turns = list(whole_game(policy, 1, greedy=False))
    bare = gymnasium.make("ALE/SpaceInvaders-v5", repeat_action_probability=0.0)
    _, info = bare.reset(seed=0)
    lives = info["lives"]
    for turn in turns:
        _, reward, over, _, info = bare.step(turn.action)
        assert turn.reward == reward
    assert turns[-1].score == sum(turn.reward for turn in turns)
    assert turns[-1].cut_off == (not over)
    assert max(turn.reward for turn in turns) > 1
    assert info["lives"] < lives - 1


def test_an_endless_game_is_cut_off_and_counted(cartpole_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documented = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert f"cuts off a game after {play.LONGEST:,} agent steps" in documented
    monkeypatch.setattr(play, "LONGEST", 7)
    result = evaluate(load_policy(cartpole_run), [0, 1, 2], greedy=False, threads=1)
    assert (result["scores"], result["cut_off"]) == ([7.0, 7.0, 7.0], 3)


def test_an_atari_game_is_cut_off_at_its_time_limit_and_counted(breakout_run: Path) -> None:
    ends: list[Turn] = []
    result = evaluate(load_policy(breakout_run), range(3), greedy=False, threads=1, on_game=ends.append)
    assert max(end.agent_steps for end in ends) == 200
    assert result["cut_off"] == sum(end.agent_steps == 200 for end in ends)
    assert len(result["scores"]) == 3


def test_the_statistics_match_the_scores(cartpole_run: Path) -> None:
    result = evaluate(load_policy(cartpole_run), range(10, 30), greedy=False, threads=2)
    scores = result["scores"]
    assert (result["episodes"], len(scores), result["seeds"]) == (20, 20, list(range(10, 30)))
    assert (result["mean"], result["median"]) == (np.mean(scores), np.median(scores))
    assert (result["min"], result["max"]) == (min(scores), max(scores))
    low, high = result["ci95"]
    # For 20 scores, the bootstrap interval is close to the normal one.
    half = 1.96 * np.std(scores) / np.sqrt(len(scores))
    assert low == pytest.approx(np.mean(scores) - half, rel=0.1)
    assert high == pytest.approx(np.mean(scores) + half, rel=0.1)
    assert (result["env"], result["version"], result["wall_s"], result["agent_steps"]) == ("CartPole-v1", 40, 90, 81920)
    assert result["flavour"] == "played as registered, scores are sums of true rewards"


def test_games_that_different_seeds_repeat_are_counted_once_and_reported(
    breakout_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the number of no-ops at the start of a greedy game is random."""
    envs = EnvConfig(noop_max=3, max_frames=60)
    policy = load_policy(write_run(breakout_run.with_name("few-starts"), dataclasses.replace(BREAKOUT, envs=envs), 0))
    result = evaluate(policy, range(5), greedy=True, threads=2)
    assert 1 <= result["distinct"] <= 2 < result["episodes"] == 5
    assert evaluate(policy, range(3), greedy=False, threads=2)["distinct"] == 3
    cli.run(["eval", str(breakout_run.with_name("few-starts")), "--episodes", "5", "--greedy"])
    said = capsys.readouterr().out
    assert ("all games are the same" if result["distinct"] == 1 else "2 different games: other seeds repeat") in said


# A policy sees a random number. Its actions change nothing.
GUESSING = """
import gymnasium
import numpy as np

class Guessing(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))
    action_space = gymnasium.spaces.Discrete(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, True, False, {}

gymnasium.register("Guessing-v0", Guessing)
"""


def test_games_in_which_the_policy_sees_something_else_are_different_even_with_the_same_actions_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "guessing_env.py").write_text(GUESSING, encoding="utf-8")
    run = write_run(tmp_path / "run", dataclasses.replace(CARTPOLE, env="guessing_env:Guessing-v0"), 0)
    assert evaluate(load_policy(run), range(5), greedy=False, threads=1)["distinct"] == 5


@pytest.mark.parametrize(
    ("distinct", "line"),
    [
        (4, "game: f"),
        (3, "3 different games: other seeds repeat one of them"),
        (1, "all games are the same, so the interval says nothing about the policy in other games"),
    ],
)
def test_the_report_says_how_many_games_are_different(distinct: int, line: str) -> None:
    about = {"env": "x", "version": 1, "wall_s": 60.0, "agent_steps": 9, "greedy": False, "flavour": "f", "cut_off": 0}
    figures = {"mean": 1.0, "ci95": [0.0, 2.0], "median": 1.0, "min": 0.0, "max": 2.0}
    text = _report(figures | about | {"episodes": 4, "distinct": distinct, "seeds": [0, 1, 2, 3]})
    assert text.splitlines()[2] == line
    assert "too narrow" not in text


def test_the_report_shows_that_an_interval_has_a_width() -> None:
    about = {"env": "x", "version": 1, "wall_s": 60.0, "agent_steps": 9, "greedy": False, "flavour": "f", "cut_off": 0}
    figures = {"mean": 0.52, "ci95": [0.51, 0.53], "median": 0.5, "min": 0.5, "max": 0.54}
    text = _report(figures | about | {"episodes": 4, "distinct": 4, "seeds": [0, 1, 2, 3]})
    assert "mean 0.52 (95 % interval 0.51 to 0.53), median 0.5" in text


def test_a_player_that_fails_ends_the_evaluation(cartpole_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = []

    def failing(policy: Policy, seed: int, *, greedy: bool) -> Any:
        played.append(seed)
        if seed == 1:
            raise RuntimeError("the joystick broke")
        while True:
            yield Turn(
                observation=np.zeros(4), action=0, reward=0.0, score=0.0, agent_steps=1, over=True, cut_off=False
            )

    monkeypatch.setattr("zmqrl.commands.measure.evaluate.whole_game", failing)
    with pytest.raises(RuntimeError, match="the joystick broke"):
        games(load_policy(cartpole_run), list(range(50)), threads=2)
    assert len(played) < 50


@pytest.mark.timeout(120)
def test_a_signal_that_does_not_wake_the_main_thread_ends_an_evaluation_in_the_middle_of_a_game(
    cartpole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(policy: Policy, seed: int, *, greedy: bool) -> Any:
        while True:
            time.sleep(0.01)
            yield Turn(
                observation=np.zeros(4), action=0, reward=0.0, score=0.0, agent_steps=1, over=True, cut_off=False
            )

    monkeypatch.setattr("zmqrl.commands.measure.evaluate.whole_game", endless)
    with pytest.raises(Interrupted), signal_that_does_not_wake():
        games(load_policy(cartpole_run), [0, 1], threads=2)


BROKEN = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Broken(CartPoleEnv):
    failed = False

    def step(self, action):
        self.failed = True
        raise RuntimeError("the joystick broke")

    def close(self):
        if self.failed:
            raise AttributeError("no joystick")

gymnasium.register("Broken-v0", Broken)
"""


def test_an_error_names_a_custom_environment_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_to_eval.py").write_text(BROKEN, encoding="utf-8")
    run = write_run(tmp_path / "run", dataclasses.replace(CARTPOLE, env="broken_to_eval:Broken-v0"), 0)
    with pytest.raises(
        UsageError,
        match=r"broken_to_eval:Broken-v0 fails: RuntimeError: the joystick broke \(broken_to_eval\.py, line 10\)\.",
    ):
        cli.run(["eval", str(run)])


def test_eval_prints_one_json_object_and_nothing_else(cartpole_run: Path) -> None:
    command = [sys.executable, "-m", "zmqrl", "eval", str(cartpole_run), "--episodes", "3", "--json"]
    done = ran(command, within_s=100)
    result = json.loads(done.stdout)
    assert set(result) >= KEYS
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    assert result["scores"] == evaluate(load_policy(cartpole_run), range(3), greedy=False, threads=1)["scores"]


# With a file in the variable SERVERS, each environment starts a server, which inherits the pipes, and notes its id.
SERVED = """
import os, signal, subprocess
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Served(CartPoleEnv):
    def __init__(self):
        super().__init__()
        if path := os.environ.get("SERVERS"):
            server = subprocess.Popen(["sleep", "600"], start_new_session=True)
            with open(path, "a") as servers:
                servers.write(f"{server.pid}\\n")

    def step(self, action):
        if "CRASH" in os.environ:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().step(action)

gymnasium.register("Served-v0", Served, max_episode_steps=10)
"""


@pytest.mark.parametrize(
    ("crash", "status"), [({}, 0), pytest.param({"CRASH": ""}, 2, marks=pytest.mark.slow)], ids=["plays", "crashes"]
)
def test_eval_leaves_no_server_of_an_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: dict[str, str], status: int
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "served_to_eval.py").write_text(SERVED, encoding="utf-8")
    run = write_run(tmp_path / "run", dataclasses.replace(CARTPOLE, env="served_to_eval:Served-v0"), 0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SERVERS": str(tmp_path / "servers"), **crash}
    command = [sys.executable, "-m", "zmqrl", "eval", str(run), "--episodes", "2", "--json"]
    done = ran(command, status=status, within_s=100, env=environment)
    assert done.stderr == (
        "zmqrl: zmqrl eval ended (killed by SIGSEGV): perhaps native code of its environment or neural network has "
        "crashed.\n"
        if crash
        else ""
    )
    servers = [int(pid) for pid in (tmp_path / "servers").read_text(encoding="utf-8").split()]
    assert len(servers) >= 2
    assert not any(map(is_alive, servers))


# A step never returns, and swallows the exception of Ctrl-C. The environment notes its first step.
STUCK = """
import os, time
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv

class Stuck(CartPoleEnv):
    def render(self):
        return np.zeros((8, 8, 3), np.uint8)

    def step(self, action):
        Path(os.environ["STUCK"]).touch()
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass

gymnasium.register("Stuck-v0", Stuck)
"""


KILLED = "zmqrl record was killed: it had not ended 10 s after SIGTERM.\n"


@pytest.mark.parametrize(
    ("command", "number", "said"),
    [  # a step in a thread does not hold the command, but one in the main thread can swallow the exception of Ctrl-C
        ("eval", signal.SIGTERM, ""),
        pytest.param("eval", signal.SIGHUP, "", marks=pytest.mark.slow),
        pytest.param("eval", signal.SIGINT, "", marks=pytest.mark.slow),
        pytest.param("record", signal.SIGTERM, KILLED, marks=pytest.mark.slow),
    ],
)
def test_a_game_whose_step_never_returns_ends_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, number: signal.Signals, said: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stuck_to_eval.py").write_text(STUCK, encoding="utf-8")
    run = write_run(tmp_path / "run", dataclasses.replace(CARTPOLE, env="stuck_to_eval:Stuck-v0"), 0)
    told = {"STUCK": str(tmp_path / "stuck"), "PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **told}
    program, pipe = [sys.executable, "-m", "zmqrl", command, str(run)], subprocess.PIPE

    def hear() -> None:
        signal.signal(number, signal.SIG_DFL)  # it may be ignored where the tests run

    with ending(
        subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True, env=environment, preexec_fn=hear)
    ) as process:
        eventually((tmp_path / "stuck").exists, "the first step", 60)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, "", said)


# The first game that begins never returns from its first step, and the next one fails.
HALF_STUCK = """
import os, time

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class HalfStuck(CartPoleEnv):
    def step(self, action):
        try:
            os.mkdir(os.environ["STUCK"])
        except FileExistsError:
            raise RuntimeError("the joystick broke") from None
        while True:
            time.sleep(600)

gymnasium.register("HalfStuck-v0", HalfStuck)
"""


def test_an_error_ends_eval_while_the_step_of_another_game_never_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_stuck_to_eval.py").write_text(HALF_STUCK, encoding="utf-8")
    run = write_run(tmp_path / "run", dataclasses.replace(CARTPOLE, env="half_stuck_to_eval:HalfStuck-v0"), 0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "STUCK": str(tmp_path / "stuck")}
    command = [sys.executable, "-m", "zmqrl", "eval", str(run), "--episodes", "2", "--threads", "2"]
    done = ran(command, status=2, within_s=100, env=environment)
    assert done.stdout == ""
    reason = "RuntimeError: the joystick broke (half_stuck_to_eval.py, line 12)"
    assert done.stderr == f"zmqrl: half_stuck_to_eval:HalfStuck-v0 fails: {reason}.\n"


def test_a_game_whose_step_never_returns_does_not_hide_the_error_of_another(
    cartpole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def failing(policy: Policy, seed: int, *, greedy: bool) -> Any:
        if seed == 1:
            raise RuntimeError("the joystick broke")
        over.wait()
        yield from ()

    monkeypatch.setattr("zmqrl.commands.measure.evaluate.whole_game", failing)
    monkeypatch.setattr("zmqrl.commands.measure.evaluate.LEAVE_WITHIN_S", 0.1)
    try:
        with pytest.raises(RuntimeError, match="the joystick broke"):
            games(load_policy(cartpole_run), [0, 1], threads=2)
    finally:
        over.set()


def test_eval_prints_a_score_with_everything_it_depends_on(
    breakout_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["eval", str(breakout_run), "--episodes", "2", "--seed", "3"]) == 0
    said = capsys.readouterr()
    first, second, third = said.out.splitlines()
    assert first == "ALE/Breakout-v5, version 0 (0.0 minutes, 0 agent steps), sampled actions"
    assert second.startswith("2 full games, seeds 3 to 4: mean ")
    assert third == f"game: {BREAKOUT.envs.flavour()}"
    assert said.err == ""


def test_no_digit_of_a_large_score_is_lost() -> None:
    figures = {"mean": 1_234_567.0, "ci95": [1_000_000.0, 2_000_000.0], "median": 1_234_567.0, "min": 0.5, "max": 2e6}
    about = {"env": "x", "version": 1, "wall_s": 60.0, "agent_steps": 9, "greedy": True, "flavour": "", "cut_off": 0}
    text = _report(figures | about | {"episodes": 2, "distinct": 2, "seeds": [0, 1]})
    assert (
        "mean 1,234,567.0 (95 % interval 1,000,000.0 to 2,000,000.0), median 1,234,567, min 0.5, max 2,000,000" in text
    )


def test_progress_is_shown_on_a_terminal(
    cartpole_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    cli.run(["eval", str(cartpole_run), "--episodes", "2"])
    shown = capsys.readouterr().err.split("\r\x1b[K")
    assert shown[1].startswith("no game has ended")
    assert shown[2].startswith("1 of 2 games, mean score ")
    assert shown[3].startswith("2 of 2 games, mean score ")
    assert shown[4:] == [""]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--episodes 0", "--episodes 0: must be from 1 to 100000."),
        ("--episodes 100000000000000000000", "--episodes 100000000000000000000: must be from 1 to 100000."),
        ("--threads 0", "--threads 0: must be 1 or more."),
        ("--seed -1", "--seed -1: must be at least 0 and below 2^32."),
        (
            "--checkpoint 7",
            "there is no checkpoint of version 7 in {run}/checkpoints: choose one of v00000000, v00000040.",
        ),
    ],
)
def test_eval_refuses_bad_usage_in_one_sentence(
    cartpole_run: Path, options: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as refused:
        cli.run(["eval", str(cartpole_run), *options.split()])
    assert str(refused.value) == sentence.format(run=cartpole_run)
    assert capsys.readouterr().out == ""


def answer_of(follower: str, job: dict[str, Any], message: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The answer of a new follower process to ``message``, and its log."""
    with ending(
        subprocess.Popen(
            [sys.executable, "-m", follower],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True,
        )
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{json.dumps(job)}\n{json.dumps(message)}\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        _, log = process.communicate(timeout=180)
        assert process.returncode == 0, "the follower ends with its parent"
    return answer, log


@pytest.mark.parametrize("samples", [False, True])
def test_an_evaluator_with_greedy_actions_samples_them_on_request(cartpole_run: Path, samples: bool) -> None:
    job = {"run_dir": str(cartpole_run), "episodes": 3, "greedy": True, "threads": 1}
    message = {"version": 0, "episodes": 3, "seed": 2**31} | ({"samples": True} if samples else {})
    answer, _ = answer_of("zmqrl.commands.measure.evaluate", job, message)
    played = answer["evaluation"]
    assert (played["greedy"], played["seeds"]) == (not samples, [2**31, 2**31 + 1, 2**31 + 2])
    wanted = evaluate(load_policy(cartpole_run), played["seeds"], greedy=not samples, threads=1)
    assert played["scores"] == wanted["scores"]


@pytest.mark.parametrize(
    ("follower", "message"),
    [
        ("zmqrl.commands.measure.evaluate", {"version": 0}),
        ("zmqrl.commands.measure.record", {"version": 0, "name": "minute-000"}),
    ],
)
def test_the_evaluator_skips_a_checkpoint_whose_custom_network_fails_and_logs_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, follower: str, message: dict[str, Any]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    module = write_failing_network(tmp_path, "raise ValueError('too few')")
    run = write_run(tmp_path / "run", dataclasses.replace(BREAKOUT, model=f"{module}:Net"), 0)
    job = {"run_dir": str(run), "episodes": 1, "greedy": False, "threads": 1}
    answer, log = answer_of(follower, job, message)
    assert answer["skipped"] == 0
    assert answer["reason"].startswith(f"--model {module}:Net fails for observations of shape (4, 84, 84): ValueError")
    assert f'{module}.py", line' in log
