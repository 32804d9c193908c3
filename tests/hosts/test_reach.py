"""The run directory stores how the user named the hosts, for ``zmqrl launch --resume RUN`` without host options."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zmqrl.commands.run import launch
from zmqrl.commands.run.launch import OF_ONE_START, Options
from zmqrl.config import Config
from zmqrl.errors import UsageError
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.reach import HostOptions, over_tcp
from zmqrl.recipes import cartpole
from zmqrl.rundir import RunDirectory, write_json

WHERE = Path("hosts.json")
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8)
HOSTS = st.builds(
    Host,
    name=NAMES,
    slots=st.none() | st.integers(0, 99),
    address=st.none() | NAMES,
    python=st.none() | NAMES,
    workers=st.none() | st.integers(0, 9),
    via=st.lists(NAMES, max_size=3).map(tuple),
    evaluator=st.booleans(),
)
OPTIONS = st.builds(
    Options,
    hosts=NAMES,
    named=st.lists(HOSTS, min_size=1, max_size=3).map(tuple),
    iface=st.none() | NAMES,
    address=st.lists(NAMES, max_size=2).map(tuple),
    include=st.none() | NAMES,
    via=st.none() | NAMES,
    sync=st.sampled_from(["none", "wheel"]),
    lease_s=st.floats(3, 12),
)


@given(OPTIONS)
def test_a_bare_resume_has_the_options_of_the_earlier_session(options: Options) -> None:
    written = json.loads(json.dumps(options.to_json(but=OF_ONE_START)))
    assert Options().resumed(written, WHERE) == options


def test_options_of_a_resume_override_those_of_the_earlier_session() -> None:
    earlier = Options(hosts="h1,h2", iface="ib0", lease_s=5.0, dry_run=True).read().to_json(but=OF_ONE_START)
    assert Options(iface="eth0").resumed(earlier, WHERE) == Options(
        hosts="h1,h2", iface="eth0", lease_s=5.0, named=(Host(name="h1"), Host(name="h2"))
    )


def test_values_of_environment_variables_are_not_kept_but_read_again(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.toml"
    hosts.write_text('[[host]]\nname = "h1"\nenv = { TOKEN = "secret" }\n[[host]]\nname = "h2"\n')
    options = HostOptions(hosts=str(hosts)).read()
    written = options.to_json()
    assert "secret" not in json.dumps(written)
    assert written["variables"] == {"h1": ["TOKEN"]}
    assert HostOptions().resumed(written, WHERE) == options
    hosts.unlink()
    with pytest.raises(UsageError, match=r"hosts\.json does not have the values .*: name the hosts with -H"):
        HostOptions().resumed(written, WHERE)


def test_a_hosts_file_is_kept_with_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts").write_text("h1 slots=2\nh2\n")
    monkeypatch.chdir(tmp_path)
    written = HostOptions(hosts="hosts").read().to_json()
    (tmp_path / "hosts").unlink()
    again = HostOptions().resumed(written, WHERE)
    assert again.hosts == str(tmp_path / "hosts")
    assert again.reach().hosts == (Host(name="h1", slots=2), Host(name="h2"))


@pytest.mark.parametrize("damaged", [{}, {"options": []}, {"options": {"hosts": 3}}, {"options": {"unknown": 1}}])
def test_a_damaged_file_is_refused(damaged: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        HostOptions().resumed(damaged, WHERE)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    config: Config = over_tcp(cartpole())
    write_json(directory.config, config.to_json())
    earlier = Options(hosts="h1,h2", via="docker exec -i {host}").read().to_json(but=OF_ONE_START)
    write_json(directory.hosts, {"hosts": [], "given": earlier})
    return directory


def test_resume_needs_neither_hosts_nor_run_dir_but_accepts_other_hosts(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.command(["--resume", str(run.path), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "h1" in plan
    assert "h2" in plan
    assert "docker exec -i h1 " in plan
    assert launch.command(["--resume", str(run.path), "--dry-run", "-H", "other"]) == 0
    plan = capsys.readouterr().out
    assert "other" in plan
    assert "h1" not in plan
    assert "docker" not in plan, "it may not reach the other hosts"


def test_a_run_of_this_machine_cannot_be_launched_again_without_hosts(run: RunDirectory) -> None:
    write_json(run.hosts, {"hosts": [], "given": None})
    with pytest.raises(UsageError, match="no hosts given"):
        launch.command(["--resume", "--run-dir", str(run.path)])
    run.hosts.write_text("{")
    with pytest.raises(UsageError, match=r"damaged: .*; name the hosts with -H"):
        launch.command(["--resume", "--run-dir", str(run.path)])
