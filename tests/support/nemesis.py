"""Hunts for faults in real runs: kills and stops processes, cuts connections, fills disks and damages files.

A seed decides what happens to a run, and about when. However often the run is interrupted and resumed, it must end with
the weights of a run without faults, bit by bit. From a shell:

    PYTHONPATH=tests python -m support.nemesis --minutes 30     # many runs
    PYTHONPATH=tests python -m support.nemesis --replay 17      # the run of one seed again
"""

import argparse
import contextlib
import heapq
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from support.commands import ran
from support.network import Proxy, free_ports
from support.paths import ROOT
from support.rig import commands_with, damage_newest_slot, ending, eventually
from support.run_rig import RunFiles

from zmqrl.commands.inspect.check_history import check
from zmqrl.ps.wire.sockets import SOCKET_ROLES

UPDATES = 240
TRAINING = (
    *("train", "cartpole", "--env", "support.still_env:Still-v0", "--loss", "support.still_env:loss", "--consistent"),
    *("--workers", "2", "--ppo.rollout-steps", "16", "--straggle", "0:0.02", "--checkpoint.every-minutes", "0.03"),
    *("--updates", str(UPDATES)),
)
DETOURED = 1  # the rank of the worker whose connections pass through proxies
STUCK_S = 180.0
GONE_WITHIN_S = 30.0
TRIES = 20  # to find a fault whose process, connection or file is there
ENOUGH = 20  # after this many runs, every phase, fault and effect must have occurred

# Raised by a fault if its process or its file is not there yet, or no longer.
NOT_THERE = (ProcessLookupError, FileNotFoundError, ValueError, KeyError, IndexError)

Tell = Callable[[str], object]


class Attack:
    """One run under faults. ``tell`` gets a sentence about everything that happens."""

    def __init__(self, seed: int, directory: Path, tell: Tell) -> None:
        self.seed, self.directory, self._print = seed, directory, tell
        self.chance = random.Random(seed)
        self.path = directory / "run"
        self.files = RunFiles(self.path)
        self.began_at = time.monotonic()
        self.marker = f"SOAK={seed}-{os.getpid()}"
        self.clock_file = directory / "clock"
        self.shards = self.chance.choice([1, 2, 2, 3])
        self.bursts = [self.chance.choice(list(PHASES)) for _ in range(self.chance.randint(2, 6))]
        self.numbers = itertools.count()
        self.to_undo: list[tuple[float, int, Callable[[], None]]] = []  # when, a number, how
        self.damaged = False  # whether a fault has damaged or removed state that no session has loaded since
        self.may_fail = False  # whether a fault of this session can end it before its last version
        self.seen: Counter[str] = Counter()  # phases that came, faults that found their victim, and their effects

    def tell(self, words: str) -> None:
        self._print(f"seed {self.seed} {time.monotonic() - self.began_at:6.1f} s  {words}")

    def run(self, expected: str) -> None:
        """Train under attack until the run has ended, then judge it. ``expected``: the SHA-256 of the right weights."""
        ports = free_ports(3 * self.shards)
        of_ports = itertools.product(range(self.shards), SOCKET_ROLES)
        places = {f"tcp://127.0.0.1:{port}": place for port, place in zip(ports, of_ports, strict=True)}
        with contextlib.ExitStack() as stack:
            self.proxies = {place: Proxy(at) for at, place in places.items()}
            for proxy in self.proxies.values():
                stack.callback(proxy.close)
            detours = {at: self.proxies[place].endpoint for at, place in places.items()}
            options = ("--shards", str(self.shards), "--port-range", f"{ports[0]}-{ports[-1]}")
            self.environment = environment(
                self.marker, CLOCK_FILE=str(self.clock_file), DETOUR_RANK=str(DETOURED), DETOURS=json.dumps(detours)
            )
            stack.callback(self._undo_all)
            self.tell(f"{self.shards} shards; bursts of faults: {', '.join(self.bursts)}")
            for session in itertools.count():
                assert session < 20, "the run was resumed twenty times"
                if self._session(session, ("--resume",) if (self.path / "config.json").exists() else (), options):
                    break
            for proxy in self.proxies.values():
                assert proxy.overheard, f"worker {DETOURED} has made a detour around {proxy.endpoint}"
                self.seen += proxy.hit
        self._judge(expected)

    def _session(self, number: int, resume: tuple[str, ...], options: tuple[str, ...]) -> bool:
        """Run until the process ends. Returns whether the run is complete."""
        self.may_fail = False
        damaged_before, self.damaged = self.damaged, False
        self.output = self.directory / f"session-{number}.out"
        self.output.touch()
        self.clock_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "support.detoured", *TRAINING, *options, "--run-dir", str(self.path), *resume]
        self.tell(f"session {number} starts")
        with (
            ending(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    cwd=ROOT,
                )
            ) as self.process,
        ):
            # A full disk must not hide what the supervisor prints.
            copying = threading.Thread(target=self._copy_output, args=(self.process,), daemon=True)
            copying.start()
            self._attack()
            status = self.process.wait()
            self._undo_all()
            copying.join(GONE_WITHIN_S)
        self.tell(f"session {number} ended with status {status} at version {self.files.version(self.shards)}")
        eventually(
            lambda: not commands_with(self.marker), f"the end of processes {commands_with(self.marker)}", GONE_WITHIN_S
        )
        said = self._said()
        assert "Traceback" not in said, said
        assert (crashed := crashes(self.path / "logs")) == [], "\n".join(crashed)
        if "resuming from version" not in said:  # the session did not get so far
            self.damaged |= damaged_before
        self.seen += {
            "failed write": bool(FAILED_WRITE.search(said)),
            "full disk": "has a full disk" in said,
            "rollback": "go back to" in said,
            "resume": bool(resume),
        }
        if status == 0 or f"has already reached {UPDATES}" in said:
            return True
        if (self.path / "left.json").exists() and f"remove {self.path}/left.json" in said:
            assert self.damaged, said
            self.tell("the state of the shards cannot become a checkpoint: resume from the last one")
            (self.path / "left.json").unlink()
        else:
            assert self.may_fail, f"a session that no fault should end has ended with status {status}:\n{said}"
        return False

    def _copy_output(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with self.output.open("wb", buffering=0) as file:
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                file.write(piece)

    def _attack(self) -> None:
        """Wait for the phase of each burst, and undo faults in time, until the process ends."""
        began_at, phase, ready = time.monotonic(), None, _never
        while self.process.poll() is None:
            if phase is None and self.bursts:
                phase = self.bursts.pop(0)
                ready = PHASES[phase](self)
            if phase is not None and ready():
                self.seen[phase] += 1
                for _ in range(self.chance.choice([1, 1, 2, 3])):
                    self._fault(phase)
                phase, began_at = None, time.monotonic()
            while self.to_undo and self.to_undo[0][0] <= time.monotonic():
                heapq.heappop(self.to_undo)[2]()
            assert time.monotonic() < began_at + STUCK_S, f"no end within {STUCK_S:g} s:\n{self._said()}"
            time.sleep(0.02)

    def _fault(self, phase: str) -> None:
        """Cause a fault whose victim exists now."""
        for _ in range(TRIES):
            fault = self.chance.choices(list(FAULTS), list(FAULTS.values()))[0]
            with contextlib.suppress(*NOT_THERE):
                what = fault(self)
                self.seen[fault.__name__] += 1
                return self.tell(f"{phase}: {what}")
        return self.tell(f"{phase}: nothing can fail yet")

    def _undo(self, within_s: float, how: Callable[[], None]) -> str:
        seconds = self.chance.uniform(0.1, within_s)
        heapq.heappush(self.to_undo, (time.monotonic() + seconds, next(self.numbers), how))
        return f"for {seconds:.1f} s"

    def _undo_all(self) -> None:
        while self.to_undo:
            heapq.heappop(self.to_undo)[2]()

    def _said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def _pid(self, role: str, number: int) -> int:
        pid = self.files.cluster()[f"{role}s"][number]["pid"]
        if pid is None:
            raise ProcessLookupError
        return int(pid)

    def _victim(self) -> tuple[str, int]:
        """A process of the run: its name and its id."""
        who = self.chance.choice(["worker", "worker", "shard", "shard", "supervisor", *PROGRAMS])
        if who == "supervisor":
            return who, self.process.pid
        if who in PROGRAMS:
            pids = [pid for pid, command in commands_with(self.marker).items() if PROGRAMS[who] in command]
            if not pids:
                raise ProcessLookupError
            return who, pids[0]
        number = self.chance.randrange(2 if who == "worker" else self.shards)
        return f"{who} {number}", self._pid(who, number)

    def _writer(self) -> tuple[str, int]:
        """A process that writes files of the run: its name and its id."""
        shard = self.chance.randrange(-1, self.shards)
        return ("supervisor", self.process.pid) if shard < 0 else (f"shard {shard}", self._pid("shard", shard))

    def _proxy(self) -> tuple[str, Proxy]:
        shard, role = self.chance.choice(list(self.proxies))
        return f"{role} connection between worker {DETOURED} and shard {shard}", self.proxies[shard, role]

    # faults: each returns what it did

    def kill(self) -> str:
        name, pid = self._victim()
        self.may_fail |= not name.startswith(REPLACED)
        os.kill(pid, signal.SIGKILL)
        return f"kill {name}"

    def interrupt(self) -> str:
        number = self.chance.choice([signal.SIGINT, signal.SIGTERM])
        self.may_fail = True
        self.process.send_signal(number)
        return f"send {number.name} to the supervisor"

    def stop(self) -> str:
        """Stop a process, sometimes for longer than the supervisor or a guard waits for it."""
        name, pid = self._victim()
        self.may_fail = True
        os.kill(pid, signal.SIGSTOP)
        return f"stop {name} {self._undo(self.chance.choice([2.0, 6.0, 6.0, 50.0]), lambda: _continue(pid))}"

    def reset(self) -> str:
        name, proxy = self._proxy()
        if not proxy.pairs:
            raise ProcessLookupError
        proxy.cut(heal=True)
        return f"reset the {name}"

    def partition(self) -> str:
        shard = self.chance.randrange(self.shards)
        proxies = [proxy for (number, _), proxy in self.proxies.items() if number == shard]
        for proxy in proxies:
            proxy.cut()
        return f"cut worker {DETOURED} off from shard {shard} {self._undo(6.0, lambda: _heal(*proxies))}"

    def blackhole(self) -> str:
        name, proxy = self._proxy()
        proxy.flowing.clear()
        return f"hold all data of the {name} {self._undo(6.0, lambda: _heal(proxy))}"

    def cut_in_mid_frame(self) -> str:
        name, proxy = self._proxy()
        proxy.cut_after_bytes = self.chance.randrange(1, 20_000)
        return f"cut the {name} after {proxy.cut_after_bytes} bytes"

    def slow_down(self) -> str:
        name, proxy = self._proxy()
        proxy.delay_s = 0.05
        return f"slow down the {name} {self._undo(4.0, lambda: setattr(proxy, 'delay_s', 0.0))}"

    def fill_the_disk(self) -> str:
        """Make every write to a file fail or, for a shard, the next line of its history end in the middle."""
        name, pid = self._writer()
        self.may_fail = True
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        limit = 1024
        if name.startswith("shard"):
            history = self.path / "history" / f"shard-{name.split()[1]}.jsonl"
            limit = history.stat().st_size + self.chance.randint(1, 100)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, hard))

        def free() -> None:
            for each in (pid, *commands_with(self.marker)):  # processes that it has started meanwhile have its limit
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(each, resource.RLIMIT_FSIZE, (hard, hard))  # the limit may have been low already

        return f"fill the disk of {name} {self._undo(4.0, free)}"

    def step_the_clock(self) -> str:
        seconds = self.chance.choice([-3600, -5, -1, 1, 5, 3600])
        self.clock_file.write_text(str(seconds), encoding="utf-8")
        return f"set the clock to {seconds} s from now"

    def damage_state(self) -> str:
        shard = self.chance.randrange(self.shards)
        with self._stopped_shard(shard):
            version = damage_newest_slot(self.path / "state" / f"shard-{shard}.slots")
            self.damaged = self.may_fail = True
        return f"kill shard {shard} and damage version {version} of its state"

    def lose_state(self) -> str:
        shard = self.chance.randrange(self.shards)
        with self._stopped_shard(shard):
            (self.path / "state" / f"shard-{shard}.slots").unlink()
            self.damaged = self.may_fail = True
        return f"kill shard {shard} and remove its state"

    def tear_history(self) -> str:
        shard = self.chance.randrange(self.shards)
        with self._stopped_shard(shard), (self.path / "history" / f"shard-{shard}.jsonl").open("ab") as history:
            history.write(b'{"version": 7, "vie')
        return f"kill shard {shard} while it writes its history"

    @contextlib.contextmanager
    def _stopped_shard(self, shard: int) -> Iterator[None]:
        """Stop a shard during the block, and kill this shard at the end."""
        pid = self._pid("shard", shard)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGKILL)

    # the end

    def _judge(self, expected: str) -> None:
        assert check(self.path)["violations"] == []
        last = self.files.newest()
        assert last.version == self.files.summary()["updates"] == UPDATES
        assert last.params_sha256() == expected, "the weights differ from those of a run without faults"
        self.tell("every rule was kept, and the weights are those of a run without faults")


FAULTS: Mapping[Callable[[Attack], str], int] = {
    Attack.kill: 8,
    Attack.stop: 4,
    Attack.interrupt: 1,
    Attack.reset: 2,
    Attack.partition: 2,
    Attack.blackhole: 2,
    Attack.cut_in_mid_frame: 2,
    Attack.slow_down: 1,
    Attack.fill_the_disk: 3,
    Attack.step_the_clock: 1,
    Attack.damage_state: 2,
    Attack.lose_state: 1,
    Attack.tear_history: 1,
}


# By name: a part of the command of a program on the host.
PROGRAMS = {
    "host daemon": "-m zmqrl.hostd.daemon",
    "guard of the host daemon": "hostd/guard.py",
    "fork server": "zmqrl.hostd.fork_server",
}

# Processes that a session replaces whenever they die.
REPLACED = ("worker", "shard", "fork server")

# What the faults do, apart from the death of processes. These effects are observed, not inferred from the faults.
EFFECTS = (
    *("connections reset", "connections refused", "pieces held", "pieces delayed", "pieces cut in half"),
    *("failed write", "full disk", "rollback", "resume"),
)

FAILED_WRITE = re.compile("File too large|No space left on device|disk is full")
# A traceback in a log, and the line with its exception. A full disk can cut a traceback before this line.
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)*([^\s\d].*)(?=\n)")


def _never() -> bool:
    return False


def _after_seconds(most: float) -> Callable[[Attack], Callable[[], bool]]:
    def phase(attack: Attack) -> Callable[[], bool]:
        at = time.monotonic() + attack.chance.uniform(0.0, most)
        return lambda: time.monotonic() >= at

    return phase


def _after_versions(attack: Attack) -> Callable[[], bool]:
    version = attack.files.version(attack.shards) + attack.chance.randint(1, 60)
    return lambda: attack.files.version(attack.shards) >= version


def _after_words(words: str) -> Callable[[Attack], Callable[[], bool]]:
    def phase(attack: Attack) -> Callable[[], bool]:
        count = attack._said().count(words)
        return lambda: attack._said().count(words) > count

    return phase


def _while_rolling_back(attack: Attack) -> Callable[[], bool]:
    """Damage the state of a shard, then wait until the supervisor rolls back."""
    versions, rolling_back = _after_versions(attack), _after_words("go back to")(attack)
    begun = False

    def ready() -> bool:
        nonlocal begun
        if not begun and versions():
            begun = True
            with contextlib.suppress(*NOT_THERE):
                attack.tell(attack.damage_state())
        return begun and rolling_back()

    return ready


# For each phase of a run: a function that returns whether the phase has come.
PHASES: Mapping[str, Callable[[Attack], Callable[[], bool]]] = {
    "at the start or a resume": _after_seconds(8.0),
    "soon": _after_seconds(1.0),
    "in training": _after_versions,
    "at a checkpoint": _after_words("checkpoint of version"),
    "in a rollback": _while_rolling_back,
    "at the end": _after_words("stopping ("),
}


def environment(marker: str, **more: str) -> dict[str, str]:
    """The environment of a run whose processes can be found by ``marker``."""
    name, _, value = marker.partition("=")
    path = [str(ROOT / "tests"), str(ROOT / "tests" / "support" / "stepped_clock"), str(ROOT)]
    paths = os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, name: value, **more}


def crashes(logs: Path) -> list[str]:
    """The tracebacks in the logs of a run, except those of failed writes. A process ends by itself with a sentence."""
    return [
        f"{path.name}: {found[0]}"
        for path in sorted(logs.glob("*.log"))
        for found in TRACEBACK.finditer(path.read_text(encoding="utf-8", errors="replace"))
        if not FAILED_WRITE.search(found[1])
    ]


def undisturbed(directory: Path) -> str:
    """The SHA-256 of the weights of a run without faults."""
    path = directory / "undisturbed"
    command = [sys.executable, "-m", "zmqrl", *TRAINING, "--run-dir", str(path)]
    ran(command, within_s=600, stdin=subprocess.DEVNULL, env=environment("SOAK=0"), cwd=ROOT)
    return str(RunFiles(path).summary()["params_sha256"])


def attack(seed: int, directory: Path, expected: str, tell: Tell) -> Counter[str]:
    """Make the run of one seed. Raises AssertionError, with the command that replays the seed.

    Returns how often each phase came, and how often each fault and each effect happened.
    """
    place = directory / f"seed-{seed}"
    place.mkdir(parents=True)
    attack = Attack(seed, place, tell)
    try:
        attack.run(expected)
    except BaseException:
        tell(f"seed {seed} failed; its files are in {place}; to replay it: {replay(seed)}")
        raise
    shutil.rmtree(place)
    return attack.seen


def soak(minutes: float, directory: Path, first: int, tell: Tell) -> int:
    """Attack runs with the seeds from ``first`` on, for a number of minutes. Returns the number of runs.

    Raises AssertionError if a phase, fault or effect never occurred in ``ENOUGH`` runs or more.
    """
    until = time.monotonic() + 60 * minutes
    expected, seen = undisturbed(directory), Counter[str]()
    for seed in itertools.count(first):
        if time.monotonic() >= until:
            break
        seen += attack(seed, directory, expected, tell)
    known = [*PHASES, *(fault.__name__ for fault in FAULTS), *EFFECTS]
    tell(", ".join(f"{name}: {seen[name]}" for name in known))
    never = [name for name in known if not seen[name]]
    assert seed < first + ENOUGH or not never, f"never happened: {', '.join(never)}"
    return seed - first


def replay(seed: int) -> str:
    return f"PYTHONPATH=tests {os.path.relpath(sys.executable)} -m support.nemesis --replay {seed}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m support.nemesis", description="Hunt for faults in real runs.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to hunt, in minutes (default: 30)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="attack one run, with this seed")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="zmqrl-soak-"))

    def tell(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    if options.replay is not None:
        attack(options.replay, directory, undisturbed(directory), tell)
    else:
        tell(f"{soak(options.minutes, directory, options.first, tell)} runs, no fault found")
    shutil.rmtree(directory)
    return 0


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _heal(*proxies: Proxy) -> None:
    for proxy in proxies:
        proxy.heal()


if __name__ == "__main__":
    sys.exit(main())
