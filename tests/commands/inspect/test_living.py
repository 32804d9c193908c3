"""A run seen from another terminal: its state, its logs and its end, and what a killed run has left on its hosts."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from support.commands import ran_zmqrl
from support.lab import Lab
from support.record_rig import row, run_directory, summary
from support.rig import ending, eventually
from support.run_rig import RunFiles, launching, trained, training

from zmqrl.commands.inspect import attach, logs, status
from zmqrl.commands.inspect import living as living_module
from zmqrl.commands.inspect.living import Living
from zmqrl.commands.inspect.merging import time_of
from zmqrl.commands.run import stop
from zmqrl.errors import ClusterError, UsageError
from zmqrl.hostd.inspection import pid_space, state_of
from zmqrl.hosts.deployment import local_launcher
from zmqrl.observe.live.figures import Live, LiveMetrics
from zmqrl.observe.live.presence import EXTERNAL, Presence
from zmqrl.observe.provenance import versions
from zmqrl.observe.stalls import Awaited, Stall
from zmqrl.page.runs import Runs
from zmqrl.process_id import ProcessId, shard_id, worker_id
from zmqrl.recipes import cartpole
from zmqrl.rundir import RunDirectory, write_json

pytestmark = pytest.mark.processes

SLOWLY = ("--straggle", "0:0.02")


def status_of(path: Path) -> dict[str, Any]:
    done = ran_zmqrl("status", path, "--json")
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    return trained(tmp_path_factory.mktemp("ended") / "run", "--updates", "20")


def test_status_shows_how_a_run_ended(ended: RunFiles) -> None:
    found = status_of(ended.path)
    assert (found["state"], found["exit_reason"], found["version"]) == ("ended", "updates", 20)
    assert found["processes"] == []
    said = ran_zmqrl("status", ended.path).stdout
    assert "ended (updates)\nversion 20" in said
    assert f"\n{socket.gethostname()}: shard-0,shard-1,worker-0,worker-1; zmqrl " in said
    assert "is not running" in ran_zmqrl("stop", ended.path, status=2).stderr


def test_the_summary_says_which_host_ran_which_process_with_which_versions(ended: RunFiles) -> None:
    (here,) = ended.summary()["hosts"]
    assert here["host"] == socket.gethostname()
    assert here["processes"] == ["shard-0", "shard-1", "worker-0", "worker-1"]
    assert here == {**versions(), "host": here["host"], "processes": here["processes"]}
    assert json.loads((ended.path / "hosts.json").read_text()) == {"hosts": [here], "given": None}


def test_each_log_line_is_shown_with_its_process(ended: RunFiles) -> None:
    said = ran_zmqrl("logs", ended.path).stdout
    assert f"[{socket.gethostname()} shard-0,shard-1] " in said
    assert "[supervisor] " in said
    of_shard = ran_zmqrl("logs", ended.path, "shard-1")
    assert "[supervisor] " not in of_shard.stdout + of_shard.stderr
    assert "did you mean shard-1?" in ran_zmqrl("logs", ended.path, "shard-11", status=2).stderr
    assert "not a run directory" in ran_zmqrl("logs", ended.path / "logs", status=2).stderr


def test_the_lines_of_all_logs_are_in_the_order_of_time(
    ended: RunFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.run(logs.Options(run=ended.path))
    times = [time_of(line.partition("] ")[2].strip()) for line in capsys.readouterr().out.splitlines()]
    known = [at for at in times if at is not None]
    assert len(known) > 5
    assert known == pytest.approx(sorted(known), abs=0.1)  # threads of a process can log out of order


def test_the_logs_of_one_host_are_shown(starting: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    (starting.path / "logs").mkdir()
    on = {"h1": ["worker-0"], "h2": ["shard-0", "worker-1"]}
    write_json(starting.hosts, {"hosts": [{"host": h, "processes": names} for h, names in on.items()], "given": None})
    for second, name in enumerate(("worker-1", "worker-0", "shard-0")):
        starting.log(ProcessId.parse(name)).write_text(f"2026-01-05 10:00:0{second},000 {name} is up\n")
    starting.release()
    assert logs.run(logs.Options(run=starting.path, host="h2")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "[h2 worker-1] 2026-01-05 10:00:00,000 worker-1 is up",
        "[h2 shard-0] 2026-01-05 10:00:02,000 shard-0 is up",
    ]
    with pytest.raises(UsageError, match="--host h3: no such host; hosts: h1, h2"):
        logs.run(logs.Options(run=starting.path, host="h3"))


def test_a_reader_that_closes_the_pipe_causes_no_error(ended: RunFiles) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "zmqrl", "logs", str(ended.path)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False, timeout=180)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.fixture
def starting(tmp_path: Path) -> RunDirectory:
    """A killed run that is being resumed and has not yet published where its processes are."""
    directory = RunDirectory(tmp_path / "run")
    directory.claim()
    write_json(directory.config, cartpole().to_json())
    supervisor = {"host": socket.gethostname(), "pid": os.getpid()}
    write_json(directory.left, {"supervisor": supervisor, "shards": [], "workers": [], "followers": []})
    return directory


def test_stop_does_not_wait_for_a_run_that_ends_during_its_start(
    starting: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    threading.Timer(0.3, starting.release).start()
    assert stop.run(stop.Options(run=starting.path, within_s=30.0)) == 0
    assert capsys.readouterr().out == f"{starting.path} has ended\n"


def test_stop_reports_a_run_that_does_not_come_up(starting: RunDirectory) -> None:
    with pytest.raises(ClusterError, match=r"did not come up within 0\.2 s"):
        stop.run(stop.Options(run=starting.path, within_s=0.2))
    starting.release()


@pytest.mark.slow
def test_a_live_run_can_be_shown_followed_and_stopped(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with training(path, *SLOWLY) as run:
        run.wait_for(3)
        found = status_of(path)
        assert found["state"] == "running"
        assert {each["name"] for each in found["processes"]} == {"shard-0", "shard-1", "worker-0", "worker-1"}
        eventually(
            lambda: [each.get("presence") for each in status.status(path)["processes"]] == 4 * ["present"],
            "all are present",
        )
        assert f"[{socket.gethostname()} shard-0,shard-1] " in ran_zmqrl("logs", path).stdout
        command = [sys.executable, "-m", "zmqrl", "logs", str(path), "-f", "supervisor"]
        with ending(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as following:
            assert "has ended" in ran_zmqrl("stop", path).stdout
            assert run.wait() == 130
            said, _ = following.communicate(timeout=180)
        assert "ended (interrupted) at version" in said
        assert run.files.summary()["exit_reason"] == "interrupted"


@pytest.mark.slow
def test_status_shows_what_a_killed_launcher_left_on_each_host(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with launching(lab, path, "--workers", "4", "--shards", "2", *SLOWLY) as run:
        run.eventually(lambda: len(run.files.history(1)) > 3, "some versions")
        run.signal(signal.SIGKILL)
        run.wait()
    assert "no process of" in ran_zmqrl("stop", path).stdout
    found = status_of(path)
    assert found["state"] == "killed"
    assert {host: answer["alive"] for host, answer in found["hosts"].items()} == dict.fromkeys(lab.hosts, False)
    assert "state/shard-1.slots" in found["hosts"]["h2"]["files"]
    lab("refuse", "h3", "22", "on")
    said = ran_zmqrl("status", path).stdout
    assert "h3: no answer: ssh: connect" in said
    assert re.search(
        r"h2: no processes; in /var/tmp/zmqrl-0/h2/run-\w+: history/shard-1\.jsonl, "
        r"(profile/(shard|worker)-1\.\S+\.blocks, )*state/shard-1\.slots\n",
        said,
    )


def test_this_machine_is_not_taken_for_the_localhost_of_a_launcher_on_another_machine(starting: RunDirectory) -> None:
    starting.release()
    asked = starting.path / "asked"
    host = {"host": "localhost", "command": ["touch", str(asked)], "work": "/w", "lease_s": 8.0}
    left = json.loads(starting.left.read_text(encoding="utf-8"))
    write_json(starting.left, left | {"supervisor": {"host": "h9", "pid": os.getpid()}, "hosts": [host]})
    assert status.status(starting.path)["hosts"] == {"localhost": "it was the machine h9: ask there"}
    with pytest.raises(UsageError, match=r"was launched on h9: stop the run there\.$"):
        stop.run(stop.Options(run=starting.path))
    assert not asked.exists()
    write_json(starting.left, left | {"hosts": [host]})
    assert status.status(starting.path)["hosts"]["localhost"].startswith("exit status 0, and it printed nothing")
    assert asked.exists()


def test_the_state_of_a_killed_run_is_found_in_a_directory_that_was_renamed(starting: RunDirectory) -> None:
    here, host = {"host": socket.gethostname(), "pid": os.getpid()}, local_launcher(starting.path).to_dict()
    shards = [{"shard": 0, **here}]
    write_json(starting.left, {"supervisor": here, "shards": shards, "workers": [], "followers": [], "hosts": host})
    (starting.path / "state").mkdir()
    starting.state(0).touch()
    starting.release()
    renamed = starting.path.rename(starting.path.with_name("renamed"))
    found = status.status(renamed)
    assert found["hosts"]["localhost"]["directory"] == str(renamed)
    assert "state/shard-0.slots" in found["hosts"]["localhost"]["files"]
    assert status._report(found).endswith("--resume continues from the last version of the shards")


def test_status_names_the_files_left_on_a_host_and_their_directory() -> None:
    shards = [{"name": f"shard-{number}", "host": "h1"} for number in (2, 10)]
    killed = {"state": "killed", "exit_reason": None, "version": None, "processes": shards}
    files = ["state/shard-10.slots", "state/shard-2.slots"]
    hosts: dict[str, dict[str, Any]] = {
        "h1": {"alive": False, "files": files, "directory": "/var/tmp/zmqrl-1000/h1/run"},
        "h2": {"alive": False, "files": [], "directory": "/var/tmp/zmqrl-1000/h2/run"},
    }
    said = status._report(killed | {"hosts": hosts})
    assert "h1: no processes; in /var/tmp/zmqrl-1000/h1/run: state/shard-2.slots, state/shard-10.slots\n" in said
    assert "h2: no processes; no files\n" in said
    assert said.endswith("--resume continues from the last version of the shards")
    many = [f"logs/worker-{rank}.log" for rank in range(900)] + ["state/shard-0.slots", "config.json", ".lock"]
    hosts["h1"]["files"] = many
    said = status._report(killed | {"hosts": hosts})
    assert "h1/run: 900 files in logs, 1 file in state, 2 other files\n" in said
    hosts["h1"]["more"] = 5000
    said = status._report(killed | {"hosts": hosts})
    assert "h1/run: 900 files in logs, 1 file in state, 5,002 other files\n" in said
    hosts["h1"] |= {"files": ["logs/\033[31m"], "more": 0}
    said = status._report(killed | {"hosts": hosts})
    assert "h1/run: logs/ [31m\n" in said, "a host can choose any names"
    over: dict[str, Any] = hosts | {"h2": "Expired or invalid job 7"}
    said = status._report(killed | {"hosts": over})
    assert said.endswith("--resume continues from the newest checkpoint")


@pytest.mark.parametrize(
    ("answers", "promise"),
    [
        (((0,), (1, 2)), "continues from the last version of the shards"),
        (((0,), (1,)), "continues from the newest checkpoint: the state of shard-2 is missing"),
        (((), ()), "continues from the newest checkpoint: the state of shard-0..2 is missing"),
        (((), "ssh: connect"), "needs the state of shard-1,shard-2, but the host gave no answer"),
    ],
)
def test_a_resume_is_promised_only_from_state_that_was_found(answers: Sequence[Any], promise: str) -> None:
    processes = [{"name": name, "host": host} for name, host in (("shard-0", "h1"), ("shard-1", "h2"))]
    processes += [{"name": "shard-2", "host": "h2"}, {"name": "worker-0", "host": "h1"}]
    hosts = {
        host: {"alive": False, "files": [f"state/shard-{number}.slots" for number in found], "directory": "/w"}
        if isinstance(found, tuple)
        else found
        for host, found in zip(("h1", "h2"), answers, strict=True)
    }
    found = {"state": "killed", "exit_reason": None, "version": None, "processes": processes, "hosts": hosts}
    assert status._report(found).endswith(f"--resume {promise}")


def test_status_shows_a_stalled_version_with_its_processes(starting: RunDirectory) -> None:
    awaited = (
        Awaited(process=worker_id(1), host="h2", span="env_step", span_s=11.8),
        Awaited(process=worker_id(2), is_external=True, span="gradient", span_s=7.0),
    )
    stall = Stall(version=812, waited_s=12.0, awaited=awaited)
    write_json(starting.stalled, stall.to_json())
    with ending(subprocess.Popen(["sleep", "600"])) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        here = {"host": socket.gethostname(), "pid": stopped.pid}
        workers = [{"rank": 0, **here}, {"rank": 1, "host": "h2", "pid": 17}]
        supervisor = {"host": socket.gethostname(), "pid": os.getpid()}
        facts = {"supervisor": supervisor, "shards": [], "workers": workers, "followers": []}
        write_json(starting.cluster, facts)
        eventually(lambda: status.status(starting.path)["processes"][0]["state"] == "stopped", "it is stopped")
        found = status.status(starting.path)
    assert found["stalled"] == stall.to_json()
    assert found["supervisor"]["state"] == "running"
    assert [each["state"] for each in found["processes"]] == ["stopped", None]
    said = status._report(found)
    assert (
        "version 812 has waited 12 s for worker-1 (host h2): in env_step for 11.8 s, "
        "and for worker-2 (external): in gradient for 7.0 s\n"
    ) in said
    assert f"{socket.gethostname()} worker-0 (process {stopped.pid}, stopped by a signal)\n" in said
    assert said.endswith("h2 worker-1 (process 17)")
    starting.release()
    assert not starting.stalled.exists()


def test_a_directory_without_an_end_is_that_of_a_killed_run_or_a_part_of_one(starting: RunDirectory) -> None:
    starting.left.unlink()
    starting.release()
    found = status.status(starting.path)
    assert (found["state"], found["exit_reason"]) == ("killed", None)
    assert status._report(found).splitlines() == [
        "killed",
        "there is no summary.json: the run was killed while it started or could not write it, or this directory is an "
        "incomplete copy",
    ]
    with pytest.raises(ClusterError, match="died before the end of the run"):
        attach.run(attach.Options(run=starting.path))
    write_live(starting, age_s=0.0)  # as a run that starts on another machine, whose lock may not be visible here
    assert status.status(starting.path)["state"] == "starting"
    for path in starting.path.iterdir():
        os.utime(path, (1e9, 1e9))
    assert Runs(starting.path).state(".") == "killed"


def test_a_supervisor_that_is_killed_after_it_wrote_its_summary_has_ended_its_run(starting: RunDirectory) -> None:
    write_json(starting.summary, summary(exit_status=0))
    supervisor = {"host": "h9", "pid": 1}
    write_json(starting.cluster, {"supervisor": supervisor, "shards": [], "workers": [], "followers": [], "hosts": []})
    assert status.status(starting.path)["exit_reason"] is None, "the run continues"
    starting._unlock()  # as the end of its process does
    found = status.status(starting.path)
    assert (found["state"], Runs(starting.path).state(".")) == ("ended", "ended")
    assert found["exit_reason"] is not None
    assert attach.run(attach.Options(run=starting.path)) == 0


def test_the_age_of_figures_never_falls_if_a_clock_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    for ahead_s, late_s in ((0.0, 0.0), (60.0, 60.0), (-60.0, 0.0)):  # the clock of the supervisor
        live = Live(written_at=(100.0 + ahead_s, 100.0))
        ages = list[float]()
        for now in range(100, 300, 10):
            monkeypatch.setattr(time, "time", lambda now=now: float(now))
            age_s = live.age_s
            assert age_s is not None
            ages.append(age_s)
        assert ages == sorted(ages)
        assert ages[-1] == 190.0 - late_s


def test_a_run_whose_shards_are_not_up_yet_is_starting(starting: RunDirectory) -> None:
    found = status.status(starting.path)
    assert (found["state"], status._report(found)) == ("starting", "starting")
    starting.release()


def test_status_says_why_a_process_has_no_process_id(starting: RunDirectory) -> None:
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    workers = [{"rank": 0, "host": "h1", "pid": None}, {"rank": 1, "host": "h2", "pid": None}]
    facts = {"supervisor": here, "shards": [], "workers": workers, "followers": []}
    write_json(starting.cluster, facts | {"unreachable_since": {"h2": time.time() - 22.0}})
    found = status.status(starting.path)
    assert [each["state"] for each in found["processes"]] == ["restarting", "unreachable"]
    assert status._report(found).splitlines() == [
        "running",
        "h2 has been unreachable for 22 s",
        f"{here['host']} supervisor (process {here['pid']})",
        "h1 worker-0 (being restarted)",
        "h2 worker-1 (its host is unreachable)",
    ]
    starting.release()


def test_a_host_that_a_clock_ahead_of_this_one_says_is_lost_has_just_been_lost(starting: RunDirectory) -> None:
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    lost = {"unreachable_since": {"h2": time.time() + 60.0}}
    write_json(starting.cluster, lost | {"supervisor": here, "shards": [], "workers": [], "followers": []})
    assert status.status(starting.path)["unreachable_s"] == {"h2": 0.0}
    starting.release()


def test_only_a_running_run_has_momentary_figures(starting: RunDirectory) -> None:
    starting.metrics.write_text(json.dumps(row(9, workers_present=2)) + "\n", encoding="utf-8")
    momentary = ("agent_steps_per_s", "updates_per_s", "workers_present")
    starting.release()
    found = status.status(starting.path)
    assert (found["state"], found["version"], [found[key] for key in momentary]) == ("killed", 90, 3 * [None])


def test_status_shows_speed_and_who_is_present_since_when(starting: RunDirectory) -> None:
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    workers = [{"rank": 0, "host": "h1", "pid": 17}, {"rank": 1, "host": "h2", "pid": None}]
    write_json(starting.cluster, {"supervisor": here, "shards": [], "workers": workers, "followers": []})
    row = {"version": 7, "wall_s": 90.0, "agent_steps": 448, "agent_steps_per_s": 1234.4, "updates_per_s": 5.61}
    row |= {"score_mean_50": 21.4, "workers_present": 2}
    presences = [
        Presence(process=worker_id(0), host="h1", state="awaited", for_s=12.2),
        Presence(process=worker_id(1), host="h2", state="lost", for_s=3.0, restarts=2),
        Presence(process=worker_id(2), host=EXTERNAL, state="present"),
    ]
    write_json(starting.live, LiveMetrics(row=row, about={}, processes=presences, quorum=3).to_json())
    found = status.status(starting.path)
    assert {key: found[key] for key in row} == row
    assert found["processes"][1] == {
        **{"name": "worker-1", "host": "h2", "pid": None, "state": "restarting"},
        **{"presence": "lost", "for_s": 3.0, "restarts": 2},
    }
    assert status._report(found).splitlines() == [
        "running",
        "version 7 after 1.5 min, score 21.4",
        "1,234 agent steps/s, 5.6 updates/s",
        "2 workers present, 3 required",
        f"{here['host']} supervisor (process {here['pid']})",
        "h1 worker-0 (process 17, no contribution for 12 s)",
        "h2 worker-1 (lost 3 s ago)",
        "external worker-2",
    ]
    starting.live.write_text("{")
    assert status.status(starting.path)["updates_per_s"] is None
    starting.release()
    assert not starting.live.exists()


def write_live(directory: RunDirectory, *, age_s: float) -> None:
    """Write the ``live.json`` of a supervisor that wrote it some time ago."""
    row = {"version": 7, "wall_s": 90.0, "agent_steps": 448, "agent_steps_per_s": 1234.4, "updates_per_s": 5.61}
    row |= {"score_mean_50": 21.4, "workers_present": 2}
    presence = Presence(process=worker_id(0), host="h1", state="awaited", for_s=12.2)
    figures = LiveMetrics(row=row, about={}, processes=[presence], quorum=3).to_json()
    at = time.time() - age_s
    write_json(directory.live, figures | {"at": at})
    os.utime(directory.live, (at, at))


def test_old_figures_are_shown_with_their_age_and_without_those_of_the_moment(starting: RunDirectory) -> None:
    here = {"host": socket.gethostname(), "pid": os.getpid()}
    workers = [{"rank": 0, "host": "h1", "pid": 17}]
    write_json(starting.cluster, {"supervisor": here, "shards": [], "workers": workers, "followers": []})
    write_json(starting.stalled, Stall(version=7, waited_s=12.0, awaited=()).to_json())
    write_live(starting, age_s=6 * 3600)
    found = status.status(starting.path)
    assert found["figures_age_s"] == pytest.approx(6 * 3600, abs=60)
    assert (found["state"], found["version"], found["quorum"], found["stalled"]) == ("running", 7, 3, None)
    momentary = ("agent_steps_per_s", "updates_per_s", "workers_present")
    assert [found[key] for key in momentary] == [None, None, None]
    assert status._report(found).splitlines() == [
        "running",
        "version 7 after 1.5 min, score 21.4",
        "these figures are 6 h old",
        f"{here['host']} supervisor (process {here['pid']})",
        "h1 worker-0 (process 17)",
    ]
    os.utime(starting.live)  # the clock of the supervisor is wrong, or that of the file system
    assert status.status(starting.path)["workers_present"] == 2
    starting.release()


def test_a_run_whose_lock_is_not_visible_is_running_while_its_supervisor_elsewhere_writes(
    starting: RunDirectory,
) -> None:
    starting.release()
    facts: dict[str, Any] = {"shards": [], "workers": [], "followers": []}
    write_json(starting.cluster, facts | {"supervisor": {"host": "h9", "pid": 1}})
    write_live(starting, age_s=0.0)
    found = status.status(starting.path)
    assert (found["state"], found["locked"], found["workers_present"]) == ("running", False, 2)
    assert status._report(found).startswith("running (its lock is not visible from here)\n")
    with pytest.raises(UsageError, match="is on h9: stop the run there"):
        stop.run(stop.Options(run=starting.path))
    write_live(starting, age_s=30.0)
    assert status.status(starting.path)["state"] == "killed"
    write_live(starting, age_s=0.0)
    write_json(starting.cluster, facts | {"supervisor": {"host": socket.gethostname(), "pid": os.getpid()}})
    assert status.status(starting.path)["state"] == "killed", "here, the lock is visible"


def test_status_shows_which_processes_of_a_starting_run_are_up(starting: RunDirectory) -> None:
    presences = [
        Presence(process=shard_id(0), host="h1", state="present"),
        Presence(process=shard_id(1), host="h2", state="starting", for_s=12.2),
    ]
    row = {"version": 0, "wall_s": 0.0, "agent_steps": 0}
    write_json(starting.live, LiveMetrics(row=row, about={}, processes=presences, quorum=3).to_json())
    found = status.status(starting.path)
    assert (found["state"], found["version"]) == ("starting", None)
    about = {"name": "shard-1", "host": "h2", "pid": None, "state": None}
    assert found["processes"][1] == about | {"presence": "starting", "for_s": 12.2, "restarts": 0}
    assert status._report(found) == "starting\nh1 shard-0\nh2 shard-1 (starting for 12 s)"
    starting.release()


def test_a_supervisor_in_another_container_with_the_name_of_this_host_is_not_signalled(starting: RunDirectory) -> None:
    with ending(subprocess.Popen(["sleep", "600"])) as unrelated:
        supervisor = {"host": socket.gethostname(), "pid": unrelated.pid, "pid_space": "boot pid:[1]"}
        workers = [{"rank": 0, "host": socket.gethostname(), "pid": unrelated.pid}]
        facts = {"supervisor": supervisor, "shards": [], "workers": workers, "followers": []}
        write_json(starting.cluster, facts)
        unrelated.send_signal(signal.SIGSTOP)
        eventually(lambda: state_of(socket.gethostname(), unrelated.pid) == "stopped", "it is stopped")
        found = status.status(starting.path)
        assert (found["state"], found["supervisor"]["state"], found["processes"][0]["state"]) == ("running", None, None)
        with pytest.raises(UsageError, match=r"is on .*, in another PID namespace: stop the run there"):
            stop.run(stop.Options(run=starting.path))
        assert unrelated.poll() is None
        write_json(starting.cluster, facts | {"supervisor": supervisor | {"pid_space": pid_space()}})
        assert status.status(starting.path)["state"] == "stopped"
    starting.release()


def test_a_locked_run_whose_supervisor_is_gone_is_not_running(starting: RunDirectory) -> None:
    with ending(subprocess.Popen(["true"])) as gone:
        gone.wait(60)
    here = {"host": socket.gethostname(), "pid": gone.pid}
    write_json(starting.cluster, {"supervisor": here, "hosts": [], "shards": [], "workers": [], "followers": []})
    assert status.status(starting.path)["state"] == "killed"
    starting.release()


def test_an_unreadable_stall_file_is_ignored(starting: RunDirectory) -> None:
    write_json(starting.cluster, {"supervisor": {"host": "h9", "pid": 1}, "shards": [], "workers": [], "followers": []})
    for text in ("", "[]", "{}", '{"version": 1, "waited_s": 2, "awaited": [{}], "others": 0}'):
        starting.stalled.write_text(text)
        assert status.status(starting.path)["stalled"] is None
    starting.release()


def test_the_last_line_of_an_ended_run_is_shown_even_if_its_process_could_not_finish_it(
    starting: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    (starting.path / "logs").mkdir()
    starting.log(worker_id(0)).write_text("2026-01-05 10:00:00,000 up\n2026-01-05 10:00:01,000 Fatal Py")
    logs.run(logs.Options(run=starting.path))
    assert capsys.readouterr().out.splitlines() == ["[worker-0] 2026-01-05 10:00:00,000 up"], "it may continue"
    starting.release()
    logs.run(logs.Options(run=starting.path))
    assert capsys.readouterr().out.splitlines()[1] == "[worker-0] 2026-01-05 10:00:01,000 Fatal Py"


def test_status_needs_only_the_last_row(starting: RunDirectory) -> None:
    starting.release()
    rows = [json.dumps(row(second)) for second in (1, 2)]
    starting.metrics.write_text(f"{rows[0]}\nbroken\n{rows[1]}\n", encoding="utf-8")
    starting.evaluations.write_text("broken\n\n", encoding="utf-8")
    assert status.status(starting.path)["version"] == 20


def test_logs_are_sorted_by_the_numbers_of_their_processes(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("worker-10", "worker-2", "shard-0"):
        (tmp_path / "logs" / f"{name}.log").touch()
    assert list(logs._logs(RunDirectory(tmp_path))) == ["shard-0", "worker-2", "worker-10"]


def test_a_log_is_followed_in_complete_lines_starting_with_its_last_ones(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"{n}\n" for n in range(10)) + "unfini")
    reader = logs.Reader(path, 3)
    assert reader.lines() == ["7", "8", "9"]
    assert reader.lines() == []
    with path.open("a") as file:
        file.write("shed\nnext\nthe last")
    assert reader.lines() == ["unfinished", "next"]
    assert reader.lines() == []
    assert [reader.lines(is_over=True) for _ in range(2)] == [["the last"], []]


def test_a_log_may_appear_later_and_be_replaced_by_a_shorter_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = logs.Reader(path, 3)
    assert reader.lines() == []
    path.write_text("1\n2\n3\n")
    assert reader.lines() == ["1", "2", "3"]
    path.write_text("1\n")
    assert reader.lines() == []
    with path.open("a") as file:
        file.write("4\n")
    assert reader.lines() == ["4"]


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read_bytes = tmp_path / "log", list[int]()
    with path.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n2026-01-05 10:12:03 began\n" + b"".join(b"%d\n" % n for n in range(10)))
    pread = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        read_bytes.append(length)
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    reader = logs.Reader(path, 3)
    assert sum(read_bytes) < 2 << 20
    assert reader.time_before is not None
    assert reader.lines() == ["7", "8", "9"]


@pytest.mark.parametrize("tail", [0, 1, 10, 20])
def test_a_log_is_shown_from_the_right_line(tail: int, tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [f"{'x' * n * 1000}{n}" for n in range(10)]
    path.write_text("".join(f"{line}\n" for line in lines))
    assert logs.Reader(path, tail).lines() == (lines[-tail:] if tail else [])


def test_the_run_of_another_user_is_refused_with_a_command_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    run = run_directory(tmp_path / "run")
    monkeypatch.setattr(living_module, "read_json", refused)
    with pytest.raises(UsageError, match=rf"^only the user of the run can read .*: `zmqrl serve {run}`"):
        Living.read(run)
