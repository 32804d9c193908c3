"""The recipe may stand anywhere among the options of a run, and an error names the command that was called."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from zmqrl import cli
from zmqrl.commands.options import operands, options_of
from zmqrl.commands.run import launch, train
from zmqrl.commands.run.train import config_from
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.learner.settings import PPOConfig
from zmqrl.recipes import RECIPES

PARTS = (
    ["--detach"],
    ["--minutes", "5"],
    ["--trackers=wandb", "mlflow"],
    ["--no-page"],
    ["--profile"],
    ["--run_dir", "pong"],
    ["--recording.minutes", "0", "15"],
    ["--stop-score", "-5"],
    ["--envs.num-envs=4"],
    ["--straggle", "0:1"],
    ["--env-arg", "g=9.81"],
)


@pytest.mark.parametrize("place", range(len(PARTS) + 1))
def test_the_recipe_may_stand_anywhere(place: int) -> None:
    parts = [*PARTS[:place], ["cartpole"], *PARTS[place:]]
    config = config_from([word for part in parts for word in part])
    assert (config.recipe, config.env, config.detach, config.minutes) == ("cartpole", "CartPole-v1", True, 5.0)
    assert (config.trackers, config.page, config.profile) == (("wandb", "mlflow"), False, 100)
    assert (str(config.run_dir), config.recording.minutes, config.stop_score) == ("pong", (0.0, 15.0), -5.0)
    assert (config.envs.num_envs, config.straggle, config.envs.args) == (4, ("0:1",), ("g=9.81",))


@pytest.mark.parametrize("own", [train.Options, launch.Options])
def test_no_option_takes_a_recipe_for_its_value_and_no_value_is_taken_for_a_recipe(own: type) -> None:
    for option in (*options_of(own), *options_of(Config)):
        values = [] if option.takes == "nothing" else ["two", "three"] if option.is_list else ["pong"]
        for name in option.names:
            line = [name, *values]
            assert operands([*line, "cartpole"], (own, Config), RECIPES) == (["cartpole"], line)
            assert operands(["cartpole", *line], (own, Config), RECIPES) == (["cartpole"], line)


@pytest.mark.parametrize(
    "line", ["--resume pong", "--resume --run-dir pong", "--run-dir pong --resume", "--resume pong --minutes 5"]
)
def test_the_word_after_resume_is_a_run(line: str) -> None:
    with pytest.raises(UsageError, match=r"^pong is not a run directory: there is no config\.json in it\.$"):
        config_from(line.split())


def test_a_run_to_resume_is_given_only_once() -> None:
    with pytest.raises(UsageError, match="--run-dir is given 2 times"):
        config_from(["--resume", "one", "--run-dir", "two"])
    with pytest.raises(UsageError, match=r"^two is not a run directory: there is no config\.json in it\.$"):
        config_from(["--resume", "cartpole", "--run-dir", "two"])


@pytest.mark.parametrize(
    ("line", "recipe", "env"),
    [
        ("", "breakout", "ALE/Breakout-v5"),
        ("--env ALE/Pong-v5", "breakout", "ALE/Pong-v5"),
        ("--env PongNoFrameskip-v4", "breakout", "PongNoFrameskip-v4"),
        ("--env Pong-v4", "breakout", "Pong-v4"),
        ("--env ale_py:ALE/Pong-v5", "breakout", "ale_py:ALE/Pong-v5"),
        ("--env ale_py:Pong-v4", "breakout", "ale_py:Pong-v4"),
        ("--env SpaceInvaders-v0", "breakout", "SpaceInvaders-v0"),
        ("--env Ant-v4", "gymnasium", "Ant-v4"),
        ("--env CartPole-v0", "gymnasium", "CartPole-v0"),
        ("--env my_games:Pong-v4", "gymnasium", "my_games:Pong-v4"),
        ("--env zmqrl/Dummy-v0", "breakout", "zmqrl/Dummy-v0"),
        ("cartpole --env Acrobot-v1", "cartpole", "Acrobot-v1"),
        ("--workers 3 --env Acrobot-v1", "gymnasium", "Acrobot-v1"),
        ("--env=my_games:Maze-v0 --env-arg size=3", "gymnasium", "my_games:Maze-v0"),
        ("gymnasium", "gymnasium", "CartPole-v1"),
        ("gymnasium --env ALE/Pong-v5", "gymnasium", "ALE/Pong-v5"),
    ],
)
def test_the_recipe_fits_the_environment_if_none_is_named(line: str, recipe: str, env: str) -> None:
    config = config_from(line.split())
    assert (config.recipe, config.env) == (recipe, env)
    default = RECIPES[recipe]()
    assert (config.model, config.algo, config.optimizer) == (default.model, default.algo, default.optimizer)


def test_the_recipe_of_any_environment_normalizes_vectors_but_no_images() -> None:
    for options, observations in (([], True), (["--envs.images"], False)):
        envs = config_from(["--env", "CarRacing-v3", *options]).envs
        assert (envs.normalize_observations, envs.normalize_rewards) == (observations, True)


@pytest.mark.parametrize("env", ["CartPole-v1", "my_games:Maze-v0", "my_games:ALE/Maze-v0"])
def test_rewards_of_other_games_than_atari_cannot_be_clipped(env: str) -> None:
    for options in ([], ["--envs.no-clip-rewards"]):
        assert config_from(["cartpole", "--env", env, *options]).env == env
    for option in ("--envs.clip-rewards", "--envs.clip_rewards"):
        with pytest.raises(UsageError) as refused:
            config_from(["cartpole", "--env", env, option])
        assert str(refused.value).startswith("--envs.clip-rewards applies only to Atari games, where it is the default")
    for atari in ("ALE/Pong-v5", "ale_py:ALE/Pong-v5", "PongNoFrameskip-v4", "Pong-v4"):
        assert config_from(["pong", "--env", atari, "--envs.clip-rewards"]).envs.clip_rewards


ALGORITHM = {
    "rollout-steps": "32",
    "gamma": "0.9",
    "value-coefficient": "0.3",
    "entropy-coefficient": "0.3",
    "final-entropy-coefficient": "0.1",
    "entropy-schedule-updates": "9",
    "max-grad-norm": "1",
}
PPO = {
    "epochs": "5",
    "minibatches": "4",
    "shuffle": "samples",
    "gae-lambda": "0.9",
    "clip": "0.2",
    "final-clip": "0.05",
    "no-normalize-advantages": "",
}
# Each option with another value than its default, a command line in which it has no effect, and one in which it has.
LEFT_UNUSED = [
    *((f"--ppo.{name}", value, "breakout", "breakout --algo ppo") for name, value in (ALGORITHM | PPO).items()),
    *((f"--ba3c.{name}", value, "pong", "pong --algo ba3c") for name, value in ALGORITHM.items()),
    ("--optimizer.beta1", "0.5", "breakout --optimizer.name rmsprop", "breakout"),
    ("--optimizer.beta2", "0.5", "breakout --optimizer.name sgd", "breakout"),
    ("--optimizer.alpha", "0.5", "breakout", "breakout --optimizer.name rmsprop"),
    ("--optimizer.epsilon", "0.1", "breakout --optimizer.name sgd", "breakout --optimizer.name rmsprop"),
    ("--schedule.updates", "9", "cartpole", "cartpole --ppo.final-clip 0.01"),
    ("--schedule.agent-steps", "9", "cartpole", "pong"),
    ("--schedule.minutes", "9", "cartpole --optimizer.final-learning-rate 0 --optimizer.schedule-updates 9", "pong"),
]
ALWAYS_USED = {"name", "learning-rate", "final-learning-rate", "schedule-updates", "weight-decay"}
REFUSED_ANYWAY = {"momentum"}  # OptimizerConfig refuses it with adam


@pytest.mark.parametrize(("option", "value", "without", "with_effect"), LEFT_UNUSED)
def test_an_option_without_effect_is_refused(option: str, value: str, without: str, with_effect: str) -> None:
    given = [option, *filter(None, [value])]
    if option.endswith("entropy-schedule-updates"):
        given += [option.replace("entropy-schedule-updates", "final-entropy-coefficient"), "0"]
    with pytest.raises(UsageError) as refused:
        config_from([*without.split(), *given])
    assert re.match(r"--\S+ has no effect with(out)? .*: remove it, or [^.]*--[^ ]+.*\.$", str(refused.value))
    config_from([*with_effect.split(), *given])


def test_the_error_about_an_option_without_effect_says_what_to_do() -> None:
    for line, sentence in {
        "breakout --ppo.clip 0.2": "--ppo.clip has no effect with --algo ba3c: remove it, or use --algo ppo.",
        "pong --optimizer.alpha=0.9": (
            "--optimizer.alpha has no effect with --optimizer.name adam: remove it, or use --optimizer.name rmsprop."
        ),
        "pong --optimizer.name sgd --optimizer.epsilon 1": (
            "--optimizer.epsilon has no effect with --optimizer.name sgd: remove it, or use --optimizer.name adam or "
            "--optimizer.name rmsprop."
        ),
        "cartpole --schedule.minutes 9": (
            "--schedule.minutes has no effect without a schedule that follows the progress of the run: remove it, or "
            "set the value at the end of a schedule, such as --optimizer.final-learning-rate."
        ),
    }.items():
        with pytest.raises(UsageError) as refused:
            config_from(line.split())
        assert str(refused.value) == sentence


def test_every_option_of_algorithms_optimizers_and_schedules_has_an_effect_or_is_refused() -> None:
    known = {option.names[0] for option in options_of(Config)}
    groups = ("--ppo.", "--ba3c.", "--optimizer.", "--schedule.")
    unused = {option.replace(".no-", ".") for option, *_ in LEFT_UNUSED}
    of_optimizers = {f"--optimizer.{name}" for name in ALWAYS_USED | REFUSED_ANYWAY}
    assert {name for name in known if name.startswith(groups)} == unused | of_optimizers, "is a new option ignored?"


def test_a_default_value_and_a_stored_setting_are_accepted_without_effect(tmp_path: Path) -> None:
    assert config_from(["breakout", "--optimizer.name", "rmsprop", "--optimizer.beta1", "0.9"]).optimizer.beta1 == 0.9
    clipped = dataclasses.replace(RECIPES["breakout"](), ppo=PPOConfig(clip=0.2))
    (tmp_path / "config.json").write_text(json.dumps(clipped.to_json()), encoding="utf-8")
    resume = ["--resume", "--run-dir", str(tmp_path)]
    assert config_from(resume).ppo.clip == 0.2
    assert config_from([*resume, "--algo", "ppo", "--ppo.clip", "0.3"]).ppo.clip == 0.3
    with pytest.raises(UsageError, match=r"^--ppo\.clip has no effect with --algo ba3c"):
        config_from([*resume, "--ppo.clip", "0.3"])


COMMANDS = ["train", "train --dry-run", "launch -H h1", "bench train", "doctor", "doctor -H h1"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "--worker 3 cartpole",
            "unknown option --worker (did you mean --workers?); zmqrl {} --help lists the options.",
        ),
        ("--workers two", "--workers two: must be a whole number; zmqrl {} --help lists the options."),
        ("--page cartpol", "unknown recipe 'cartpol' (did you mean cartpole?); choose one of breakout, .*"),
        ("cartpole --page pong", "cartpole pong: a command takes only one recipe."),
    ],
)
def test_an_error_names_the_command_that_was_called(command: str, words: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        cli.run([*command.split(), *words.split()])
    called = re.sub(r" -.*", "", command)
    pattern = re.escape(sentence.format(called)).replace(r"\.\*", ".*")
    assert re.fullmatch(pattern, str(refused.value)), refused.value


@pytest.mark.parametrize("command", ["status runs/a runs/b", "recipes pong runs/b", "worker a/cluster.json runs/b"])
def test_an_error_names_an_argument_too_many(command: str) -> None:
    sentence = f"unexpected argument runs/b; zmqrl {command.split()[0]} --help lists the options."
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        cli.run(command.split())


def test_an_error_suggests_an_option_of_the_command_itself() -> None:
    with pytest.raises(UsageError, match=r"unknown option --dry-rn \(did you mean --dry-run\?\)"):
        cli.run(["launch", "-H", "h1", "cartpole", "--dry-rn"])


@pytest.mark.parametrize(
    ("line", "env"),
    [
        ("train --detach cartpole --help", "CartPole-v1"),
        ("train -h", "ALE/Breakout-v5"),
        ("train --resume runs/first --help", "ALE/Breakout-v5"),
        ("train --env Acrobot-v1 --help", "CartPole-v1"),
        ("launch -H a,b cartpole --help", "CartPole-v1"),
        ("launch --help -H a,b --via 'env' cartpole", "CartPole-v1"),
    ],
)
def test_the_help_has_the_defaults_of_the_recipe_wherever_it_stands(
    line: str, env: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(line.split()) == 0
    assert f"(default: {env})" in capsys.readouterr().out
