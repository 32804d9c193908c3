"""Options that are given twice are never silently dropped, and a bad value is refused in plain words."""

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tyro

from zmqrl import cli
from zmqrl.commands.inspect import profile
from zmqrl.commands.measure import compare, plot, simulate
from zmqrl.commands.options import ALIASES, REPEATABLE, parse, parse_known
from zmqrl.commands.run import launch
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.recipes import cartpole


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("-H a -H b", "-H is given 2 times: give it once, with a list of hosts such as h1,h2."),
        ("-H a --hosts b", "-H is given 2 times: give it once, with a list of hosts such as h1,h2."),
        (
            "-H a --include a --include b --include c",
            "--include is given 3 times: give it once, with a list of hosts such as h1,h2.",
        ),
        ("-H a --iface ib0 --iface=ib1", "--iface is given 2 times: give it once."),
        ("-H a --ssh-config x --ssh_config y", "--ssh-config is given 2 times: give it once."),
        ("-H a --preflight --no-preflight", "--preflight is given 2 times: give it once."),
        ("-H a --workers 2 --seed 1 --workers 4", "--workers is given 2 times: give it once."),
        ("-H a --port-range 5000-5009 --wire.port-range 6000-6009", "--port-range is given 2 times: give it once."),
        ("-H a --envs.no-fire-reset --envs.fire-reset", "--envs.no-fire-reset is given 2 times: give it once."),
    ],
)
def test_a_repeated_option_is_refused(arguments: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        launch.command(arguments.split())
    assert str(refused.value) == sentence


HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train --workers two", "--workers two: must be a whole number; zmqrl train --help lists the options."),
        ("train --envs.num-envs it's", "--envs.num-envs it's: must be a whole number; zmqrl train --help lists"),
        ("train --ppo.clip x", "--ppo.clip x: must be a number; zmqrl train --help lists"),
        ("train --minutes 1e", "--minutes 1e: must be a number or None; zmqrl train --help lists"),
        ("train --quorum 1.5", "--quorum 1.5: must be a whole number or None; zmqrl train --help lists"),
        (f"train --workers {HUGE}", "--workers: the number has too many digits; zmqrl train --help lists"),
        (
            "train --recording.minutes x",
            "--recording.minutes x: has a value of the wrong type; zmqrl train --help lists",
        ),
        ("train --mode fast", "--mode fast: must be one of sync, async; zmqrl train --help lists"),
        ("completion tcsh", "shell tcsh: must be one of bash, zsh, fish; zmqrl completion --help lists"),
        ("train --minutes", "--minutes: its value is missing; zmqrl train --help lists"),
        ("eval", "RUN is required; zmqrl eval --help lists"),
        ("plan", "--workers-up-to is required; zmqrl plan --help lists"),
        ("eval --greedy=3 run", "--greedy takes no value; zmqrl eval --help lists"),
        ("train --no-consistent=3", "--no-consistent takes no value; zmqrl train --help lists"),
        ("train --dry-run --port-range ²-³", "--wire.port-range ²-³: must be FIRST-LAST within 1024-65535."),
        (f"train --dry-run --metrics-port {HUGE}", f"--metrics-port {HUGE}: the port must be from 0 to 65535."),
        ("train --dry-run --env=", "--env: the id of an environment is missing."),
        ("train --resume {here}", "{here} is not a run directory: there is no config.json in it."),
        ("launch --dry-run -H {here}", "-H {here}: this is a directory."),
        ("worker {here}", "{here} is a directory: use {here}/cluster.json."),
        ("stop {here} --within-s nan", "--within-s nan: must be above 0 and finite."),
        ("stop {here} --within-s 0", "--within-s 0.0: must be above 0 and finite."),
        ("logs {here} --tail -5", "--tail -5: must be 0 or more."),
    ],
    ids=lambda text: text[:40],
)
def test_a_bad_value_is_refused_in_plain_words(arguments: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        cli.run([word.format(here=tmp_path) for word in arguments.split()])
    assert str(refused.value).startswith(sentence.format(here=tmp_path))


def test_several_values_and_negative_numbers_do_not_count_as_repeated_options() -> None:
    config = parse(
        Config, ["--straggle", "0:1", "--straggle", "1:2", "--stop-score", "-5", "--minutes", "5"], "zmqrl", cartpole()
    )
    assert (config.straggle, config.stop_score) == (("0:1", "1:2"), -5.0)
    options, _ = parse_known(launch.Options, ["-H", "a", "--address", "a=10.0.0.1", "--address", "b=10.0.0.2"], "zmqrl")
    assert options.address == ("a=10.0.0.1", "b=10.0.0.2")


@pytest.mark.parametrize("cls", [compare.Options, plot.Options, profile.Options])
@pytest.mark.parametrize("line", ["--json one two", "one --json two", "one two --json", "--json -- one two"])
def test_runs_may_stand_anywhere_among_the_options(cls: Any, line: str) -> None:
    words = line.replace("--json", "--x minutes" if cls is plot.Options else "--json").split()
    assert parse(cls, words, "zmqrl").runs == (Path("one"), Path("two"))


def test_a_scenario_file_may_stand_anywhere_among_the_options(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text("workers = 7", encoding="utf-8")
    for line in (f"{path} --shards 3 --json", f"--shards 3 {path} --json", f"--json --shards=3 {path}"):
        options = simulate.options_from(line.split())
        assert (options.settings.workers, options.settings.shards, options.json) == (7, 3, True)
    with pytest.raises(UsageError, match="give only one of FILE"):
        simulate.options_from([str(path), "--json", str(path)])


def annotations(cls: type[Any], path: str = "--") -> dict[str, Any]:
    """The annotation of each option of ``cls``."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        option = path + name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            found |= annotations(hint, f"{option}.")
        else:
            found[option] = hint
    return found


def test_every_option_that_appends_its_values_may_be_repeated() -> None:
    hints: dict[str, Any] = {}
    for options in (Config, launch.Options, profile.Options, simulate.Options):
        hints |= annotations(options)
    appending = {name for name, hint in hints.items() if tyro.conf.UseAppendAction in getattr(hint, "__metadata__", ())}
    assert appending == REPEATABLE


def test_the_aliases_of_all_options_are_known() -> None:
    hints = annotations(Config) | annotations(launch.Options)
    names = {
        alias: name
        for name, hint in hints.items()
        for about in getattr(hint, "__metadata__", ())
        for alias in getattr(about, "aliases", None) or ()
    }
    assert names == {alias: name for alias, name in ALIASES.items() if name != "--follow"}
