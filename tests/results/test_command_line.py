"""The command in a report gives the settings of the reported run."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from zmqrl.commands.run.train import config_from
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.observe.records import flat
from zmqrl.recipes import RECIPES
from zmqrl.results.command_line import train_command

CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "workers": st.integers(1, 9),
    "quorum": st.none() | st.integers(1, 9),
    "algo": st.sampled_from(["ppo", "ba3c"]),
    "model": st.sampled_from(["narrow", "mlp", "mine:Net"]),
    "updates": st.none() | st.integers(1, 10**9),
    "agent_steps": st.none() | st.integers(1, 10**9),
    "minutes": st.none() | st.floats(0.01, 1e6),
    "stop_score": st.none() | st.floats(-100, 100),
    "seed": st.integers(0, 2**32 - 1),
    "consistent": st.booleans(),
    "evaluator": st.booleans(),
    "straggle": st.lists(st.sampled_from(["0:0.5", "1:x3"]), max_size=2).map(tuple),
    "optimizer.learning_rate": st.floats(1e-9, 1),
    "optimizer.final_learning_rate": st.none() | st.floats(0, 1),
    "optimizer.schedule_updates": st.integers(0, 1000),
    "ppo.normalize_advantages": st.booleans(),
    "ppo.final_entropy_coefficient": st.none() | st.floats(0, 1),
    "envs.fire_reset": st.booleans(),
    "envs.args": st.lists(st.sampled_from(["hardcore=True", "m=[1, 2]"]), max_size=2).map(tuple),
    "envs.wrappers": st.lists(st.just("mine:wrap"), max_size=2).map(tuple),
    "schedule.updates": st.none() | st.integers(1, 10**9),
    "schedule.minutes": st.none() | st.floats(0.01, 1e6),
    "wire.insecure_plaintext": st.booleans(),
    "wire.port_range": st.none() | st.just("5000-5100"),
    "recording.minutes": st.lists(st.floats(0, 100), max_size=3).map(tuple),
}


def changed(config: Config, changes: dict[str, Any]) -> Config:
    for name, value in changes.items():
        part, _, last = name.rpartition(".")
        change = {last: value} if not part else {part: dataclasses.replace(getattr(config, part), **{last: value})}
        config = dataclasses.replace(config, **change)
    return config


def stored(config: Config) -> Config:
    """The settings that options can set, as a run stores them. Those without effect are as in the recipe."""
    config = config.with_schedule()
    schedule = dataclasses.replace(config.schedule, default_minutes=None)
    config = dataclasses.replace(config, schedule=schedule, trackers=(), run_dir=None)
    recipe = dict(flat(RECIPES[config.recipe]().to_json()))
    return changed(config, {name: recipe[name] for name in config.without_effect()})


@pytest.mark.slow  # reads a command line in each example
@settings(max_examples=50)
@given(st.sampled_from(sorted(RECIPES)), st.fixed_dictionaries({}, optional=CHANGES))
def test_the_command_gives_the_settings(recipe: str, changes: dict[str, Any]) -> None:
    try:
        config = stored(changed(RECIPES[recipe](), changes))
    except UsageError:  # a schedule without an end
        reject()
    command = train_command(config)
    assert command[:3] == ["zmqrl", "train", recipe]
    assert stored(config_from(command[2:])) == config


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], []),
        (["--minutes", "30"], ["--minutes", "30"]),
        (["--schedule.minutes", "90", "--minutes", "30"], ["--minutes", "30", "--schedule.minutes", "90"]),
        (
            ["--ppo.no-normalize-advantages", "--straggle", "1:2"],
            ["--straggle", "1:2", "--ppo.no-normalize-advantages"],
        ),
    ],
)
def test_the_command_is_short(options: list[str], expected: list[str]) -> None:
    assert train_command(config_from(["breakout-ppo", *options]).with_schedule())[3:] == expected


def test_the_command_leaves_out_settings_without_effect() -> None:
    breakout = RECIPES["breakout"]()
    assert train_command(changed(breakout, {"ppo.clip": 0.2, "optimizer.alpha": 0.9}))[3:] == []
    cartpole = changed(RECIPES["cartpole"](), {"schedule.updates": 9})
    assert train_command(cartpole)[3:] == []
