"""Options that are given twice are never silently dropped."""

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import tyro

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
    options = parse(cls, words, "zmqrl")
    assert options.runs == (Path("one"), Path("two"))
    assert options == parse(cls, [*words, "--"], "zmqrl")


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
