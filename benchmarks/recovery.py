"""Measure how long a run needs to recover from a failure.

    python benchmarks/recovery.py [--rounds 3] [--root] [--output benchmarks/results/recovery]
        [--page docs/reliability.md]

Each case trains CartPole with two shards on this machine, and causes a real failure. The time runs from just before the
failure until every shard has made two more versions. The first of these versions may already have been in progress. If
the run goes back to a checkpoint, only versions after this return count. ``--root`` adds the cases that must be root: a
full disk, and hosts of a network lab, which run the workers. Writes ``results.json`` into the directory, and the table
into the page.
"""

import argparse
import contextlib
import json
import os
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
from typing import Any, TypeAlias, TypeVar

import marked
from bench_lab import Lab, begin, directory_on, lab, launched

from zmqrl.ps.shard import store

ROOT = Path(__file__).parents[1]
SHARDS = 2
WITHIN_S = 120.0
LINE_BYTES = 300  # longer than any line of a history in these runs
SETTLED = 50  # versions after which a run counts as settled, if every worker contributes to them
FULL_S = 10.0  # for this long, the disk is full
CUT_OFF_S = 20.0  # for this long, a host is cut off: longer than the lease
DISK_MB = 64
FREED = f"a shard's disk was full for {FULL_S:g} s: from free space to new versions"
INTACT = "the supervisor was killed: from --resume to new versions"
DAMAGED = "the supervisor was killed, and a shard's newest state is damaged: from --resume to new versions"
HOSTS = """
[[host]]
name = "localhost"
shards = 2
workers = 0
[[host]]
name = "h[1-{count}]"
workers = 1
"""
QUICKLY = ["--ppo.rollout-steps", "32", "--checkpoint.every-minutes", "0.1"]

T = TypeVar("T")
Made: TypeAlias = tuple[int, int]
"""Generation and version."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run in its own process.

    ``shards`` is the directory where its shards write their histories. In a run on hosts, ``path`` has only copies,
    which the launcher fetches every few seconds.
    """

    process: "subprocess.Popen[bytes]"
    path: Path
    shards: Path

    def made(self, last: int = 1) -> Made:
        """The newest version that every shard has made, or with ``last`` = 2 the one before it. (0, 0) if there is no
        such version.
        """
        found = []
        for shard in range(SHARDS):
            with contextlib.suppress(OSError, ValueError, IndexError):
                line = self.newest(shard, last)[-last]
                found.append((line["generation"], line["version"]))
        return min(found) if len(found) == SHARDS else (0, 0)

    def newest(self, shard: int, lines: int) -> list[dict[str, Any]]:
        """About ``lines`` of the newest lines in a shard's history. Reads only the end of the file."""
        with (self.shards / f"history/shard-{shard}.jsonl").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LINE_BYTES * (lines + 1)))
            whole = file.read().rpartition(b"\n")[0].split(b"\n")
        return [json.loads(line) for line in whole[1 if size > LINE_BYTES * (lines + 1) else 0 :]]

    def pid(self, name: str) -> int:
        """The process id of ``worker-0``, ``shard-0`` and so on, on this machine. Waits while the process restarts."""
        role, _, number = name.partition("-")
        key = "rank" if role == "worker" else role

        def known() -> int | None:
            (pid,) = [each["pid"] for each in self.cluster()[f"{role}s"] if each[key] == int(number)]
            return pid if pid is not None and is_alive(pid) else None

        return wait_until(known, name)  # a backup hides that a process restarts

    def cluster(self) -> dict[str, Any]:
        """The contents of ``cluster.json``."""
        found: dict[str, Any] = json.loads((self.path / "cluster.json").read_text(encoding="utf-8"))
        return found

    def recovered_s(self, since: float, before: Made) -> float:
        """Seconds from ``since`` until every shard has made two versions after ``before``."""
        wait_until(lambda: self.made(2) > before, "two more versions")
        return time.monotonic() - since

    def settle(self) -> None:
        """Wait until every worker contributes again."""
        wait_until(lambda: self.made() > (0, 0), "versions")
        generation, version = self.made()
        ranks = {each["rank"] for each in self.cluster()["workers"]}
        wait_until(lambda: self.made() >= (generation, version + SETTLED), "versions")
        wait_until(
            lambda: ranks <= {rank for line in self.newest(0, SETTLED)[-SETTLED:] for rank in line["ranks"]},
            "all workers",
            every_s=0.2,
        )


def wait_until(condition: Callable[[], T | None], what: str, *, every_s: float = 0.005) -> T:
    """Wait for ``condition``. Returns its result. Raises RuntimeError if this takes too long."""
    deadline = time.monotonic() + WITHIN_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {WITHIN_S:g} s: {what}")
        time.sleep(every_s)
    return found


@contextlib.contextmanager
def training(path: Path, *options: str) -> Iterator[Run]:
    """Train until the end of the block."""
    command = [sys.executable, "-m", "zmqrl", "train", "cartpole", *options, "--shards", str(SHARDS), *QUICKLY]
    command += ["--run-dir", str(path)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        try:
            yield Run(process, path, path)
        finally:
            process.kill()


# failures


def kill(name: str) -> Callable[[Run], float]:
    """Kill a process with SIGKILL."""

    def measure(run: Run) -> float:
        pid = run.pid(name)
        before, since = run.made(), time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return run.recovered_s(since, before)

    return measure


def stop(name: str) -> Callable[[Run], float]:
    """Stop a process with SIGSTOP, as a debugger or a frozen machine would. Continue the process after the
    measurement.
    """

    def measure(run: Run) -> float:
        pid, before, since = run.pid(name), run.made(), time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        try:
            return run.recovered_s(since, before)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return measure


def lose_state(run: Run) -> float:
    """Delete the state of a shard and kill the shard, so that all shards go back to a checkpoint."""
    before, since = run.made(), time.monotonic()
    (run.path / "state/shard-0.slots").unlink()
    os.kill(run.pid("shard-0"), signal.SIGKILL)
    return run.recovered_s(since, (before[0] + 1, 0))


def damage_state(run: Run) -> float:
    """Damage the newest state of a shard and kill the shard, so that all shards go back to a checkpoint."""
    pid, before, since = run.pid("shard-0"), run.made(), time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    damage_newest(run.path / "state/shard-0.slots")
    os.kill(pid, signal.SIGKILL)
    return run.recovered_s(since, (before[0] + 1, 0))


def damage_newest(path: Path) -> None:
    """Flip a bit in the weights of the newest version of a shard, in its file of slots."""
    with path.open("r+b") as file:
        content = file.read()
        slots = store.FILE_HEADER.unpack_from(content)[1]
        size = (len(content) - store.PAGE) // slots
        committed = [
            (store.SLOT_HEADER.unpack_from(content, start + store.MARK_BYTES + store.CRC.size)[1], start)
            for start in range(store.PAGE, len(content), size)
            if content.startswith(store.MARK, start)
        ]
        weights = max(committed)[1] + store.HEADER_BYTES
        file.seek(weights)
        file.write(bytes([content[weights] ^ 1]))


def fill_disk(run: Run) -> float:
    """Fill the disk of the run, and free the space later."""
    ballast = run.path.parent / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    time.sleep(FULL_S)
    before, since = run.made(), time.monotonic()
    ballast.unlink()
    return run.recovered_s(since, before)


def cut_off(where: Lab) -> Callable[[Run], float]:
    """Cut off a host until its lease is over. The time runs from the repair."""

    def measure(run: Run) -> float:
        where("blackhole", "h2", "on")
        time.sleep(CUT_OFF_S)
        before, since = run.made(), time.monotonic()
        where("blackhole", "h2", "off")
        return run.recovered_s(since, before)

    return measure


def cut_off_for_good(where: Lab) -> Callable[[Run], float]:
    """Cut off a host. Repair it after the measurement."""

    def measure(run: Run) -> float:
        since = time.monotonic()
        where("blackhole", "h2", "on")
        before = run.made()  # not earlier: until now, the run has made versions
        try:
            return run.recovered_s(since, before)
        finally:
            time.sleep(CUT_OFF_S)  # the run also loses the host
            where("blackhole", "h2", "off")

    return measure


def kill_all_on_host(where: Lab) -> Callable[[Run], float]:
    """Kill all processes of the run on a host, as a restart of the host does."""

    def measure(run: Run) -> float:
        pids = " ".join(str(each["pid"]) for each in json.loads(where("ps", "h2", "--json")))
        since = time.monotonic()
        where("exec", "h2", "sh", "-c", f"kill -9 {pids}; true")
        before = run.made()  # not earlier: until now, the run has made versions
        return run.recovered_s(since, before)

    return measure


@dataclass(frozen=True, slots=True)
class Case:
    """A failure that is caused and measured ``rounds`` times. None: as often as ``--rounds`` says."""

    name: str
    measure: Callable[[Run], float]
    rounds: int | None = None


# A process that has died several times is restarted after a pause, so the processes that hang come first.
WITHOUT_BACKUP = (
    Case("a worker hangs (SIGSTOP)", stop("worker-1"), rounds=1),
    Case("a shard hangs (SIGSTOP)", stop("shard-1"), rounds=1),
    Case("a worker is killed", kill("worker-1")),
    Case("a shard is killed", kill("shard-1")),
    Case("a shard is killed and has lost its state: back to the newest checkpoint", lose_state),
    Case("a shard is killed, and its newest state is damaged: back to the newest checkpoint", damage_state),
)
WITH_BACKUP = (
    Case("a worker is killed, with one backup", kill("worker-1")),
    Case("a worker hangs (SIGSTOP), with one backup", stop("worker-1")),
)


def failures(options: Sequence[str], cases: Sequence[Case], rounds: int) -> Iterator[tuple[str, float]]:
    """Cause the failures of ``cases`` in one run."""
    with (
        tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch,
        training(Path(scratch, "run"), *options) as run,
    ):
        yield from caused(run, cases, rounds)


def caused(run: Run, cases: Sequence[Case], rounds: int) -> Iterator[tuple[str, float]]:
    """Cause the failures of ``cases`` in ``run``."""
    wait_until((run.path / "cluster.json").exists, "the processes")
    for case in cases:
        for _ in range(case.rounds or rounds):
            run.settle()
            yield case.name, case.measure(run)


def full_disk(rounds: int) -> Iterator[tuple[str, float]]:
    """Fill the disk of a run, which is a small disk of its own."""
    with tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", scratch], check=True)
        try:
            with training(Path(scratch, "run"), "--workers", "2") as run:
                yield from caused(run, [Case(FREED, fill_disk)], rounds)
        finally:
            subprocess.run(["umount", "--lazy", scratch], check=True)


def lost_hosts(rounds: int) -> Iterator[tuple[str, float]]:
    """Cut off and stop a host with a worker, without and with a backup worker."""
    with lab(3) as where:
        without = (
            Case("all processes on a host with a worker are killed", kill_all_on_host(where)),
            Case(f"a host with a worker was cut off for {CUT_OFF_S:g} s: from the repair", cut_off(where)),
        )
        with_backup = (Case("a host with a worker is cut off, with one backup", cut_off_for_good(where)),)
        for count, backups, cases in ((2, "0", without), (3, "1", with_backup)):
            options = ["cartpole", "--workers", "2", "--backups", backups, "--shards", str(SHARDS), *QUICKLY]
            with launched(where, HOSTS.format(count=count), options) as begun:
                on_this_machine = directory_on(socket.gethostname(), begun.path)
                yield from caused(Run(begun.process, begun.path, on_this_machine), cases, rounds)


def endings(rounds: int) -> Iterator[tuple[str, float]]:
    """Kill and interrupt the supervisor, and resume the run each time."""
    with tempfile.TemporaryDirectory(prefix="zmqrl-benchmark-") as scratch:
        path, resume = Path(scratch, "run"), list[str]()
        for case in ("", *[INTACT] * (rounds - 1), *[DAMAGED] * rounds):
            if case == DAMAGED:
                damage_newest(path / "state/shard-0.slots")
            since = time.monotonic()
            with training(path, "--workers", "2", *resume) as run:
                resume, before = ["--resume"], run.made()
                if case:
                    yield case, run.recovered_s(since, before)
                wait_until((path / "cluster.json").exists, "the processes")
                run.settle()
                yield "the supervisor is killed: no process is left", killed_with_all(run.process)
        since = time.monotonic()
        with training(path, "--workers", "2", "--resume") as run:
            before = run.made()
            yield INTACT, run.recovered_s(since, before)
            run.settle()
            since = time.monotonic()
            run.process.send_signal(signal.SIGINT)
            run.process.wait(WITHIN_S)
            yield "Ctrl-C: the end of the command, after a checkpoint", time.monotonic() - since


def killed_with_all(process: "subprocess.Popen[bytes]") -> float:
    """Kill a process. Returns the seconds until no process is left that it had started, or that these had started."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    pids = [process.pid]
    for pid in pids:
        pids += [child for child, parent in parents.items() if parent == pid]
    since = time.monotonic()
    process.kill()
    wait_until(lambda: not any(map(is_alive, pids)), "the end of all processes")
    return time.monotonic() - since


def is_alive(pid: int) -> bool:
    """Whether a process runs: it exists, and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def main() -> None:
    """Print each measurement, and write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    origin = begin(parser, arguments.output, arguments.page)
    seconds: dict[str, list[float]] = {}
    for measured in (
        failures(["--workers", "2"], WITHOUT_BACKUP, arguments.rounds),
        failures(["--workers", "2", "--backups", "1"], WITH_BACKUP, arguments.rounds),
        endings(arguments.rounds),
        *((full_disk(arguments.rounds), lost_hosts(arguments.rounds)) if arguments.root else ()),
    ):
        for name, took_s in measured:
            seconds.setdefault(name, []).append(took_s)
            print(f"{name}: {took_s:.2f} s", flush=True)
            write(seconds, arguments.output, arguments.page, origin)


def write(seconds: dict[str, list[float]], output: Path | None, page: Path | None, origin: dict[str, Any]) -> None:
    """Write the measurements so far."""
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        results = {"seconds": seconds, **origin}
        (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        marked.fill(page, "recovery", table(seconds))


def table(seconds: dict[str, list[float]]) -> str:
    """The table of the page: the median and the longest time of each case."""
    lines = ["| what happens | median | longest | runs |", "|---|---|---|---|"]
    for name, took_s in seconds.items():
        figures = f"{statistics.median(took_s):.1f} s | {max(took_s):.1f} s | {len(took_s)}"
        lines.append(f"| {name} | {figures} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
