"""One life cycle for all launchers: they report the start and the end of every process, and leave no process behind.

Tests of the life cycle run on this machine, on a host reached by ssh, on a node of a Slurm job, in a network namespace,
and on a node of a Ray cluster. They also run behind a plain command, which stands in for a command that reaches a host,
and behind a command that is killed together with the process that it has started. In a *forked* place, the fork server
of the host daemon starts the processes.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from support.lab import Lab
from support.paths import ROOT, TESTS
from support.rig import WITHIN_S, ending, eventually
from support.slurm import NODES, Slurm
from support.watched import EXPORTED, MODULES, Place, Watched

from zmqrl.hostd.child import ASK
from zmqrl.hostd.orphans import DEATH_IS_SEEN_WITHIN_S
from zmqrl.hosts.connecting import connect
from zmqrl.hosts.events import Event, Exited, HostLost, HostUp, Task
from zmqrl.hosts.inventory import Host
from zmqrl.hosts.link import DAEMON, Link
from zmqrl.hosts.ways.ray_cluster import RayCluster
from zmqrl.hosts.ways.slurm import srun_command
from zmqrl.hosts.ways.via import read_via, via_command
from zmqrl.hosts.ways.way import ssh_command
from zmqrl.process import LOG_LEVEL
from zmqrl.process_id import worker_id

ONE, WILLING, STUBBORN, OTHER = map(worker_id, range(4))
pytestmark = pytest.mark.processes


class OverSSH(Place):
    """A host of the lab, with its own process ids."""

    lease_s = 5.0

    def __init__(self, lab: Lab, host: str) -> None:
        self.lab, self.host = lab, host

    def command(self) -> list[str]:
        return ssh_command(self.host, [sys.executable, *DAEMON], config=self.lab.ssh_config)

    def alive(self, pid: int) -> bool:
        state = self.lab.run(self.host, ["ps", "-o", "stat=", "-p", str(pid)], check=False).stdout.strip()
        return state != "" and not state.startswith("Z")

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        self.lab.run(self.host, ["kill", f"-{int(number)}", str(pid)])


class Via(Place):
    """A host behind a command. It has the process ids of this machine."""

    lease_s = 5.0

    def __init__(self, via: str, host: str) -> None:
        self.via, self.host = read_via(via), host

    def command(self) -> list[str]:
        return via_command(self.via, self.host, [sys.executable, *DAEMON])


class OnRay(Place):
    """A node of a Ray cluster on this machine."""

    lease_s = 5.0

    def __init__(self, cluster: RayCluster) -> None:
        self.cluster, self.host = cluster, next(iter(cluster.nodes))

    def command(self) -> list[str]:
        return self.cluster.command_on(Host(name=self.host), [sys.executable, *DAEMON])


class UnderSlurm(Place):
    """A node of a job. All nodes share process ids, which differ from those of this machine."""

    lease_s = 5.0

    def __init__(self, slurm: Slurm, job: str) -> None:
        self.slurm, self.job, self.host = slurm, job, NODES[1]

    def command(self) -> list[str]:
        return srun_command(self.job, self.host, [sys.executable, *DAEMON])

    def alive(self, pid: int) -> bool:
        return self.slurm.alive(pid)

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        self.slurm.inside("kill", f"-{int(number)}", str(pid))


@pytest.fixture(scope="module")
def job(slurm: Slurm) -> Iterator[str]:
    """A job that has allocated all nodes."""
    job = slurm.allocate()
    yield job
    slurm("scancel", job)


@pytest.fixture(scope="module")
def netns(need_programs: Callable[..., None], skip_or_fail: Callable[[str], NoReturn]) -> Iterator[str]:
    """The name of a network namespace."""
    need_programs("ip")
    if os.geteuid() != 0:
        skip_or_fail("a network namespace needs root")
    name = f"zmqrl-via-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, timeout=WITHIN_S)
    if made.returncode:
        skip_or_fail(f"this machine does not allow network namespaces: {made.stderr.strip()}")
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True, timeout=WITHIN_S)


@pytest.fixture(
    params=[
        "local",
        "local forked",
        pytest.param("ssh", marks=pytest.mark.lab),
        pytest.param("ssh forked", marks=pytest.mark.lab),
        pytest.param("netns", marks=pytest.mark.lab),
        pytest.param("slurm", marks=pytest.mark.slurm),
        pytest.param("slurm forked", marks=[pytest.mark.slurm, pytest.mark.slow]),
        pytest.param("stand-in", marks=pytest.mark.slow),
        pytest.param("killing", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.slow),
    ]
)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    name, _, forked = request.param.partition(" ")
    place = place_called(name, request, monkeypatch)
    place.forked = bool(forked)
    return place


def place_called(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    if name == "local":
        return Place()
    if name == "netns":
        return Via("ip netns exec {host}", request.getfixturevalue("netns"))
    if name == "stand-in":
        return Via("sh -c 'HOST={host} {command}'", "h1")
    if name == "killing":
        return Via(f"{sys.executable} {TESTS / 'support' / 'a_killing_command.py'} {{host}}", "h1")
    if name == "ray":
        return OnRay(RayCluster.at(request.getfixturevalue("ray")))
    if name == "ssh":
        return OverSSH(request.getfixturevalue("lab"), "h1")
    slurm: Slurm = request.getfixturevalue("slurm")
    for variable, value in slurm.environment.items():
        monkeypatch.setenv(variable, value)
    return UnderSlurm(slurm, request.getfixturevalue("job"))


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """A path at which this machine and the host each have a directory. These can be two different directories."""
    return tmp_path


@pytest.fixture
def watched(place: Place, where: Path) -> Iterator[Watched]:
    watched = Watched(place, where)
    yield watched
    watched.launcher.close()


def test_a_process_receives_its_job_and_reports_that_it_is_up(watched: Watched) -> None:
    watched.start(ONE, padding="x" * 200_000)
    (facts,) = watched.up(ONE)
    assert facts["size"] == 200_000
    assert watched.launcher.running() == [ONE]
    assert watched.launcher.pids() == {ONE: facts["pid"]}


def test_a_process_logs_at_the_level_of_its_launcher(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOG_LEVEL, raising=False)
    watched.start(ONE)
    watched.up(ONE)
    monkeypatch.setenv(LOG_LEVEL, "debug")  # too late for the host daemon to inherit it
    watched.start(OTHER)
    assert [facts["log_level"] for facts in watched.up(ONE, OTHER)] == [None, "debug"]


def test_an_exported_variable_reaches_the_process_but_not_the_files_of_the_run(watched: Watched) -> None:
    watched.start(ONE, variables=["A_TOKEN"])
    (facts,) = watched.up(ONE)
    assert facts["variables"] == EXPORTED
    assert "secret" not in json.dumps(watched.launcher.to_dict())


def test_a_process_receives_messages_in_order_and_answers(watched: Watched) -> None:
    watched.start(ONE, echo=True)
    for number in range(50):
        watched.launcher.tell(ONE, {"n": number})
    eventually(lambda: len(watched.said(ONE)) == 51, "all answers", WITHIN_S)
    assert [facts["echo"]["n"] for facts in watched.said(ONE)[1:]] == list(range(50))


@pytest.mark.parametrize("status", [0, 3])
def test_the_end_of_a_process_is_reported_with_its_status_and_last_log_lines(watched: Watched, status: int) -> None:
    watched.start(ONE, log=[*(f"line {n}\n" for n in range(100)), "no line ending"], exit=status)
    end = watched.end(ONE)
    assert (end.status, end.how()) == (status, f"exit status {status}")
    assert end.log_tail.splitlines() == [*(f"line {n}" for n in range(93, 100)), "no line ending"]
    assert watched.log(ONE).splitlines() == [*(f"line {n}" for n in range(100)), "no line ending"]
    assert watched.launcher.running() == []


def test_last_log_lines_are_from_the_process_that_ended_not_from_its_predecessor(watched: Watched) -> None:
    for times, words in enumerate(("first", "second"), start=1):
        watched.start(ONE, log=[f"{words}\n"], exit=1)
        assert watched.end(ONE, times).log_tail == words
    assert watched.log(ONE) == "first\nsecond\n"


def test_printed_text_goes_to_the_log_and_is_not_an_answer(watched: Watched) -> None:
    watched.start(ONE, print=["A.L.E.\n", "[1, 2]\n", "{broken\n", '{"echo": 1}\n', "no end"], exit=0)
    watched.end(ONE)
    assert watched.log(ONE).splitlines() == ["A.L.E.", "[1, 2]", "{broken", '{"echo": 1}', "no end"]
    assert len(watched.said(ONE)) == 1


def test_a_missing_module_is_reported_as_the_end_of_the_process(watched: Watched) -> None:
    watched.start(ONE, module="nonsense")
    end = watched.end(ONE)
    assert end.status == 1
    assert "No module named nonsense" in end.log_tail


def test_a_process_ended_by_a_signal_is_reported_with_the_signal(watched: Watched) -> None:
    watched.start(ONE)
    watched.up(ONE)
    watched.launcher.signal(ONE, signal.SIGKILL)
    assert watched.end(ONE).how() == "killed by SIGKILL"


def test_an_outside_kill_is_reported_at_once_and_the_process_can_start_again(watched: Watched) -> None:
    watched.start(ONE)
    (facts,) = watched.up(ONE)
    watched.place.kill(facts["pid"])
    assert watched.end(ONE).status == -signal.SIGKILL
    watched.start(ONE)
    eventually(lambda: len(watched.said(ONE)) == 2, "up again", WITHIN_S)


def test_everything_that_a_process_has_started_ends_with_it_and_nothing_else_does(watched: Watched) -> None:
    watched.start(ONE, with_children=True, background=[])
    watched.start(OTHER, with_children=True, background=[])
    watched.start(WILLING, background=["env", "-i"], echo=True)  # the server does not know which process started it
    one, other, willing = watched.up(ONE, OTHER, WILLING)
    watched.launcher.tell(WILLING, {"n": 1})
    eventually(lambda: len(watched.said(WILLING)) == 2, "by now, the host daemon has seen the server", WITHIN_S)
    time.sleep(1.2 * DEATH_IS_SEEN_WITHIN_S)  # a death after this time does not end the server
    watched.place.kill(one["pid"])
    watched.end(ONE)
    eventually(lambda: not any(map(watched.place.alive, one["started"])), "what it started ends", WITHIN_S)
    assert all(map(watched.place.alive, [other["pid"], *other["started"], willing["pid"], *willing["started"]]))


def test_a_server_without_the_environment_of_its_process_ends_with_it(watched: Watched) -> None:
    watched.start(ONE, bare_child=True)
    watched.start(OTHER, with_children=True)
    one, other = watched.up(ONE, OTHER)
    watched.place.kill(one["pid"])
    watched.end(ONE)
    eventually(lambda: not any(map(watched.place.alive, one["started"])), "what it started ends", WITHIN_S)
    assert all(map(watched.place.alive, other["started"]))


def test_stopping_processes_ends_even_those_that_ignore_the_signal_and_leaves_others_running(watched: Watched) -> None:
    watched.start(WILLING)
    watched.start(STUBBORN, stubborn=True)
    watched.start(OTHER)
    facts = watched.up(WILLING, STUBBORN, OTHER)
    watched.launcher.stop([WILLING, STUBBORN], grace_s=0.1)
    assert watched.launcher.running() == [OTHER]
    assert [watched.place.alive(each["pid"]) for each in facts] == [False, False, True]
    # The launcher does not report the end of a process that it was asked to stop.
    assert watched.ends(WILLING) == watched.ends(STUBBORN) == []


def test_closing_ends_everything_even_processes_that_left_their_session(watched: Watched) -> None:
    watched.start(ONE, with_children=True)
    watched.start(STUBBORN, stubborn=True)
    facts = watched.up(ONE, STUBBORN)
    watched.launcher.close()
    assert watched.launcher.running() == []
    assert not any(map(watched.place.alive, [*(each["pid"] for each in facts), *facts[0]["started"]]))


def test_a_killed_host_daemon_takes_its_processes_with_it_and_is_restarted(watched: Watched) -> None:
    watched.start(ONE)
    (facts,) = watched.up(ONE)
    (link,) = watched.launcher.links.values()
    assert link.up is not None
    watched.place.kill(link.up.pid)
    end = watched.end(ONE)
    assert end.how().startswith(f"host {link.host} is lost: ")
    eventually(lambda: not watched.place.alive(facts["pid"]), "the end of its process", WITHIN_S)
    watched.start(ONE)
    eventually(lambda: len(watched.said(ONE)) == 2, "up again", WITHIN_S)
    changes = [type(event) for event in watched.told if isinstance(event, HostUp | HostLost)]
    assert changes == [HostUp, HostLost, HostUp]


LAUNCHING = """
import json, sys, time
from pathlib import Path
from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.events import Said, Task
from zmqrl.hosts.link import DAEMON, Link
from zmqrl.process_id import worker_id
where, host, command, lease_s, modules, forked = json.loads(sys.argv[1])
link = Link(host, command, work=where + "/work", lease_s=lease_s, environment={"PYTHONPATH": modules})
launcher = DaemonLauncher({host: link}, lambda process: host)
for rank, job in enumerate([{"with_children": True}, {"stubborn": True}]):
    log_path = Path(where) / f"{rank}.log"
    process, module = worker_id(rank), "support.a_child"
    launcher.start(Task(process=process, module=module, job=job, log_path=log_path, threads=1, forked=forked))
pids = []
while True:
    for event in launcher.poll():
        if isinstance(event, Said):
            pids += [event.facts["pid"], *event.facts["started"]]
    if len(pids) == 4:
        print(json.dumps([*pids, link.up.pid]), flush=True)
        pids.append(None)
    time.sleep(0.01)
"""


@contextlib.contextmanager
def launching(place: Place, where: Path) -> Iterator[tuple["subprocess.Popen[bytes]", list[int]]]:
    """A launcher in a separate process, and the ids of the processes that it has started."""
    arguments = json.dumps([str(where), place.host, place.command(), place.lease_s, MODULES, place.forked])
    command = [sys.executable, "-c", LAUNCHING, arguments]
    with ending(subprocess.Popen(command, stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())


HANGS = {"on a lock": "wait_for_ever", "in Python": "compute_for_ever", "in C": "count_for_ever"}


@pytest.mark.parametrize("how", HANGS)
def test_a_hung_process_is_reported_with_the_stack_of_its_main_thread(watched: Watched, how: str) -> None:
    watched.start(ONE, hangs=how)
    watched.up(ONE)
    eventually(lambda: any(HANGS[how] in frame for frame in watched.inspect(ONE).stack), "it hangs", WITHIN_S)
    seen = watched.inspect(ONE)
    assert seen.state in (["waiting"] if how == "on a lock" else ["running", "waiting"])
    frames = [frame for frame in seen.stack if "a_child.py" in frame]
    assert re.fullmatch(rf'File ".*a_child.py", line \d+ in {HANGS[how]}', frames[-3])
    assert [frame.rpartition(" ")[2] for frame in frames[-2:]] == ["main", "<module>"]
    assert f"in {HANGS[how]}" in watched.log(ONE)


def test_a_computing_process_survives_many_inspections(watched: Watched) -> None:
    watched.start(ONE, hangs="in Python")
    (facts,) = watched.up(ONE)
    watched.inspect(ONE)

    def has_answered_often() -> bool:
        watched.launcher.signal(ONE, ASK)
        watched.told += watched.launcher.poll()
        return watched.log(ONE).count("in compute_for_ever") > 100

    eventually(has_answered_often, "many answers", WITHIN_S)
    assert watched.place.alive(facts["pid"])
    assert watched.ends(ONE) == []


def test_a_process_that_hangs_in_its_first_import_is_reported_with_its_stack(watched: Watched) -> None:
    watched.start(ONE, module="support.a_hanging_import")
    eventually(lambda: "a_hanging_import.py" in watched.inspect(ONE).stack[0], "it hangs", WITHIN_S)
    assert watched.ends(ONE) == []


def test_a_stopped_process_is_reported_as_stopped_and_continues_later(watched: Watched) -> None:
    watched.start(ONE, echo=True)
    watched.up(ONE)
    watched.launcher.signal(ONE, signal.SIGSTOP)
    eventually(lambda: watched.inspect(ONE).state == "stopped", "it is stopped", WITHIN_S)
    assert watched.inspect(ONE).stack == ()
    watched.launcher.signal(ONE, signal.SIGCONT)
    watched.launcher.tell(ONE, {"n": 1})
    eventually(lambda: len(watched.said(ONE)) == 2, "an answer", WITHIN_S)


def test_a_process_that_does_not_catch_the_signal_is_not_inspected(watched: Watched) -> None:
    watched.start(ONE, deaf=True, echo=True)
    watched.up(ONE)
    watched.launcher.tell(ONE, {"n": 1})
    eventually(lambda: len(watched.said(ONE)) == 2, "it ignores the signal by now", WITHIN_S)
    watched.launcher.inspect(ONE)
    eventually(lambda: bool(watched.inspected(ONE)), "an answer", WITHIN_S)
    assert watched.inspected(ONE)[0].stack == ()
    watched.launcher.tell(ONE, {"n": 2})
    eventually(lambda: len(watched.said(ONE)) == 3, "it lives", WITHIN_S)


def test_a_process_survives_every_inspection_while_it_starts(watched: Watched) -> None:
    watched.start(ONE, echo=True)
    while not watched.said(ONE):
        watched.launcher.inspect(ONE)
        time.sleep(0.001)
    watched.launcher.tell(ONE, {"n": 1})
    eventually(lambda: len(watched.said(ONE)) == 2, "an answer", WITHIN_S)
    assert watched.ends(ONE) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_a_killed_launcher(place: Place, where: Path, number: signal.Signals) -> None:
    with launching(place, where) as (process, pids):
        process.send_signal(number)
        eventually(lambda: not any(map(place.alive, pids)), f"the end of {pids}", 15)


@pytest.mark.slow
def test_no_process_outlives_a_stopped_host_daemon_and_a_killed_launcher(place: Place, where: Path) -> None:
    with launching(place, where) as (process, pids):
        *_, daemon = pids
        place.kill(daemon, signal.SIGSTOP)
        process.kill()
        eventually(lambda: not any(map(place.alive, pids)), f"the end of {pids}", WITHIN_S)


@pytest.mark.slow
def test_a_host_whose_daemon_is_stopped_is_lost_and_can_be_used_again(watched: Watched) -> None:
    watched.start(ONE, with_children=True)
    (facts,) = watched.up(ONE)
    (link,) = watched.launcher.links.values()
    assert link.up is not None
    watched.place.kill(link.up.pid, signal.SIGSTOP)
    assert re.fullmatch(rf"host {link.host} is lost: .*the host daemon (is|was) stopped .*", watched.end(ONE).how())
    eventually(lambda: not any(map(watched.place.alive, [facts["pid"], *facts["started"]])), "their end", WITHIN_S)
    watched.start(ONE)
    eventually(lambda: len(watched.said(ONE)) == 2, "up again", WITHIN_S)


def test_what_a_killed_host_daemon_started_ends_even_in_other_sessions(watched: Watched) -> None:
    watched.start(ONE, with_children=True, background=[])
    watched.start(STUBBORN, stubborn=True)
    facts = watched.up(ONE, STUBBORN)
    (link,) = watched.launcher.links.values()
    assert link.up is not None
    watched.place.kill(link.up.pid)
    if watched.place.lease_s is None:  # ssh and srun do not tell why a program has ended
        assert watched.end(ONE).how() == f"host {link.host} is lost: the host daemon was killed by signal 9"
    pids = [pid for each in facts for pid in (each["pid"], *each["started"])]
    eventually(lambda: not any(map(watched.place.alive, pids)), f"the end of {pids}", WITHIN_S)


def test_a_second_host_daemon_waits_until_the_first_has_ended(place: Place, where: Path) -> None:
    first, second = Watched(place, where), Watched(place, where)
    try:
        first.start(ONE)
        first.up(ONE)
        second.start(ONE)
        time.sleep(0.5)
        assert second.said(ONE) == []
        first.launcher.close()
        second.up(ONE)
    finally:
        first.launcher.close()
        second.launcher.close()


def test_a_machine_listed_under_two_names_is_reported_immediately(where: Path) -> None:
    place = Place()
    links = [Link(name, place.command(), work=str(where / "work"), lease_s=None) for name in ("h1", "h1.cluster")]
    try:
        failed = connect(links)
        (other,) = {"h1", "h1.cluster"} - set(failed)
        assert list(failed.values()) == [f"this is the same machine as {other}: list it once"]
    finally:
        for link in links:
            link.cut()


def test_an_error_names_an_unusable_directory(place: Place, where: Path) -> None:
    launcher = place.launcher(Path("/proc/version/work"))
    launcher.start(Task(process=ONE, module="support.a_child", job={}, log_path=where / "one.log", threads=1))
    events: list[Event] = []

    def has_said() -> bool:
        events.extend(event for event in launcher.poll() if isinstance(event, Exited))
        return bool(events)

    eventually(has_said, "its end", WITHIN_S)
    (end,) = events
    assert isinstance(end, Exited)
    assert "cannot use /proc/version/work: Not a directory" in end.how()
    launcher.close()


# faults of a network


@pytest.fixture
def far(lab: Lab) -> OverSSH:
    return OverSSH(lab, "h2")


def test_all_processes_on_an_unreachable_host_end_and_later_the_host_can_be_used_again(
    lab: Lab, far: OverSSH, where: Path
) -> None:
    watched = Watched(far, where)
    watched.start(ONE, with_children=True)
    watched.start(STUBBORN, stubborn=True)
    pids = [pid for facts in watched.up(ONE, STUBBORN) for pid in (facts["pid"], *facts["started"])]
    lab.blackhole(far.host, "on")
    for name in (ONE, STUBBORN):
        assert watched.end(name).how().startswith("host h2 is lost: ")
    eventually(lambda: not any(map(far.alive, pids)), f"the end of {pids}", 15)
    lab.blackhole(far.host, "off")
    watched.start(ONE)
    eventually(lambda: len(watched.said(ONE)) == 2, "up again", WITHIN_S)
    watched.launcher.close()


def test_a_short_network_outage_ends_no_process(lab: Lab, far: OverSSH, where: Path) -> None:
    watched = Watched(far, where)
    watched.start(ONE, echo=True)
    watched.up(ONE)
    lab.blackhole(far.host, "on")
    time.sleep(1.5)
    lab.blackhole(far.host, "off")
    watched.launcher.tell(ONE, {"n": 1})
    eventually(lambda: len(watched.said(ONE)) == 2, "an answer", WITHIN_S)
    assert watched.ends(ONE) == []
    watched.launcher.close()


def test_each_unreachable_host_is_reported_with_its_reason(lab: Lab, where: Path) -> None:
    lab("refuse", "h3", "22", "on")
    stranger = where / "stranger"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stranger)]
    subprocess.run(command, check=True, timeout=WITHIN_S)
    wrong_key = where / "ssh_config"
    ours = lab.ssh_config.read_text(encoding="utf-8")
    wrong_key.write_text(ours.replace(str(lab.directory / "id_ed25519"), str(stranger)), encoding="utf-8")
    commands = {
        "h1": ssh_command("h1", [sys.executable, *DAEMON], config=lab.ssh_config),
        "h2": ssh_command("h2", [sys.executable, *DAEMON], config=wrong_key),
        "h3": ssh_command("h3", [sys.executable, *DAEMON], config=lab.ssh_config),
        "h4": ssh_command("h4", ["/nowhere/python", *DAEMON], config=lab.ssh_config),
        "h9": ssh_command("h9", [sys.executable, *DAEMON], config=lab.ssh_config),
    }
    links = [Link(host, command, work=str(where), lease_s=5.0) for host, command in commands.items()]
    failed = connect(links)
    assert failed.keys() == {"h2", "h3", "h4", "h9"}
    assert "Permission denied" in failed["h2"]
    assert "Connection refused" in failed["h3"]
    assert "/nowhere/python" in failed["h4"]
    assert "h9" in failed["h9"]
    for link in links:
        link.cut()


def test_a_host_can_be_used_if_its_ssh_configuration_is_for_a_shell(lab: Lab, where: Path) -> None:
    for_a_shell = where / "ssh_config"
    settings = "RemoteCommand tmux attach\nExitOnForwardFailure yes\nRemoteForward 22 localhost:22\n"
    settings += "SessionType none\nStdinNull yes\nForkAfterAuthentication yes\n"
    ours = lab.ssh_config.read_text(encoding="utf-8")
    for_a_shell.write_text(f"Host h1\n{settings}\n{ours}", encoding="utf-8")
    command = ssh_command("h1", [sys.executable, *DAEMON], config=for_a_shell)
    link = Link("h1", command, work=str(where / "work"), lease_s=5.0)
    try:
        assert connect([link]) == {}
    finally:
        link.cut()


def test_no_command_line_on_a_host_shows_anything_about_a_run(lab: Lab, far: OverSSH, where: Path) -> None:
    watched = Watched(far, where)
    watched.start(ONE, padding="a-secret")
    watched.up(ONE)
    assert any("zmqrl.hostd.daemon" in line for line in lab.processes(far.host))
    shown = lab.run(far.host, ["sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' ' '"]).stdout
    assert "a-secret" not in shown
    assert str(where) not in shown
    watched.launcher.close()


def test_a_link_saved_by_an_older_zmqrl_runs_the_current_daemon() -> None:
    old = {"host": "h1", "command": ["ssh", "h1", "exec python -m zmqrl.cluster.agent"], "work": "run", "lease_s": 8.0}
    assert Link.from_dict(old).command == ["ssh", "h1", "exec python -m zmqrl.hostd.daemon"]


def test_all_launchers_are_built_in_one_module() -> None:
    builds = re.compile(r"(?<!class )\bDaemonLauncher\(")
    assert [path.name for path in (ROOT / "zmqrl").rglob("*.py") if builds.search(path.read_text())] == [
        "deployment.py"
    ]
