"""The directory in which the user starts zmqrl: its modules can be imported, and do not hide other modules."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from support.commands import ran
from support.paths import ROOT
from support.run_rig import training

from zmqrl.hostd.import_path import search_here_last
from zmqrl.hosts.connecting import NOT_THERE
from zmqrl.hosts.link import DAEMON
from zmqrl.hosts.sync import BOOTSTRAP
from zmqrl.process import STARTED_IN, look_for_modules, look_for_modules_there, staying_here

WITHIN_S = 180.0
# Modules that zmqrl, torch or Gymnasium import. A test gives its files these names: importing one ends the process.
HIDING = ("random", "json", "socket", "logging", "selectors", "signal", "tempfile", "typing", "numpy", "torch", "tyro")
OWN_ENV = """
import os
from pathlib import Path

import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

os.chdir("assets")  # fails if another process of the run has done it already

class Own(CartPoleEnv):
    def __init__(self, render_mode=None):
        assert Path("a-level").exists()
        super().__init__()

gymnasium.register("Own-v0", Own, max_episode_steps=100)
"""


@pytest.fixture
def hiding(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    for name in HIDING:
        (place / f"{name}.py").write_text(f"raise SystemExit('imported {name} from the wrong place')\n")
    return place


@pytest.mark.processes
@pytest.mark.parametrize("safe", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_files_with_the_names_of_modules_do_not_break_a_command(hiding: Path, tmp_path: Path, safe: str) -> None:
    script = tmp_path / "zmqrl-as-installed"
    script.write_text("import sys\nfrom zmqrl.__main__ import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": safe}
    for program in (["-m", "zmqrl"], [str(script)]):
        command = [sys.executable, *program, "eval", "nowhere"]
        done = ran(command, status=2, within_s=WITHIN_S, cwd=hiding, env=environment)
        assert done.stderr == "zmqrl: nowhere is not a run directory: there is no config.json in it.\n"


@pytest.mark.processes
@pytest.mark.parametrize("entries", [["", "/opt/lib"], pytest.param([".", "./"], marks=pytest.mark.slow)])
def test_entries_of_the_import_path_that_mean_the_current_directory_do_not_break_a_command(
    hiding: Path, entries: list[str]
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*entries, str(ROOT)])}
    command = [sys.executable, "-m", "zmqrl", "eval", "nowhere"]
    done = ran(command, status=2, within_s=WITHIN_S, cwd=hiding, env=environment)
    assert done.stderr == "zmqrl: nowhere is not a run directory: there is no config.json in it.\n"


@pytest.mark.processes
def test_entries_that_mean_the_current_directory_do_not_break_a_host_daemon(hiding: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", str(ROOT)])}
    command = [sys.executable, *DAEMON]
    done = subprocess.run(
        command, cwd=hiding, env=environment, input="", capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert "from the wrong place" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize(
    "module",
    [
        "zmqrl.bench.crew",
        "zmqrl.page.beside",
        "zmqrl.ps.shard.server",
        pytest.param("zmqrl.simulate.live.sleeper", marks=pytest.mark.slow),
        "zmqrl.start.initial",
        "zmqrl.hostd.child",
    ],
)
def test_entries_that_mean_the_current_directory_do_not_break_a_process(hiding: Path, module: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", str(ROOT)])}
    command = [sys.executable, "-P", "-m", module, "--help"]
    done = subprocess.run(
        command, cwd=hiding, env=environment, input="", capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert "from the wrong place" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "path", "searched"),
    [
        (":/opt/lib", ["HERE", "/opt/lib", "/lib"], ["/opt/lib", "/lib", "HERE"]),
        (".", ["HERE", "/lib"], ["/lib", "HERE"]),
        ("/opt/lib:./", ["/opt/lib", "HERE", "/lib"], ["/opt/lib", "/lib", "HERE"]),
        ("HERE:", ["HERE", "/lib"], ["HERE", "/lib"]),
        ("HERE", ["HERE", "/lib"], ["HERE", "/lib"]),
        ("src", ["HERE/src", "/lib"], ["HERE/src", "/lib"]),
        ("", ["HERE", "/lib"], ["HERE", "/lib"]),
        (None, ["HERE", "/lib"], ["HERE", "/lib"]),
    ],
)
def test_only_a_name_puts_the_current_directory_before_other_directories(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    path: list[str],
    searched: list[str],
) -> None:
    here = str(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    given = None if variable is None else variable.replace("HERE", here)
    if given is not None:
        monkeypatch.setenv("PYTHONPATH", given)
    monkeypatch.setattr(sys, "path", [entry.replace("HERE", here) for entry in path])
    search_here_last()
    assert os.environ.get("PYTHONPATH") == given, "programs of the user also read it"
    assert sys.path == [entry.replace("HERE", here) for entry in searched]


@pytest.mark.processes
def test_a_module_that_ends_the_process_with_a_text_shows_only_the_text(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text("raise SystemExit('imported tyro from the wrong place')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "zmqrl", "status", "nowhere"]
    done = ran(command, status=1, within_s=WITHIN_S, env=environment)
    assert done.stderr == "zmqrl: imported tyro from the wrong place\n"


@pytest.mark.processes
@pytest.mark.parametrize("safe", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_a_run_finds_modules_in_the_directory_where_it_was_started_and_keeps_its_paths(
    hiding: Path, monkeypatch: pytest.MonkeyPatch, safe: str
) -> None:
    (hiding / "own_env.py").write_text(OWN_ENV)
    (hiding / "assets").mkdir()
    (hiding / "assets" / "a-level").touch()
    monkeypatch.chdir(hiding)
    environment = {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": safe, "PYTHONDONTWRITEBYTECODE": "1"}
    with training(Path("run"), "--env", "own_env:Own-v0", "--updates", "4", environment=environment) as run:
        assert run.wait() == 0, run.said()
    assert (hiding / "run" / "summary.json").exists()
    shutil.copytree(hiding / "run", hiding / "again")
    record = [sys.executable, "-m", "zmqrl", "eval", "again", "--episodes", "1"]
    ran(record, within_s=WITHIN_S, env=os.environ | environment)


def test_directories_of_user_modules_are_searched_last_and_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/lib", "/site"])
    look_for_modules("/mine", "/site", "/mine", "/home")
    assert sys.path == ["/lib", "/site", "/mine", "/home"]


def test_user_code_cannot_change_the_current_directory_of_zmqrl(tmp_path: Path) -> None:
    here = Path.cwd()
    with staying_here():
        os.chdir(tmp_path)
    assert Path.cwd() == here


@pytest.mark.processes
@pytest.mark.parametrize("entries", [None, ":/opt/lib"])
def test_files_on_a_host_do_not_hide_the_modules_that_build_an_environment(
    hiding: Path, monkeypatch: pytest.MonkeyPatch, entries: str | None
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if entries is not None:
        monkeypatch.setenv("PYTHONPATH", entries)
    ask = '{"program": "def main(ask): print(ask)", "is": "made"}\n'
    command = [sys.executable, "-c", BOOTSTRAP]
    done = subprocess.run(command, cwd=hiding, input=ask, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert (done.stdout, done.stderr) == ("{'is': 'made'}\n", "")


def test_a_python_without_safe_paths_is_reported_as_too_old() -> None:
    assert NOT_THERE.search("Try `python -h' for more information.")


@pytest.mark.processes
def test_modules_are_found_where_the_launcher_was_started_even_on_another_host(tmp_path: Path, hiding: Path) -> None:
    (hiding / "a_worker.py").write_text("print('found')\n")
    command = [sys.executable, "-P", "-m", "zmqrl.hostd.child", "a_worker"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), STARTED_IN: str(hiding)}
    elsewhere = tmp_path / "home"
    elsewhere.mkdir()
    done = subprocess.run(
        command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert (done.stdout, done.stderr) == ("found\n", "")


@pytest.mark.parametrize(
    ("mode", "owner"),
    [
        (0o777, None),
        (0o1777, None),
        (0o755, 65534),
    ],
)
def test_a_directory_in_which_other_users_can_write_is_not_searched_on_another_host(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    skip_or_fail: Callable[[str], NoReturn],
    mode: int,
    owner: int | None,
) -> None:
    if owner is not None and os.geteuid() != 0:
        skip_or_fail("only root can give a directory to another user")
    there, home = tmp_path / "there", tmp_path / "home"
    there.mkdir()
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", list(before := sys.path))
    monkeypatch.setenv(STARTED_IN, str(there))
    look_for_modules_there()
    assert sys.path == [*before, str(there), str(home)]
    assert capsys.readouterr().err == ""
    sys.path[:] = before
    there.chmod(mode)
    if owner is not None:
        os.chown(there, owner, -1)
    look_for_modules_there()
    assert sys.path == [*before, str(home)]
    assert capsys.readouterr().err == (
        f"modules in {there} cannot be imported: other users can write to this directory, or it is not yours. "
        "If you trust it, name it in PYTHONPATH\n"
    )
    monkeypatch.chdir(there)
    sys.path[:] = before
    look_for_modules_there()
    assert sys.path == [*before, str(there)], "the user started zmqrl on this machine, in this directory"


def test_a_directory_that_this_user_may_not_enter_on_another_host_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip_or_fail: Callable[[str], NoReturn]
) -> None:
    if os.geteuid() != 0:
        skip_or_fail("only root can become another user")
    (tmp_path / "closed/project").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", list(before := sys.path))
    monkeypatch.setenv(STARTED_IN, str(tmp_path / "closed/project"))
    os.seteuid(65534)
    try:
        look_for_modules_there()
    finally:
        os.seteuid(0)
    assert sys.path == [*before, "/"]


def test_a_directory_that_does_not_exist_on_another_host_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(before := sys.path))
    monkeypatch.setenv(STARTED_IN, str(tmp_path / "none"))
    look_for_modules_there()
    assert sys.path == [*before, str(tmp_path)], "another user could make it later"
