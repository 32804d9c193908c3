"""Helpers for tests of the parameter server: shard processes, and workers whose gradients can be recomputed.

``python tests/support/rig.py`` runs a worker or shards in a separate process that a test can stop and kill.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, AnyStr, Self

import msgpack
import numpy as np

from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.layout import Layout
from zmqrl.ps.schedule import WHOLE
from zmqrl.ps.shard import store
from zmqrl.ps.shard.machine import ShardTiming
from zmqrl.ps.shard.optimizer import Optimizer, OptimizerConfig
from zmqrl.ps.standalone import StandaloneShards, standalone_shards
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS, FloatVector
from zmqrl.ps.worker.connection import Connection, PulledWeights
from zmqrl.ps.worker.machine import WorkerTiming

WITHIN_S = 240.0
ORPHANS_END_WITHIN_S = 60.0  # they may have to import torch before they check their parent
QUICK = ShardTiming(heartbeat_s=0.1, need_s=0.15, need_most_s=0.5, stall_notice_s=5.0)
QUICK_WORKER = WorkerTiming(hello_s=0.2, ping_s=0.2, snapshot_s=0.3)
SGD = OptimizerConfig(name="sgd", learning_rate=0.5, momentum=0.5)
HISTORY_KEYS = {
    "version",
    "view",
    "quorum",
    "ranks",
    "late",
    "duplicate",
    "rejected",
    "crc32",
    "generation",
    "totals",
}

Gradient = Callable[[int, PulledWeights], FloatVector]


def flat_layout(count: int, shards: int) -> Layout:
    return Layout.of([("w", (count,))], shards)


def start_vector(count: int) -> FloatVector:
    return np.random.default_rng(7).standard_normal(count, np.float32)


def toy_gradient(rank: int, version: int, count: int) -> FloatVector:
    """A gradient whose numbers have few bits. A few such gradients have the same float32 sum in any order."""
    numbers = np.arange(count, dtype=np.int64) * 7 + rank * 13 + version * 31
    return ((numbers % 17 - 8) / 16).astype(np.float32)


def eventually(condition: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


@dataclass(slots=True)
class Served:
    """Running shards, with queries for tests."""

    shards: StandaloneShards
    optimizer: OptimizerConfig
    start: FloatVector
    asynchronous: bool

    @property
    def cluster(self) -> Cluster:
        return self.shards.cluster

    @property
    def all(self) -> range:
        return range(self.cluster.layout.shards)

    def pid(self, shard: int) -> int:
        return self.shards.processes[shard].pid

    def tell(self, message: m.FromSupervisor) -> None:
        for shard in self.all:
            assert self.shards.control.send(shard, message)

    def stop_at(self, version: int | None) -> None:
        self.tell(m.Stop(run=self.cluster.run, version=version))

    def stats(self) -> list[m.Stats]:
        control = self.shards.control
        # Discard old answers: an answer can arrive twice, or after its question has timed out.
        list(control.arrivals(0))
        found = control.stats(self.all, within_s=WITHIN_S, what="statistics")
        return [found[shard] for shard in self.all]

    def version(self) -> int:
        """The newest version that all shards have made."""
        return min(stats.version for stats in self.stats())

    def heard_of(self, rank: int, shard: int) -> int:
        """The number of contributions of ``rank`` that have arrived, not counting one that the shard still holds."""
        return sum(sum(row[1:]) for row in self.stats()[shard].tallies if row[0] == rank)

    def wait_for(self, version: int, within_s: float = WITHIN_S) -> None:
        eventually(lambda: self.version() >= version, f"version {version}", within_s)

    def kill(self, shard: int) -> None:
        self.shards.processes[shard].kill()
        self.shards.processes[shard].wait(WITHIN_S)

    def restart(self, shard: int) -> m.Welcome:
        self.shards.start(shard)
        control = self.shards.control
        list(control.arrivals(0))
        eventually(lambda: control.send(shard, control.hello()), "a connection")
        return control.greet([shard], within_s=WITHIN_S)[shard]

    def end_with(self, version: int) -> FloatVector:
        """Take a checkpoint of ``version``. Returns its vector: float32 (count,)."""
        control, layout = self.shards.control, self.cluster.layout
        request = m.Checkpoint(run=self.cluster.run, version=version)
        control.ask(
            self.all,
            lambda _: request,
            lambda answer: answer if isinstance(answer, m.Stats) and answer.captured == version else None,
            within_s=WITHIN_S,
            what=f"checkpoint {version}",
        )
        states = [control.fetch(cut.shard, version) for cut in layout.slices]
        return np.concatenate(
            [np.frombuffer(state, "<f4", cut.count) for state, cut in zip(states, layout.slices, strict=True)]
        )

    def history(self, shard: int) -> list[dict[str, Any]]:
        text = self.shards.jobs[shard].history_path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def replay(self, gradient: Callable[[int, int, int], FloatVector] = toy_gradient) -> FloatVector:
        """The vector recomputed from the histories, without a server.

        Also asserts that every version is listed once, with distinct ranks and the checksum of its recomputed weights.
        """
        optimizer, layout = Optimizer(self.optimizer), self.cluster.layout
        vector = np.zeros(layout.count, np.float32)
        for cut in layout.slices:
            part = slice(cut.start, cut.stop)
            weights = self.start[part].copy()
            state = {name: np.zeros(cut.count, np.float32) for name in optimizer.state_names}
            for version, line in enumerate(self.history(cut.shard)):
                more = ({"staleness"} if self.asynchronous else set()) | ({"made_at"} & line.keys())
                assert set(line) == HISTORY_KEYS | more
                assert line["version"] == version + 1, "a version is missing or was made twice"
                assert len(line["ranks"]) == len(set(line["ranks"])) == line["quorum"]
                total = np.zeros(cut.count, np.float32)
                for rank in line["ranks"]:
                    total += gradient(rank, version, layout.count)[part]
                new_weights, new_state = np.empty_like(weights), {k: np.empty_like(v) for k, v in state.items()}
                elapsed = line.get("made_at", 0) / WHOLE
                optimizer.step(
                    version, total, len(line["ranks"]), weights, state, new_weights, new_state, elapsed=elapsed
                )
                weights, state = new_weights, new_state
                assert zlib.crc32(CODECS[self.cluster.codec].encode(weights).data) == line["crc32"]
            vector[part] = weights
        return vector

    def stop_soon(self, more: int = 5) -> int:
        """Make all shards end about ``more`` versions from now. Returns the version at which they end."""
        version = -1
        while not all(stats.stop == version for stats in self.stats()):  # a shard may already have passed that version
            version = max(stats.version for stats in self.stats()) + more
            self.stop_at(version)
        return version

    def finish(
        self,
        workers: contextlib.ExitStack,
        more: int = 5,
        gradient: Callable[[int, int, int], FloatVector] = toy_gradient,
    ) -> int:
        """End the run after ``more`` versions, and assert that the result matches its history."""
        version = self.stop_soon(more)
        workers.close()
        assert [(stats.version, stats.state) for stats in self.stats()] == [(version, "ended")] * len(self.all)
        np.testing.assert_array_equal(self.end_with(version), self.replay(gradient))
        return version


@contextlib.contextmanager
def served(
    directory: Path,
    *,
    count: int = 1000,
    shards: int = 2,
    workers: int = 2,
    quorum: int | None = None,
    optimizer: OptimizerConfig = SGD,
    timing: ShardTiming = QUICK,
    layout: Layout | None = None,
    start: FloatVector | None = None,
    **options: Any,
) -> Iterator[Served]:
    """Start shard processes with their state in ``directory``. ``options`` are passed to ``standalone_shards``."""
    layout = layout or flat_layout(count, shards)
    start = start_vector(layout.count) if start is None else start
    with standalone_shards(
        layout,
        start,
        optimizer=optimizer,
        workers=workers,
        quorum=quorum,
        directory=directory,
        timing=timing,
        **options,
    ) as running:
        yield Served(running, optimizer, start, options.get("asynchronous", False))


class Worker:
    """A context manager with a worker in a thread, which pulls and pushes until the run ends.

    ``pause_s(rank, version)`` is how long a gradient takes. The block ends with the run, or at once if ``leaving`` is
    set. At its end, the block raises the exception of the thread, if there was one.
    """

    def __init__(
        self,
        cluster: Cluster,
        rank: int,
        *,
        gradient: Gradient | None = None,
        pause_s: Callable[[int, int], float] = lambda rank, version: 0.0,
        timing: WorkerTiming = QUICK_WORKER,
    ) -> None:
        self.rank = rank
        self.count = cluster.layout.count
        self.gradient = gradient
        self.pause_s = pause_s
        self.connection = Connection(cluster, rank, timing=timing)
        self.pulled: list[tuple[int, int]] = []  # generation, version
        self.last: FloatVector | None = None
        self.error: BaseException | None = None
        self.ended = threading.Event()  # the run has ended; the connection stays open until the end of the block
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Worker":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self.leaving.is_set():
            self.thread.join(WITHIN_S)
            assert not self.thread.is_alive(), f"the run did not end for worker {self.rank}"
        self.leaving.set()
        self.connection.close()
        if kind is None and self.error is not None:
            raise self.error

    @property
    def version(self) -> int:
        """The newest version on which the worker has computed."""
        return self.pulled[-1][1] if self.pulled else -1

    def _run(self) -> None:
        version = -1
        try:
            while (weights := self.connection.pull(version, timeout_s=WITHIN_S)) is not None:
                version = weights.version
                self.pulled.append((weights.generation, version))
                self.last = weights.vector.copy()
                time.sleep(self.pause_s(self.rank, version))
                if self.leaving.is_set():
                    return
                buffer = self.connection.gradient_buffer()
                buffer[:] = self.gradient(self.rank, weights) if self.gradient else self._toy(version)
                self.connection.push(weights, buffer)
            self.ended.set()
        except BaseException as error:
            self.error = error

    def _toy(self, version: int) -> FloatVector:
        return toy_gradient(self.rank, version, self.count)


@contextlib.contextmanager
def toy_workers(clusters: Iterable[Cluster], **options: Any) -> Iterator[list[Worker]]:
    """Run one worker for each of ``clusters``, with ranks from 0. ``options`` are passed to each ``Worker``."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Worker(cluster, rank, **options)) for rank, cluster in enumerate(clusters)]


def random_pause_s(most_s: float) -> Callable[[int, int], float]:
    """Pauses that look random and are the same in every run."""
    return lambda rank, version: most_s * float(np.random.default_rng([rank, version]).random())


class Interrupted(BaseException):
    """Raised to interrupt the main thread, like Ctrl-C."""


@contextlib.contextmanager
def signal_that_does_not_wake() -> Iterator[None]:
    """Send a signal to another thread soon. The main thread raises ``Interrupted`` when it next runs Python code."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    old = signal.signal(signal.SIGUSR2, interrupt)
    taker = threading.Timer(0.3, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR2))
    taker.start()
    try:
        yield
    finally:
        taker.join(WITHIN_S)
        signal.signal(signal.SIGUSR2, old)


# separate processes


@contextlib.contextmanager
def start_process(job: dict[str, Any], *program: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run this file, or ``python PROGRAM``, as a process with ``job``. The process is killed at the end of the
    block.
    """
    command = [sys.executable, *(program or (__file__,))]
    with ending(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        yield process


@contextlib.contextmanager
def worker_process(cluster: Cluster, rank: int, pause_s: float = 0.0) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a toy worker in a process. The process exits with status 0 when the run has ended."""
    with start_process({"cluster": cluster.to_json(), "rank": rank, "pause_s": pause_s}) as process:
        yield process


@contextlib.contextmanager
def ending(process: "subprocess.Popen[AnyStr]") -> "Iterator[subprocess.Popen[AnyStr]]":
    """At the end of the block, always kill the process, wait for it, and close its pipes.

    ``Popen`` itself would only wait, without a limit.
    """
    try:
        yield process
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        process.wait(WITHIN_S)


@contextlib.contextmanager
def nothing_left(within_s: float = ORPHANS_END_WITHIN_S) -> Iterator[dict[str, str]]:
    """Yield a variable for the environment of a process. Its descendants on this machine inherit the variable.

    At the end of the block, wait until no process has the variable. The block kills processes that still run after
    ``within_s``, and fails.
    """
    name, value = "ZMQRL_TEST", uuid.uuid4().hex
    try:
        yield {name: value}
    finally:
        deadline = time.monotonic() + within_s
        while (left := commands_with(f"{name}={value}")) and time.monotonic() < deadline:
            time.sleep(0.01)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"these processes did not end within {within_s:g} s: {left}"


def commands_with(variable: str) -> dict[int, str]:
    """The commands of all processes on this machine that started with ``variable`` (``NAME=VALUE``), by process id."""
    found: dict[int, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if variable.encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
    return found


def forget_totals(path: Path) -> None:
    """Remove the totals from the slots and the history of a shard. An older zmqrl wrote no totals."""
    content = bytearray(path.read_bytes())
    _, slots, _ = store.FILE_HEADER.unpack_from(content)
    slot_bytes = (len(content) - store.PAGE) // slots
    for start in (store.PAGE + index * slot_bytes + store.MARK_BYTES for index in range(slots)):
        length, *others = store.SLOT_HEADER.unpack_from(content, start + store.CRC.size)
        if length:
            at = start + store.CRC.size + store.SLOT_HEADER.size
            fields = msgpack.unpackb(content[at : at + length], strict_map_key=False)
            del fields["totals"]
            record = msgpack.packb(fields)
            body = store.SLOT_HEADER.pack(len(record), *others) + record
            header = store.CRC.pack(zlib.crc32(body)) + body
            content[start : start + len(header)] = header
    path.write_bytes(content)
    history = path.parent.parent / "history" / path.with_suffix(".jsonl").name
    lines = [json.loads(line) for line in history.read_text().splitlines()]
    history.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "totals"}) + "\n" for line in lines))


def damage_newest_slot(path: Path) -> int:
    """Flip a bit of the weights in the newest slot of a store. Returns the version in that slot."""
    content = bytearray(path.read_bytes())
    _, slots, _ = store.FILE_HEADER.unpack_from(content)
    slot_bytes = (len(content) - store.PAGE) // slots
    starts = [store.PAGE + index * slot_bytes for index in range(slots)]
    headers = {
        start: store.SLOT_HEADER.unpack_from(content, start + store.MARK_BYTES + store.CRC.size) for start in starts
    }
    newest = max(starts, key=lambda start: headers[start][1])
    content[newest + store.HEADER_BYTES] ^= 1
    path.write_bytes(content)
    return int(headers[newest][3])


def anonymous_mb(pid: int) -> float:
    """The private memory of a process, without the mapped state file."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no RssAnon")


@dataclass(frozen=True, slots=True)
class Use:
    """What a process uses. ``memory_mb`` leaves out mapped files."""

    memory_mb: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Self:
        descriptors, threads = (len(list(Path(f"/proc/{pid}/{name}").iterdir())) for name in ("fd", "task"))
        return cls(anonymous_mb(pid), descriptors, threads)

    @classmethod
    def most(cls, one: Self, two: Self) -> Self:
        """The larger of each pair of numbers."""
        return cls(
            max(one.memory_mb, two.memory_mb),
            max(one.descriptors, two.descriptors),
            max(one.threads, two.threads),
        )


def descendants(pid: int) -> set[int]:
    """All descendants of the process ``pid``."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, more = set[int](), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more}
        found |= more
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Simulate a full disk without root: the kernel writes the bytes that fit, and then the write fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = json.loads(sys.stdin.readline())
    if "cluster" in job:
        cluster = Cluster.from_json(job["cluster"])
        with Worker(cluster, job["rank"], pause_s=lambda rank, version: job["pause_s"]) as worker:
            worker.thread.join()  # however long the run is: it ends soon after its shards
        return
    with served(Path(job["directory"]), shards=job["shards"]) as running:
        facts = {"pids": [running.pid(shard) for shard in running.all], "endpoints": list(running.cluster.endpoints)}
        sys.stdout.write(json.dumps(facts) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    _main()
