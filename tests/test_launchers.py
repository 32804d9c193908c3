"""One life cycle for all launchers: what is started is told of, what ends is told of, and nothing is left behind."""

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
from rig import eventually, is_alive

from zmqrl.cluster.agents import Agents
from zmqrl.cluster.deployment import local_launcher
from zmqrl.cluster.launcher import Exited, Said, Task

WITHIN_S = 30.0
TESTS = Path(__file__).parent


class Watched:
    """A launcher, and all that it told."""

    def __init__(self, launcher: Agents, where: Path) -> None:
        self.launcher, self.where = launcher, where
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


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    launcher = local_launcher(tmp_path / "work")
    yield Watched(launcher, tmp_path)
    launcher.close()


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
    watched.start("one", print=["A.L.E.\n", "[1, 2]\n", "{broken\n"], exit=0)
    watched.end("one")
    assert watched.log("one").splitlines() == ["A.L.E.", "[1, 2]", "{broken"]
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
    os.kill(facts["pid"], signal.SIGKILL)
    assert watched.end("one").status == -signal.SIGKILL
    watched.start("one")
    eventually(lambda: len(watched.said("one")) == 2, "up again", WITHIN_S)


def test_what_a_process_started_in_its_session_ends_with_it(watched: Watched) -> None:
    watched.start("one", with_children=True)
    (facts,) = watched.up("one")
    os.kill(facts["pid"], signal.SIGKILL)
    watched.end("one")
    eventually(lambda: not is_alive(facts["started"][0]), "its child ends", WITHIN_S)


def test_stopping_ends_the_willing_and_the_stubborn_and_leaves_the_others(watched: Watched) -> None:
    watched.start("willing")
    watched.start("stubborn", stubborn=True)
    watched.start("other")
    watched.up("willing", "stubborn", "other")
    watched.launcher.stop(["willing", "stubborn"], grace_s=0.1)
    assert watched.end("willing").status == 0
    assert watched.end("stubborn").status == -signal.SIGKILL
    assert watched.launcher.names() == ["other"]


def test_closing_ends_everything_even_what_left_its_session(watched: Watched) -> None:
    watched.start("one", with_children=True)
    watched.start("stubborn", stubborn=True)
    facts = watched.up("one", "stubborn")
    watched.launcher.close()
    assert watched.launcher.names() == []
    assert not any(map(is_alive, [*(each["pid"] for each in facts), *facts[0]["started"]]))


def test_an_agent_that_is_killed_takes_its_processes_with_it_and_is_started_anew(watched: Watched) -> None:
    watched.start("one")
    (facts,) = watched.up("one")
    (link,) = watched.launcher.links.values()
    assert link.up is not None
    os.kill(link.up["pid"], signal.SIGKILL)
    end = watched.end("one")
    assert end.how().startswith(f"host {link.host} is lost: ")
    eventually(lambda: not is_alive(facts["pid"]), "the end of its process", WITHIN_S)
    watched.start("one")
    eventually(lambda: len(watched.said("one")) == 2, "up again", WITHIN_S)


LAUNCHING = """
import json, sys, time
from pathlib import Path
from zmqrl.cluster.launcher import Said, Task
from zmqrl.cluster.deployment import local_launcher
where = Path(sys.argv[1])
launcher = local_launcher(where)
for name, job in (("one", {"with_children": True}), ("stubborn", {"stubborn": True})):
    launcher.start(Task(name=name, module="a_child", job=job, log_path=where / f"{name}.log", threads=1))
pids = []
while True:
    for event in launcher.poll():
        if isinstance(event, Said):
            pids += [event.facts["pid"], *event.facts["started"]]
    if len(pids) == 4:
        print(json.dumps([*pids, *(link.up["pid"] for link in launcher.links.values())]), flush=True)
        time.sleep(600)
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_launcher_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", LAUNCHING, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as launching:
        assert launching.stdout is not None
        pids = json.loads(launching.stdout.readline())
        launching.send_signal(number)
    eventually(lambda: not any(map(is_alive, pids)), f"the end of {pids}", 15)


def test_a_second_agent_waits_for_the_first_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    first, second = (Watched(local_launcher(tmp_path / "work"), tmp_path / name) for name in ("first", "second"))
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


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    watched = Watched(local_launcher(tmp_path / "file" / "work"), tmp_path)
    watched.start("one")
    assert f"cannot use {tmp_path}/file/work: Not a directory" in watched.end("one").how()
    watched.launcher.close()
