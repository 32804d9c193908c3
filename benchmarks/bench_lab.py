"""What benchmarks share: their start, a network lab (docs/netlab.md), runs on its hosts or on this machine, and the
interval of a mean.
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import zmqrl
from zmqrl.commands.run.launch import directory_name
from zmqrl.observe.provenance import provenance
from zmqrl.results.bootstrap import FEWEST_TRAININGS, prediction_interval
from zmqrl.rundir import RunDirectory
from zmqrl.words import ended_how

T = TypeVar("T")

NETLAB = Path(__file__).parent.parent / "launch/netlab"
NAME, SUBNET = "bench", "10.79.0"
END_WITHIN_S = 120.0
START_WITHIN_S = 600.0
SLOWEST_STEPS_PER_S = 50.0  # a training that plays fewer agent steps per second hangs
CHECKOUT = Path(zmqrl.__file__).parents[1]
CODE = ("zmqrl", "launch", "benchmarks", "pyproject.toml", ":(exclude)benchmarks/results")
"""What a benchmark runs. It does not run results and documents, which an earlier benchmark may have changed."""


def begin(parser: argparse.ArgumentParser, *outputs: Path | None) -> dict[str, Any]:
    """Call this first in a benchmark. Returns the provenance of its results, and the load of the machine: the code and
    the load can change later. From now on, the processes of the benchmark also end when it gets SIGTERM.

    The commit ends with ``+`` only if code differs from it. Exits if it does, and one of ``outputs`` is in this
    checkout.
    """
    origin: dict[str, Any] = {"load_before": os.getloadavg()[0], **provenance()}
    if str(origin["commit"]).endswith("+"):
        unchanged = ["git", "-C", str(CHECKOUT), "diff", "--quiet", "HEAD", "--", *CODE]
        if subprocess.run(unchanged, check=False, timeout=60).returncode == 0:
            origin["commit"] = origin["commit"][:-1]
        elif any(output.resolve().is_relative_to(CHECKOUT) for output in outputs if output is not None):
            parser.error("the code has changes that no commit has: commit them, or write outside of this checkout")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return origin


@dataclass(frozen=True)
class Lab:
    """A lab that is up, with hosts h1, h2 and so on."""

    directory: Path

    @property
    def ssh_config(self) -> Path:
        """The SSH configuration file for the hosts."""
        return self.directory / "ssh_config"

    def __call__(self, *arguments: str) -> str:
        """Run a netlab command. Returns its output."""
        where = ("--dir", str(self.directory), "--name", NAME)
        command = [sys.executable, "-B", str(NETLAB), arguments[0], *where, *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            sys.exit(done.stderr.strip())
        return done.stdout

    def bytes_by_host(self) -> dict[str, tuple[int, int]]:
        """Bytes that each host has sent and received since that host came up."""
        command = ["ip", "-netns", NAME, "-statistics", "-json", "link", "show"]
        ports = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=10).stdout)
        # These are the counters of the switch. The bytes that the switch receives on a port are those that the host
        # sends.
        return {
            port["ifname"]: (port["stats64"]["rx"]["bytes"], port["stats64"]["tx"]["bytes"])
            for port in ports
            if port["ifname"].startswith("h")
        }


@contextlib.contextmanager
def lab(hosts: int) -> Iterator[Lab]:
    """Make a lab with ``hosts`` hosts and take it down afterwards. Ends the benchmark if either step fails."""
    with tempfile.TemporaryDirectory(prefix="zmqrl-bench-lab-") as scratch:
        made = Lab(Path(scratch) / "lab")
        try:
            made("up", str(hosts), "--subnet", SUBNET)
            yield made
        finally:
            made("down")


def directory_on(host: str, path: Path) -> Path:
    """The directory of the run ``path`` on a host of a lab or of this machine, where the processes write their
    files.
    """
    return Path(f"/var/tmp/zmqrl-{os.getuid()}", host, directory_name(RunDirectory(path), socket.gethostname()))


class Run:
    """A run that a benchmark has started. ``path`` is its run directory."""

    def __init__(self, process: "subprocess.Popen[bytes]", path: Path) -> None:
        self.process, self.path, self.begun_at = process, path, time.time()

    def rows(self) -> list[dict[str, Any]]:
        """The complete lines of ``metrics.jsonl`` so far."""
        try:
            return [json.loads(line) for line in (self.path / "metrics.jsonl").read_bytes().split(b"\n")[:-1]]
        except FileNotFoundError:
            return []

    def row_after(self, wall_s: float) -> dict[str, Any] | None:
        """The newest row of metrics, or None if the run has not yet trained for ``wall_s`` seconds."""
        rows = self.rows()
        return rows[-1] if rows and rows[-1]["wall_s"] >= wall_s else None

    def wait_for(self, look: Callable[[], T | None], what: str, within_s: float, *, every_s: float = 0.02) -> T:
        """The first true result of ``look``. After ``within_s``, end the benchmark with the output of the run."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := look():
                return found
            time.sleep(every_s)
        said = self.path.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
        sys.exit(f"no {what} within {within_s:g} s; the run printed:\n{said}")


def train(options: Sequence[str], directory: Path, within_s: float, **environment: str) -> None:
    """Train once, without output. Exits if the command fails, or does not end within START_WITHIN_S + ``within_s``."""
    train_with([sys.executable, "-m", "zmqrl", "train", *options, "--run-dir", str(directory)], within_s, **environment)


def train_with(command: Sequence[str | Path], within_s: float, **environment: str) -> None:
    """Train with a command, as :func:`train` does."""
    quiet, said = subprocess.DEVNULL, shlex.join(map(str, command))
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, env=os.environ | environment) as process:
        try:
            status = process.wait(START_WITHIN_S + within_s)
        except subprocess.TimeoutExpired:
            sys.exit(f"not over within {START_WITHIN_S + within_s:g} s: {said}")
        finally:
            end(process)
    if status:
        sys.exit(f"{ended_how(status)}: {said}")


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process with Ctrl-C. Kill it if it does not end."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        print(f"killed, because it did not end within {END_WITHIN_S:g} s: {process.args!r}", file=sys.stderr)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(command: Sequence[str], path: Path) -> Iterator[Run]:
    """Start a command of zmqrl with the run directory ``path``, and end it with Ctrl-C after the block. If it does not
    end, it is killed, and the benchmark continues.
    """
    with path.with_suffix(".log").open("wb") as log:
        zmqrl = [sys.executable, "-m", "zmqrl", *command, "--run-dir", str(path)]
        process = subprocess.Popen(zmqrl, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield Run(process, path)
    finally:
        end(process)


@contextlib.contextmanager
def launched(where: Lab, hosts: str, options: Sequence[str]) -> Iterator[Run]:
    """Start a run on hosts of a lab, and end it with Ctrl-C after the block. ``hosts`` is a list such as h1,h2 or the
    text of a hosts file.
    """
    with tempfile.TemporaryDirectory(prefix="zmqrl-bench-run-") as scratch:
        if "[[host]]" in hosts:
            (Path(scratch) / "hosts.toml").write_text(hosts, encoding="utf-8")
            hosts = str(Path(scratch) / "hosts.toml")
        reach = ["-H", hosts, "--ssh-config", str(where.ssh_config)]
        with running(["launch", *reach, *options], Path(scratch) / "run") as run:
            yield run


def trainings_interval(means: Sequence[float]) -> list[float]:
    """The 95 % interval of the mean of trainings with ``means``, as [low, high]: mean +- t s sqrt(1/n).

    For more than ten trainings, it is a little too long. Raises ValueError for fewer than ``FEWEST_TRAININGS``.
    """
    mean, narrower = statistics.fmean(means), math.sqrt(len(means) + 1)
    return [mean + (bound - mean) / narrower for bound in prediction_interval(means)]


def interval_text(means: Sequence[float]) -> str:
    """The interval of :func:`trainings_interval` with one digit, or ``-`` if there are too few means."""
    if len(means) < FEWEST_TRAININGS:
        return "-"
    low, high = trainings_interval(means)
    return f"{low:.1f} to {high:.1f}"
