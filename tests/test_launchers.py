"""One life cycle for all launchers: what is started is told of, what ends is told of, and nothing is left behind.

Every test runs with processes of this machine, of a host that is reached by ssh, and of a node of a Slurm job.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from rig import ending, eventually, is_alive
from slurm import NODES, Slurm

from zmqrl.cluster.agents import Agents
from zmqrl.cluster.deployment import HERE
from zmqrl.cluster.launcher import Exited, Said, Task
from zmqrl.cluster.link import Link
from zmqrl.cluster.slurm import srun_command
from zmqrl.cluster.ssh import connect, ssh_command

WITHIN_S = 30.0
TESTS = Path(__file__).parent


class Place:
    """Where processes are: how an agent is started there, and how to look at them without it."""

    host = HERE
    lease_s: float | None = None

    def command(self) -> list[str]:
        return [sys.executable, "-m", "zmqrl.cluster.agent"]

    def alive(self, pid: int) -> bool:
        return is_alive(pid)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def link(self, work: Path) -> Link:
        return Link(
            self.host, self.command(), work=str(work), lease_s=self.lease_s, environment={"PYTHONPATH": str(TESTS)}
        )

    def launcher(self, work: Path) -> Agents:
        # The same environment on every host; there, ssh would not take this one along.
        return Agents({self.host: self.link(work)}, lambda name: self.host)


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
        self.told: list[Said | Exited] = []

    def start(self, name: str, *, module: str = "a_child", **job: Any) -> None:
        path = self.where / "logs" / f"{name}.log"
        self.launcher.start(Task(name=name, module=module, job=job, log_path=path, threads=1))

    def log(self, name: str) -> str:
        return (self.where / "logs" / f"{name}.log").read_text(encoding="utf-8")

    def said(self, name: str) -> list[dict[str, Any]]:
        self.told += self.launcher.poll()
        return [event.facts for event in self.told if isinstance(event, Said) and event.name == name]

    def ends(self, name: str) -> list[Exited]:
        self.told += self.launcher.poll()
        return [event for event in self.told if isinstance(event, Exited) and event.name == name]

    def up(self, *names: str) -> list[dict[str, Any]]:
        """What each has said first."""
        eventually(lambda: all(self.said(name) for name in names), f"{names} are up", WITHIN_S)
        return [self.said(name)[0] for name in names]

    def end(self, name: str, times: int = 1) -> Exited:
        eventually(lambda: len(self.ends(name)) == times, f"{name} ends", WITHIN_S)
        return self.ends(name)[-1]


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
    watched.start("one", padding="x" * 200_000)
    (facts,) = watched.up("one")
    assert facts["size"] == 200_000
    assert watched.launcher.names() == ["one"]
    assert watched.launcher.pids() == {"one": facts["pid"]}


def test_it_is_told_more_in_order_and_answers(watched: Watched) -> None:
    watched.start("one", echo=True)
    for number in range(50):
        watched.launcher.tell("one", {"n": number})
    eventually(lambda: len(watched.said("one")) == 51, "all answers", WITHIN_S)
    assert [facts["echo"]["n"] for facts in watched.said("one")[1:]] == list(range(50))


@pytest.mark.parametrize("status", [0, 3])
def test_its_end_is_told_with_its_status_and_its_last_words(watched: Watched, status: int) -> None:
    watched.start("one", log=[*(f"line {n}\n" for n in range(100)), "no line ending"], exit=status)
    end = watched.end("one")
    assert (end.status, end.how()) == (status, f"exit status {status}")
    assert end.log_tail.splitlines() == [*(f"line {n}" for n in range(93, 100)), "no line ending"]
    assert watched.log("one").splitlines() == [*(f"line {n}" for n in range(100)), "no line ending"]
    assert watched.launcher.names() == []


def test_last_words_are_those_of_the_process_that_ended_not_of_the_one_before(watched: Watched) -> None:
    for times, words in enumerate(("first", "second"), start=1):
        watched.start("one", log=[f"{words}\n"], exit=1)
        assert watched.end("one", times).log_tail == words
    assert watched.log("one") == "first\nsecond\n"


def test_what_is_printed_goes_to_the_log_and_is_no_answer(watched: Watched) -> None:
    watched.start("one", print=["A.L.E.\n", "[1, 2]\n", "{broken\n", '{"echo": 1}\n', "no end"], exit=0)
    watched.end("one")
    assert watched.log("one").splitlines() == ["A.L.E.", "[1, 2]", "{broken", '{"echo": 1}', "no end"]
    assert len(watched.said("one")) == 1


def test_a_module_that_is_not_there_is_told_as_an_end(watched: Watched) -> None:
    watched.start("one", module="nonsense")
    end = watched.end("one")
    assert end.status == 1
    assert "No module named nonsense" in end.log_tail


def test_a_signal_ends_it_and_is_named(watched: Watched) -> None:
    watched.start("one")
    watched.up("one")
    watched.launcher.signal("one", signal.SIGKILL)
    assert watched.end("one").how() == "killed by SIGKILL"


def test_one_that_is_killed_by_somebody_else_is_told_at_once_and_can_be_started_again(watched: Watched) -> None:
    watched.start("one")
    (facts,) = watched.up("one")
    watched.place.kill(facts["pid"])
    assert watched.end("one").status == -signal.SIGKILL
    watched.start("one")
    eventually(lambda: len(watched.said("one")) == 2, "up again", WITHIN_S)


def test_what_a_process_started_in_its_session_ends_with_it(watched: Watched) -> None:
    watched.start("one", with_children=True)
    (facts,) = watched.up("one")
    watched.place.kill(facts["pid"])
    watched.end("one")
    eventually(lambda: not watched.place.alive(facts["started"][0]), "its child ends", WITHIN_S)


def test_stopping_ends_the_willing_and_the_stubborn_and_leaves_the_others(watched: Watched) -> None:
    watched.start("willing")
    watched.start("stubborn", stubborn=True)
    watched.start("other")
    facts = watched.up("willing", "stubborn", "other")
    watched.launcher.stop(["willing", "stubborn"], grace_s=0.1)
    assert watched.launcher.names() == ["other"]
    assert [watched.place.alive(each["pid"]) for each in facts] == [False, False, True]
    # Who ends a process knows that it ends.
    assert watched.ends("willing") == watched.ends("stubborn") == []


def test_closing_ends_everything_even_what_left_its_session(watched: Watched) -> None:
    watched.start("one", with_children=True)
    watched.start("stubborn", stubborn=True)
    facts = watched.up("one", "stubborn")
    watched.launcher.close()
    assert watched.launcher.names() == []
    assert not any(map(watched.place.alive, [*(each["pid"] for each in facts), *facts[0]["started"]]))


def test_an_agent_that_is_killed_takes_its_processes_with_it_and_is_started_anew(watched: Watched) -> None:
    watched.start("one")
    (facts,) = watched.up("one")
    (link,) = watched.launcher.links.values()
    assert link.up is not None
    watched.place.kill(link.up["pid"])
    end = watched.end("one")
    assert end.how().startswith(f"host {link.host} is lost: ")
    eventually(lambda: not watched.place.alive(facts["pid"]), "the end of its process", WITHIN_S)
    watched.start("one")
    eventually(lambda: len(watched.said("one")) == 2, "up again", WITHIN_S)


LAUNCHING = """
import json, sys, time
from pathlib import Path
from zmqrl.cluster.agents import Agents
from zmqrl.cluster.launcher import Said, Task
from zmqrl.cluster.link import Link
where, host, command, lease_s, tests = json.loads(sys.argv[1])
link = Link(host, command, work=where + "/work", lease_s=lease_s, environment={"PYTHONPATH": tests})
launcher = Agents({host: link}, lambda name: host)
for name, job in (("one", {"with_children": True}), ("stubborn", {"stubborn": True})):
    launcher.start(Task(name=name, module="a_child", job=job, log_path=Path(where) / f"{name}.log", threads=1))
pids = []
while True:
    for event in launcher.poll():
        if isinstance(event, Said):
            pids += [event.facts["pid"], *event.facts["started"]]
    if len(pids) == 4:
        print(json.dumps([*pids, link.up["pid"]]), flush=True)
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_launcher_that_is_killed(place: Place, where: Path, number: signal.Signals) -> None:
    with launching(place, where) as (process, pids):
        process.send_signal(number)
        eventually(lambda: not any(map(place.alive, pids)), f"the end of {pids}", 15)


def test_a_second_agent_waits_for_the_first_to_end(place: Place, where: Path) -> None:
    first, second = Watched(place, where), Watched(place, where)
    try:
        first.start("one")
        first.up("one")
        second.start("one")
        time.sleep(0.5)
        assert second.said("one") == []
        first.launcher.close()
        second.up("one")
    finally:
        first.launcher.close()
        second.launcher.close()


def test_a_directory_that_cannot_be_used_is_named(place: Place, where: Path) -> None:
    launcher = place.launcher(Path("/proc/version/work"))
    launcher.start(Task(name="one", module="a_child", job={}, log_path=where / "one.log", threads=1))
    events: list[Said | Exited] = []
    eventually(lambda: events.extend(launcher.poll()) or events, "its end", WITHIN_S)
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
    watched.start("one", with_children=True)
    watched.start("stubborn", stubborn=True)
    pids = [pid for facts in watched.up("one", "stubborn") for pid in (facts["pid"], *facts["started"])]
    lab.blackhole(far.host, "on")
    for name in ("one", "stubborn"):
        assert watched.end(name).how().startswith("host h2 is lost: ")
    eventually(lambda: not any(map(far.alive, pids)), f"the end of {pids}", 15)
    lab.blackhole(far.host, "off")
    watched.start("one")
    eventually(lambda: len(watched.said("one")) == 2, "up again", WITHIN_S)
    watched.launcher.close()


def test_a_short_break_of_the_network_ends_nothing(lab: Lab, far: OverSSH, where: Path) -> None:
    watched = Watched(far, where)
    watched.start("one", echo=True)
    watched.up("one")
    lab.blackhole(far.host, "on")
    time.sleep(1.5)
    lab.blackhole(far.host, "off")
    watched.launcher.tell("one", {"n": 1})
    eventually(lambda: len(watched.said("one")) == 2, "an answer", WITHIN_S)
    assert watched.ends("one") == []
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
    watched.start("one", padding="a-secret")
    watched.up("one")
    assert any("zmqrl.cluster.agent" in line for line in lab.processes(far.host))
    shown = lab.run(far.host, ["sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | tr '\\0' ' '"]).stdout
    assert "a-secret" not in shown
    assert str(where) not in shown
    watched.launcher.close()
