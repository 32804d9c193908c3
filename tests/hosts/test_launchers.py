"""One life cycle for all launchers: what is started is told of, what ends is told of, and nothing is left behind.

Every test runs with processes of this machine, of a host that is reached by ssh, and of a node of a Slurm job.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.lab import Lab
from support.paths import TESTS
from support.rig import ending, eventually, is_alive
from support.slurm import NODES, Slurm

from zmqrl.hostd.child import ASK
from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.deployment import HERE
from zmqrl.hosts.launcher import Event, Exited, Inspected, Said, Task
from zmqrl.hosts.link import Link
from zmqrl.hosts.slurm import srun_command
from zmqrl.hosts.ssh import connect, ssh_command
from zmqrl.process import LOG_LEVEL
from zmqrl.process_id import ProcessId, worker_id

WITHIN_S = 240.0
ONE, WILLING, STUBBORN, OTHER = map(worker_id, range(4))
pytestmark = pytest.mark.processes


class Place:
    """Where processes are: how an agent is started there, and how to look at them without it."""

    host = HERE
    lease_s: float | None = None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "zmqrl.hostd.daemon"]

    def alive(self, pid: int) -> bool:
        return is_alive(pid)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def link(self, work: Path) -> Link:
        return Link(
            self.host, self.command(), work=str(work), lease_s=self.lease_s, environment={"PYTHONPATH": str(TESTS)}
        )

    def launcher(self, work: Path) -> DaemonLauncher:
        # The same environment on every host; there, ssh would not take this one along.
        return DaemonLauncher({self.host: self.link(work)}, lambda name: self.host)


class OverSSH(Place):
    """A host of the lab. Its process ids are its own."""

    lease_s = 5.0

    def __init__(self, lab: Lab, host: str) -> None:
        self.lab, self.host = lab, host

    def command(self) -> list[str]:
        return ssh_command(self.host, sys.executable, config=self.lab.ssh_config)

    def alive(self, pid: int) -> bool:
        state = self.lab.run(self.host, ["ps", "-o", "stat=", "-p", str(pid)], check=False).stdout.strip()
        return state != "" and not state.startswith("Z")

    def kill(self, pid: int) -> None:
        self.lab.run(self.host, ["kill", "-9", str(pid)])


class UnderSlurm(Place):
    """A node of a job. Process ids are those of all nodes, but not those of this machine."""

    lease_s = 5.0

    def __init__(self, slurm: Slurm, job: str) -> None:
        self.slurm, self.job, self.host = slurm, job, NODES[1]

    def command(self) -> list[str]:
        return srun_command(self.job, self.host, sys.executable)

    def alive(self, pid: int) -> bool:
        return self.slurm.alive(pid)

    def kill(self, pid: int) -> None:
        self.slurm.inside("kill", "-9", str(pid))


class Watched:
    """A launcher, and all that it told."""

    def __init__(self, place: Place, where: Path) -> None:
        self.place, self.where = place, where
        self.launcher = place.launcher(where / "work")
        self.told: list[Event] = []

    def start(self, process: ProcessId, *, module: str = "support.a_child", **job: Any) -> None:
        path = self.where / "logs" / f"{process}.log"
        self.launcher.start(Task(process=process, module=module, job=job, log_path=path, threads=1))

    def log(self, process: ProcessId) -> str:
        return (self.where / "logs" / f"{process}.log").read_text(encoding="utf-8")

    def said(self, process: ProcessId) -> list[dict[str, Any]]:
        self.told += self.launcher.poll()
        return [event.facts for event in self.told if isinstance(event, Said) and event.process == process]

    def ends(self, process: ProcessId) -> list[Exited]:
        self.told += self.launcher.poll()
        return [event for event in self.told if isinstance(event, Exited) and event.process == process]

    def inspected(self, process: ProcessId) -> list[Inspected]:
        self.told += self.launcher.poll()
        return [event for event in self.told if isinstance(event, Inspected) and event.process == process]

    def inspect(self, process: ProcessId) -> Inspected:
        """Ask what it does until the answer has a stack, or says that there will be none."""
        while True:
            self.told = [event for event in self.told if not isinstance(event, Inspected)]
            self.launcher.inspect(process)
            eventually(lambda: bool(self.inspected(process)), f"an answer about {process}", WITHIN_S)
            (seen,) = self.inspected(process)
            if seen.stack or seen.state == "stopped":
                return seen

    def up(self, *processes: ProcessId) -> list[dict[str, Any]]:
        """What each has said first."""
        eventually(lambda: all(map(self.said, processes)), f"{processes} are up", WITHIN_S)
        return [self.said(process)[0] for process in processes]

    def end(self, process: ProcessId, times: int = 1) -> Exited:
        eventually(lambda: len(self.ends(process)) == times, f"{process} ends", WITHIN_S)
        return self.ends(process)[-1]


@pytest.fixture(scope="module")
def job(slurm: Slurm) -> Iterator[str]:
    """A job that has all nodes."""
    job = slurm.allocate()
    yield job
    slurm("scancel", job)


@pytest.fixture(
    params=["local", pytest.param("ssh", marks=pytest.mark.lab), pytest.param("slurm", marks=pytest.mark.slurm)]
)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "local":
        return Place()
    if request.param == "ssh":
        return OverSSH(request.getfixturevalue("lab"), "h1")
    slurm: Slurm = request.getfixturevalue("slurm")
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return UnderSlurm(slurm, request.getfixturevalue("job"))


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """A directory that both this machine and the host have, each its own on a host."""
    return tmp_path


@pytest.fixture
def watched(place: Place, where: Path) -> Iterator[Watched]:
    watched = Watched(place, where)
    yield watched
    watched.launcher.close()


def test_a_process_is_told_its_job_and_tells_that_it_is_up(watched: Watched) -> None:
    watched.start(ONE, padding="x" * 200_000)
    (facts,) = watched.up(ONE)
    assert facts["size"] == 200_000
    assert watched.launcher.running() == [ONE]
    assert watched.launcher.pids() == {ONE: facts["pid"]}


def test_it_logs_at_the_level_that_is_set_for_its_launcher(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOG_LEVEL, raising=False)
    watched.start(ONE)
    watched.up(ONE)
    monkeypatch.setenv(LOG_LEVEL, "debug")  # too late for the daemon of the host to inherit it
    watched.start(OTHER)
    assert [facts["log_level"] for facts in watched.up(ONE, OTHER)] == [None, "debug"]


def test_it_is_told_more_in_order_and_answers(watched: Watched) -> None:
    watched.start(ONE, echo=True)
    for number in range(50):
        watched.launcher.tell(ONE, {"n": number})
    eventually(lambda: len(watched.said(ONE)) == 51, "all answers", WITHIN_S)
    assert [facts["echo"]["n"] for facts in watched.said(ONE)[1:]] == list(range(50))


@pytest.mark.parametrize("status", [0, 3])
def test_its_end_is_told_with_its_status_and_its_last_words(watched: Watched, status: int) -> None:
    watched.start(ONE, log=[*(f"line {n}\n" for n in range(100)), "no line ending"], exit=status)
    end = watched.end(ONE)
    assert (end.status, end.how()) == (status, f"exit status {status}")
    assert end.log_tail.splitlines() == [*(f"line {n}" for n in range(93, 100)), "no line ending"]
    assert watched.log(ONE).splitlines() == [*(f"line {n}" for n in range(100)), "no line ending"]
    assert watched.launcher.running() == []


def test_last_words_are_those_of_the_process_that_ended_not_of_the_one_before(watched: Watched) -> None:
    for times, words in enumerate(("first", "second"), start=1):
        watched.start(ONE, log=[f"{words}\n"], exit=1)
        assert watched.end(ONE, times).log_tail == words
    assert watched.log(ONE) == "first\nsecond\n"


def test_what_is_printed_goes_to_the_log_and_is_no_answer(watched: Watched) -> None:
    watched.start(ONE, print=["A.L.E.\n", "[1, 2]\n", "{broken\n", '{"echo": 1}\n', "no end"], exit=0)
    watched.end(ONE)
    assert watched.log(ONE).splitlines() == ["A.L.E.", "[1, 2]", "{broken", '{"echo": 1}', "no end"]
    assert len(watched.said(ONE)) == 1


def test_a_module_that_is_not_there_is_told_as_an_end(watched: Watched) -> None:
    watched.start(ONE, module="nonsense")
    end = watched.end(ONE)
    assert end.status == 1
    assert "No module named nonsense" in end.log_tail


def test_a_signal_ends_it_and_is_named(watched: Watched) -> None:
    watched.start(ONE)
    watched.up(ONE)
    watched.launcher.signal(ONE, signal.SIGKILL)
    assert watched.end(ONE).how() == "killed by SIGKILL"


def test_one_that_is_killed_by_somebody_else_is_told_at_once_and_can_be_started_again(watched: Watched) -> None:
    watched.start(ONE)
    (facts,) = watched.up(ONE)
    watched.place.kill(facts["pid"])
    assert watched.end(ONE).status == -signal.SIGKILL
    watched.start(ONE)
    eventually(lambda: len(watched.said(ONE)) == 2, "up again", WITHIN_S)


def test_what_a_process_started_in_its_session_ends_with_it(watched: Watched) -> None:
    watched.start(ONE, with_children=True)
    (facts,) = watched.up(ONE)
    watched.place.kill(facts["pid"])
    watched.end(ONE)
    eventually(lambda: not watched.place.alive(facts["started"][0]), "its child ends", WITHIN_S)


def test_stopping_ends_the_willing_and_the_stubborn_and_leaves_the_others(watched: Watched) -> None:
    watched.start(WILLING)
    watched.start(STUBBORN, stubborn=True)
    watched.start(OTHER)
    facts = watched.up(WILLING, STUBBORN, OTHER)
    watched.launcher.stop([WILLING, STUBBORN], grace_s=0.1)
    assert watched.launcher.running() == [OTHER]
    assert [watched.place.alive(each["pid"]) for each in facts] == [False, False, True]
    # Who ends a process knows that it ends.
    assert watched.ends(WILLING) == watched.ends(STUBBORN) == []


def test_closing_ends_everything_even_what_left_its_session(watched: Watched) -> None:
    watched.start(ONE, with_children=True)
    watched.start(STUBBORN, stubborn=True)
    facts = watched.up(ONE, STUBBORN)
    watched.launcher.close()
    assert watched.launcher.running() == []
    assert not any(map(watched.place.alive, [*(each["pid"] for each in facts), *facts[0]["started"]]))


def test_an_agent_that_is_killed_takes_its_processes_with_it_and_is_started_anew(watched: Watched) -> None:
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


LAUNCHING = """
import json, sys, time
from pathlib import Path
from zmqrl.hosts.daemons import DaemonLauncher
from zmqrl.hosts.launcher import Said, Task
from zmqrl.hosts.link import Link
from zmqrl.process_id import worker_id
where, host, command, lease_s, tests = json.loads(sys.argv[1])
link = Link(host, command, work=where + "/work", lease_s=lease_s, environment={"PYTHONPATH": tests})
launcher = DaemonLauncher({host: link}, lambda process: host)
for rank, job in enumerate([{"with_children": True}, {"stubborn": True}]):
    log_path = Path(where) / f"{rank}.log"
    launcher.start(Task(process=worker_id(rank), module="support.a_child", job=job, log_path=log_path, threads=1))
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
    """A launcher in a process of its own, and the processes that it has started."""
    arguments = json.dumps([str(where), place.host, place.command(), place.lease_s, str(TESTS)])
    command = [sys.executable, "-c", LAUNCHING, arguments]
    with ending(subprocess.Popen(command, stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())


HANGS = {"on a lock": "wait_for_ever", "in Python": "compute_for_ever", "in C": "count_for_ever"}


@pytest.mark.parametrize("how", HANGS)
def test_one_that_hangs_is_seen_with_the_stack_of_its_main_thread(watched: Watched, how: str) -> None:
    watched.start(ONE, hangs=how)
    watched.up(ONE)
    eventually(lambda: any(HANGS[how] in frame for frame in watched.inspect(ONE).stack), "it hangs", WITHIN_S)
    seen = watched.inspect(ONE)
    assert seen.state in (["waiting"] if how == "on a lock" else ["running", "waiting"])
    frames = [frame for frame in seen.stack if "a_child.py" in frame]
    assert re.fullmatch(rf'File ".*a_child.py", line \d+ in {HANGS[how]}', frames[-3])
    assert [frame.rpartition(" ")[2] for frame in frames[-2:]] == ["main", "<module>"]
    assert f"in {HANGS[how]}" in watched.log(ONE)


def test_one_that_computes_survives_many_questions(watched: Watched) -> None:
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


def test_one_that_hangs_in_its_first_import_says_where(watched: Watched) -> None:
    watched.start(ONE, module="support.a_hanging_import")
    eventually(lambda: "a_hanging_import.py" in watched.inspect(ONE).stack[0], "it hangs", WITHIN_S)
    assert watched.ends(ONE) == []


def test_one_that_is_stopped_is_seen_so_and_goes_on_later(watched: Watched) -> None:
    watched.start(ONE, echo=True)
    watched.up(ONE)
    watched.launcher.signal(ONE, signal.SIGSTOP)
    eventually(lambda: watched.inspect(ONE).state == "stopped", "it is stopped", WITHIN_S)
    assert watched.inspect(ONE).stack == ()
    watched.launcher.signal(ONE, signal.SIGCONT)
    watched.launcher.tell(ONE, {"n": 1})
    eventually(lambda: len(watched.said(ONE)) == 2, "an answer", WITHIN_S)


def test_one_that_would_die_of_the_question_is_not_asked(watched: Watched) -> None:
    watched.start(ONE, deaf=True, echo=True)
    watched.up(ONE)
    watched.launcher.tell(ONE, {"n": 1})
    eventually(lambda: len(watched.said(ONE)) == 2, "it is deaf by now", WITHIN_S)
    watched.launcher.inspect(ONE)
    eventually(lambda: bool(watched.inspected(ONE)), "an answer", WITHIN_S)
    assert watched.inspected(ONE)[0].stack == ()
    watched.launcher.tell(ONE, {"n": 2})
    eventually(lambda: len(watched.said(ONE)) == 3, "it lives", WITHIN_S)


def test_processes_that_have_just_been_started_survive_every_question(watched: Watched) -> None:
    watched.start(ONE, echo=True)
    while not watched.said(ONE):
        watched.launcher.inspect(ONE)
        time.sleep(0.001)
    watched.launcher.tell(ONE, {"n": 1})
    eventually(lambda: len(watched.said(ONE)) == 2, "an answer", WITHIN_S)
    assert watched.ends(ONE) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_launcher_that_is_killed(place: Place, where: Path, number: signal.Signals) -> None:
    with launching(place, where) as (process, pids):
        process.send_signal(number)
        eventually(lambda: not any(map(place.alive, pids)), f"the end of {pids}", 15)


def test_a_second_agent_waits_for_the_first_to_end(place: Place, where: Path) -> None:
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


def test_a_machine_that_is_listed_under_two_names_is_named_at_once(where: Path) -> None:
    place = Place()
    links = [Link(name, place.command(), work=str(where / "work"), lease_s=None) for name in ("h1", "h1.cluster")]
    try:
        failed = connect(links)
        (other,) = {"h1", "h1.cluster"} - set(failed)
        assert list(failed.values()) == [f"this is the same machine as {other}: list it once"]
    finally:
        for link in links:
            link.cut()


def test_a_directory_that_cannot_be_used_is_named(place: Place, where: Path) -> None:
    launcher = place.launcher(Path("/proc/version/work"))
    launcher.start(Task(process=ONE, module="support.a_child", job={}, log_path=where / "one.log", threads=1))
    events: list[Event] = []

    def has_said() -> bool:
        events.extend(launcher.poll())
        return bool(events)

    eventually(has_said, "its end", WITHIN_S)
    (end,) = events
    assert isinstance(end, Exited)
    assert "cannot use /proc/version/work: Not a directory" in end.how()
    launcher.close()


# what only a network can do


@pytest.fixture
def far(lab: Lab) -> OverSSH:
    return OverSSH(lab, "h2")


def test_everything_ends_on_a_host_that_is_cut_off_and_it_is_used_again_afterwards(
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


def test_a_short_break_of_the_network_ends_nothing(lab: Lab, far: OverSSH, where: Path) -> None:
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


def test_hosts_that_cannot_be_reached_each_say_why(lab: Lab, where: Path) -> None:
    lab("refuse", "h3", "22", "on")
    stranger = where / "stranger"
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stranger)]
    subprocess.run(command, check=True, timeout=WITHIN_S)
    wrong_key = where / "ssh_config"
    ours = lab.ssh_config.read_text(encoding="utf-8")
    wrong_key.write_text(ours.replace(str(lab.directory / "id_ed25519"), str(stranger)), encoding="utf-8")
    commands = {
        "h1": ssh_command("h1", sys.executable, config=lab.ssh_config),
        "h2": ssh_command("h2", sys.executable, config=wrong_key),
        "h3": ssh_command("h3", sys.executable, config=lab.ssh_config),
        "h4": ssh_command("h4", "/nowhere/python", config=lab.ssh_config),
        "h9": ssh_command("h9", sys.executable, config=lab.ssh_config),
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


def test_nothing_about_a_run_is_on_the_command_line_of_any_host(lab: Lab, far: OverSSH, where: Path) -> None:
    watched = Watched(far, where)
    watched.start(ONE, padding="a-secret")
    watched.up(ONE)
    assert any("zmqrl.hostd.daemon" in line for line in lab.processes(far.host))
    shown = lab.run(far.host, ["sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' ' '"]).stdout
    assert "a-secret" not in shown
    assert str(where) not in shown
    watched.launcher.close()


def test_a_link_that_older_code_wrote_down_runs_the_daemon_of_today() -> None:
    old = {"host": "h1", "command": ["ssh", "h1", "exec python -m zmqrl.cluster.agent"], "work": "run", "lease_s": 8.0}
    assert Link.from_dict(old).command == ["ssh", "h1", "exec python -m zmqrl.hostd.daemon"]
