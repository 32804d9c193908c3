"""If an optional package is missing, each command that needs it says so in one sentence, before anything starts."""

import json
import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import gymnasium
import pytest
from support.commands import ran
from support.paths import ROOT, TESTS
from support.without import finders_without, modules_of

from zmqrl import cli
from zmqrl.child_process import ChildProcess
from zmqrl.errors import UsageError
from zmqrl.hosts.link import Link
from zmqrl.learner.envs import find_env
from zmqrl.local import extras
from zmqrl.local.extras import EXTRAS, OF_GYMNASIUM, ON_HOSTS, install_command, missing, require_extra
from zmqrl.supervisor import run

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PONG = str(ROOT / "benchmarks" / "results" / "pong")
Uninstall = Callable[..., None]


@pytest.fixture
def uninstall(monkeypatch: pytest.MonkeyPatch) -> Uninstall:
    """A function that hides the packages of some extras from this process until the end of the test."""

    def hide(*names: str) -> None:
        monkeypatch.setattr(sys, "meta_path", finders_without(*names))
        for module in [module for module in sys.modules if module.partition(".")[0] in modules_of(*names)]:
            monkeypatch.delitem(sys.modules, module)
        if "atari" in names:
            kept = {name: about for name, about in gymnasium.registry.items() if "ale_py" not in str(about.entry_point)}
            monkeypatch.setattr(gymnasium, "registry", kept)
            monkeypatch.setattr(gymnasium.envs.registration, "registry", kept)

    return hide


def test_the_project_declares_exactly_the_extras_that_errors_name() -> None:
    declared = {
        name: [re.split(r">=", each)[0] for each in needs] for name, needs in PROJECT["optional-dependencies"].items()
    }
    assert {name: list(packages) for name, packages in EXTRAS.items()} == {
        name: sorted(declared[name], key=list(EXTRAS[name]).index) for name in EXTRAS
    }
    required = {re.split(r"[>=\[]", each)[0] for each in PROJECT["dependencies"]}
    assert required.isdisjoint(package for packages in EXTRAS.values() for package in packages)
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert set(re.findall(r"\w+", everything)) - {"zmqrl"} == set(EXTRAS) - {"mlflow", "wandb", "ray"}
    assert set(ON_HOSTS) <= set(EXTRAS)
    for extra in OF_GYMNASIUM:
        (needed,) = PROJECT["optional-dependencies"][extra]
        assert needed.startswith(f"gymnasium[{extra}]>=")


def test_constraints_pin_every_package_of_an_extra() -> None:
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    packages = {package.partition("[")[0] for packages in EXTRAS.values() for package in packages}
    assert packages | {"pygame-ce"} <= pinned


def test_an_installed_extra_is_not_missing_and_a_leftover_directory_is_not_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_extra("plot", "pictures need")
    (tmp_path / "left_by_a_run").mkdir()  # like the folder wandb/ in the current directory
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("no_such_module", "left_by_a_run"):
        monkeypatch.setitem(EXTRAS, "mlflow", {"mlflow-skinny": module, "alembic": "json"})
        with pytest.raises(UsageError, match=r"--trackers mlflow needs mlflow-skinny: run .*'zmqrl\[mlflow\]'"):
            require_extra("mlflow", "--trackers mlflow needs")


def test_the_command_installs_into_the_environment_of_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "my bin"))
    monkeypatch.setattr(extras, "is_installed", lambda module: False)
    assert install_command("plot") == f"uv pip install 'zmqrl[plot]' --python '{sys.executable}'"
    monkeypatch.setattr(extras, "is_installed", lambda module: True)
    assert install_command("plot") == f"'{sys.executable}' -m pip install 'zmqrl[plot]'"
    (tmp_path / "my bin").mkdir()
    (tmp_path / "my bin" / "pip").touch(mode=0o755)
    assert install_command("plot") == "pip install 'zmqrl[plot]'"


NEEDS = [
    ("atari", "train breakout"),
    ("atari", "train --env ALE/MsPacman-v5"),
    ("atari", "launch -H h1 pong"),
    ("atari", "bench train breakout"),
    ("atari", f"eval {PONG}"),
    ("atari", f"record {PONG}"),
    ("plot", f"plot {PONG}"),
    ("plot", f"report {PONG}"),
    ("plot", f"reproduce {PONG}"),
    ("plot", "simulate --updates 3 --plot x.png"),
    ("plot", "bench wire --plot x.png"),
    ("plot", f"profile {PONG} --plot x.png"),
    ("video", f"record {PONG}"),
    ("video", "train cartpole --recorder"),
    ("tensorboard", "train cartpole --trackers tensorboard"),
    ("mlflow", "train cartpole --trackers mlflow"),
    ("wandb", "launch -H h1 cartpole --trackers wandb"),
    ("wandb", "bench train cartpole --trackers wandb"),
    ("ray", "launch --ray auto cartpole"),
    ("ray", "doctor --ray auto cartpole"),
    ("page", "serve ."),
    ("page", "train cartpole --page"),
]


@pytest.mark.parametrize(("extra", "line"), NEEDS, ids=[line.replace(PONG, "RUN") for _, line in NEEDS])
def test_a_command_names_the_missing_packages_and_the_command_that_adds_them(
    uninstall: Uninstall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, line: str
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Link, "open", started)
    monkeypatch.setattr(ChildProcess, "__init__", started)
    monkeypatch.setattr(run, "Supervisor", started)
    uninstall(extra)
    assert missing(extra) == list(EXTRAS[extra])
    with pytest.raises(UsageError) as refused:
        cli.run(line.split())
    assert refused.value.exit_status == 2
    packages = re.escape(" and ".join(EXTRAS[extra]))
    assert re.search(rf"needs? {packages}: run .*'zmqrl\[{extra}\]'", str(refused.value)), refused.value
    assert not list(tmp_path.rglob("*")), "the command made files"


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "BreakoutNoFrameskip-v4"])
def test_an_atari_game_without_the_emulator_asks_for_it(uninstall: Uninstall, env_id: str) -> None:
    uninstall("atari")
    with pytest.raises(UsageError, match=rf"no environment '{env_id}': Atari games need ale-py: run "):
        find_env(env_id)


def test_a_misspelt_environment_does_not_ask_for_the_atari_games(uninstall: Uninstall) -> None:
    uninstall("atari")
    with pytest.raises(UsageError, match="did you mean CartPole-v1"):
        find_env("CartPol-v1")


def bare(directory: Path) -> dict[str, str]:
    """The environment of a process that has no extra."""
    places = (TESTS / "support" / "bare", TESTS, ROOT)
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "ZMQRL_HERE": str(directory)}


@pytest.mark.slow
@pytest.mark.processes
def test_every_command_has_its_help_without_extras(tmp_path: Path) -> None:
    program = """
import contextlib, io
from zmqrl.cli import run
from zmqrl.commands import COMMANDS
from zmqrl.local.extras import EXTRAS, missing
assert all(missing(extra) for extra in EXTRAS)
for name in COMMANDS:
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        run([name, "--help"])
"""
    command = [sys.executable, "-c", program]
    assert ran(command, env=bare(tmp_path), cwd=tmp_path).stderr == ""


@pytest.mark.slow
@pytest.mark.processes
def test_the_doctor_finds_no_problem_on_a_machine_without_extras(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zmqrl", "doctor", "--json"]
    found = json.loads(ran(command, env=bare(tmp_path), cwd=tmp_path).stdout)
    assert found["problems"] == []
    assert not any(found["machine"]["extras"].values())


@pytest.mark.slow
@pytest.mark.processes
def test_classic_control_trains_without_extras(tmp_path: Path) -> None:
    options = ["--updates", "3", "--run-dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "zmqrl", "train", "cartpole", *options]
    ran(command, env=bare(tmp_path), cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["exit_reason"] == "updates"
    assert not (tmp_path / "run" / "tensorboard").exists()
