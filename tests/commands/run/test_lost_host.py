"""What a run prints about a host that it cannot reach, and after its own launcher was stopped for a while."""

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.run_rig import QUICKLY, Run, started

from zmqrl.commands.inspect import status

pytestmark = [pytest.mark.processes, pytest.mark.slow]

# Runs the daemon here instead of on a host, unless the host is down.
SSH = """#!/bin/sh
if [ -e {place}/down ]; then
    echo "ssh: connect to host h1 port 22: Connection timed out" >&2
    exit 255
fi
echo $$ > {place}/pid
for last; do :; done
exec sh -c "$last"
"""


class Host:
    """A host h1 that can be switched off. This machine acts as the host."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "ssh").write_text(SSH.format(place=place))
        (place / "ssh").chmod(0o755)

    def switch_off(self) -> None:
        (self.place / "down").touch()
        os.kill(int((self.place / "pid").read_text()), signal.SIGKILL)

    def switch_on(self) -> None:
        (self.place / "down").unlink()


@contextlib.contextmanager
def launching(host: Host, path: Path, *options: str) -> Iterator[Run]:
    """Run ``zmqrl launch`` on ``host``. Leaving the block kills the launcher: the processes on the host then end."""
    where = ("-H", "h1", "--address", "h1=127.0.0.1", "--no-preflight")
    command = [sys.executable, "-m", "zmqrl", "launch", *where, "cartpole", "--run-dir", str(path), *QUICKLY, *options]
    with started(command, path, {"PATH": f"{host.place}:{os.environ['PATH']}"}) as run:
        yield run


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "h1").mkdir()
    return Host(tmp_path / "h1")


def test_a_host_that_cannot_be_reached_is_reported_as_unreachable_until_it_is_back(host: Host, tmp_path: Path) -> None:
    with launching(host, tmp_path / "run") as run:
        run.eventually(lambda: "agent steps/s" in run.said(), "figures")
        host.switch_off()
        run.wait_to_say("host h1 is lost, with shard-0,shard-1,worker-0,worker-1: ")
        run.wait_to_say("host h1 has been unreachable for 1")
        found = status.status(run.files.path)
        assert found["state"] == "running"
        assert found["unreachable_s"]["h1"] > 5
        assert [(each["pid"], each["state"]) for each in found["processes"]] == [(None, "unreachable")] * 4
        shown = status._report(found)
        assert "h1 has been unreachable for " in shown
        assert "h1 worker-1 (its host has been unreachable for " in shown
        host.switch_on()
        run.wait_to_say("host h1 is back after ")
        run.wait_to_say("shard 1 is back at version")
        run.interrupt(signal.SIGTERM)
    assert "died" not in run.said()
    assert "s, next try in " in run.said()
    assert "Connection timed out" in run.said()
    run.files.assert_history_exact(run.files.summary()["updates"])


def test_a_launcher_that_was_stopped_says_so_and_names_it_as_the_reason_of_lost_hosts(
    host: Host, tmp_path: Path
) -> None:
    with launching(host, tmp_path / "run", "--lease-s", "3") as run:
        run.eventually(lambda: "agent steps/s" in run.said(), "figures")
        run.signal(signal.SIGSTOP)
        time.sleep(8.0)
        found = status.status(run.files.path)
        assert found["state"] == found["supervisor"]["state"] == "stopped"
        assert f"(process {run.process.pid}, stopped by a signal): kill -CONT {run.process.pid}" in status._report(
            found
        )
        run.signal(signal.SIGCONT)
        run.wait_to_say("host h1 is back after ")
        run.interrupt(signal.SIGTERM)
    said = run.said()
    told, reason = re.findall(r"(.*)this launcher was stopped for (?:8|9|1\d) s\n", said)
    assert (told, reason) == ("", "host h1 is lost, with shard-0,shard-1,worker-0,worker-1: ")
    assert "died" not in said
