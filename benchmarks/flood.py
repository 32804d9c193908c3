"""Measure how much a flood of connections slows a run.

    python benchmarks/flood.py [--connections 5000] [--seconds 8] [--rounds 7] [--output DIR]

One shard and two workers run on this machine. A worker computes for 10 ms, then pushes a slice of 1 MB. In a flood,
a process opens thousands of connections to the shard:

- ``silent``: TCP connections that never send a byte. When a connection is closed, the process opens it again at once.
- ``half handshakes``: connections that send a ZMTP greeting for CURVE and then nothing. They too are opened again.
- ``wrong keys``: ZeroMQ connections with CURVE keys that the run does not know. The shard refuses them in their
  handshake. The process opens each connection again after 5 s.

Making a flood takes processor time, which another machine would spend in a real attack. So each flood is also sent to
another, idle shard on this machine. The difference between the two rates is what the flood costs the run. The order of
the measurements rotates from round to round. After each measurement of a flood, writes ``results.json`` into DIR, and
the table of its ``README.md``.
"""

import argparse
import collections
import contextlib
import itertools
import json
import selectors
import signal
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import numpy as np
import zmq

from zmqrl.child_process import ChildProcess
from zmqrl.process import raise_open_files, read_job, say
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.standalone import StandaloneShards, standalone_shards
from zmqrl.ps.wire.keys import ClientKeys, KeyPair
from zmqrl.ps.worker.connection import Connection
from zmqrl.words import ended_how

RESULTS = Path(__file__).parent / "results/flood"
Kind: TypeAlias = Literal["silent", "half handshakes", "wrong keys"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TARGETS = ("none", "another shard", "this run")
# The first 64 bytes of a ZMTP 3.1 client: signature, version, security mechanism, no server, filler (RFC 37).
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
PARAMETERS = 250_000
WORKERS = 2
COMPUTE_S = 0.01
WITHIN_S = 60.0
WARM_UP = 20  # versions before the first measurement
OPENED_AGAIN_AFTER_S = 5.0  # as long as the shard waits for the end of a handshake


def _work(job: dict[str, Any]) -> None:
    """Run a worker until the process is killed."""
    keys = ClientKeys.from_json(job["keys"]) if job["keys"] else None
    with Connection(Cluster.from_json(job["cluster"], keys), job["rank"]) as connection:
        version = -1
        while (weights := connection.pull(version)) is not None:
            version = weights.version
            time.sleep(COMPUTE_S)
            gradient = connection.gradient_buffer()
            gradient.fill(1e-3)
            connection.push(weights, gradient)


def _flood(job: dict[str, Any]) -> None:
    """Run a flood until the process is killed. Reports when all connections have been opened once."""
    raise_open_files()
    if job["kind"] != "wrong keys":
        _be_silent(job, after=GREETING if job["kind"] == "half handshakes" else b"")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.max_sockets = 2 * job["connections"] + 100  # a closed socket counts until its context has ended it
    strangers = collections.deque(_stranger(context, job) for _ in range(job["connections"]))
    say({})
    begun_at = time.monotonic()
    for number in itertools.count(1):
        time.sleep(max(0.0, begun_at + number * OPENED_AGAIN_AFTER_S / len(strangers) - time.monotonic()))
        strangers.popleft().close(linger=0)
        strangers.append(_stranger(context, job))


def _stranger(context: "zmq.Context[zmq.Socket[bytes]]", job: dict[str, Any]) -> "zmq.Socket[bytes]":
    stranger, own = context.socket(zmq.DEALER), KeyPair.make()
    stranger.curve_publickey, stranger.curve_secretkey = own.public.encode(), own.secret.encode()
    stranger.curve_serverkey = job["server"].encode()
    stranger.connect(job["endpoint"])
    return stranger


def _be_silent(job: dict[str, Any], *, after: bytes) -> NoReturn:
    host, port = job["endpoint"].removeprefix("tcp://").split(":")
    selector = selectors.DefaultSelector()

    def connect() -> None:
        silent = socket.create_connection((host, int(port)))
        silent.sendall(after)
        silent.setblocking(False)
        selector.register(silent, selectors.EVENT_READ)

    for _ in range(job["connections"]):
        connect()
    say({})
    while True:
        for key, _ in selector.select():
            closed = key.fileobj
            assert isinstance(closed, socket.socket)
            with contextlib.suppress(ConnectionError):
                if closed.recv(4096):  # the greeting of the shard
                    continue
            selector.unregister(closed)
            closed.close()
            with contextlib.suppress(OSError):
                connect()


@contextlib.contextmanager
def _process(name: str, job: dict[str, Any]) -> Iterator[ChildProcess]:
    """Run this file with a job. The process is killed at the end of the block."""
    process = ChildProcess(name, [__file__, "--job"], job)
    try:
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def flooding(
    kind: Kind, connections: int, shards: StandaloneShards, role: Literal["grad", "weights", "control"] = "control"
) -> Iterator[int]:
    """Flood a socket of shard 0. The block begins when every connection has been opened. Yields the process id."""
    keys = shards.keys
    job = {"kind": kind, "connections": connections, "endpoint": shards.cluster.endpoints[0][role]}
    with _process("the flood", job | {"server": keys.shards[0].public if keys else None}) as process:
        assert process.hear(10 * WITHIN_S) is not None, "the flood did not begin"
        yield process.process.pid
        assert process.process.poll() is None, "the flood ended early"


@contextlib.contextmanager
def working(shards: StandaloneShards) -> Iterator[list[ChildProcess]]:
    """Workers of the run, each in a process."""
    cluster = shards.cluster.to_json()
    with contextlib.ExitStack() as stack:
        workers = []
        for rank in range(WORKERS):
            keys = shards.cluster_for(rank).keys
            job = {"cluster": cluster, "rank": rank, "keys": keys.to_json() if keys is not None else None}
            workers.append(stack.enter_context(_process(f"worker {rank}", job)))
        yield workers


@contextlib.contextmanager
def shard(*, curve: bool) -> Iterator[StandaloneShards]:
    """A parameter server with one shard."""
    layout = Layout.of([("w", (PARAMETERS,))], 1)
    sgd = OptimizerConfig(name="sgd", learning_rate=0.1)
    with standalone_shards(
        layout, np.zeros(PARAMETERS, np.float32), optimizer=sgd, workers=WORKERS, transport="tcp", curve=curve
    ) as running:
        yield running


def version_of(shards: StandaloneShards) -> int:
    """The newest version of shard 0."""
    return shards.control.stats([0], within_s=WITHIN_S, what="statistics")[0].version


def updates_per_s(shards: StandaloneShards, seconds: float) -> float:
    """The rate of the run during the next ``seconds``."""
    first, began_at = version_of(shards), time.monotonic()
    time.sleep(seconds)
    return (version_of(shards) - first) / (time.monotonic() - began_at)


def targets_of(number: int) -> tuple[str, ...]:
    """The targets of the floods of a round in order. Each target comes first in every third round."""
    first = number % len(TARGETS)
    return TARGETS[first:] + TARGETS[:first]


def measure(kind: Kind, connections: int, seconds: float, number: int) -> dict[str, float]:
    """The rates of the run: without a flood, during a flood of another shard, and during a flood of its own shard.

    ``number`` is that of the round.
    """
    rates = {}
    curve = kind != "silent"
    with shard(curve=curve) as run, shard(curve=curve) as other, working(run) as workers:
        deadline = time.monotonic() + WITHIN_S
        while version_of(run) < WARM_UP:
            check_alive(workers)
            if time.monotonic() > deadline:
                sys.exit(f"{kind}: the run has not made {WARM_UP} versions within {WITHIN_S:g} s")
            time.sleep(0.05)
        for target in targets_of(number):
            flooded = {"another shard": other, "this run": run}.get(target)
            with flooding(kind, connections, flooded) if flooded is not None else contextlib.nullcontext():
                rates[target] = updates_per_s(run, seconds)
            check_alive(workers)
            if not rates[target]:
                sys.exit(f"{kind}, flood of {target}: the run made no version in {seconds:g} s")
    return rates


def check_alive(workers: Sequence[ChildProcess]) -> None:
    """Exit if a worker has ended."""
    for worker in workers:
        if (status := worker.process.poll()) is not None:
            sys.exit(f"{worker.name} ended during the benchmark ({ended_how(status)})")


def table(found: Mapping[str, Any]) -> str:
    """For each measured kind, as Markdown: the median rates, and by how much the flood of the run slows it."""
    from bench_lab import interval_text

    head = f"| flood of {found['connections']:,} | updates/s without | of another shard | of this run | slower by % |"
    lines = [f"{head} 95 % interval | rounds |", "|---|---|---|---|---|---|---|"]
    for kind in dict.fromkeys(row["kind"] for row in found["rows"]):
        measured = [row["updates_per_s"] for row in found["rows"] if row["kind"] == kind]
        rates = " | ".join(f"{statistics.median(each[name] for each in measured):.1f}" for name in TARGETS)
        # The speed of the machine differs more between rounds than within a round.
        slower = [100 * (1 - each["this run"] / each["another shard"]) for each in measured]
        lines.append(
            f"| {kind} | {rates} | {statistics.fmean(slower):.1f} | {interval_text(slower)} | {len(measured)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure each kind of flood in turn, and write the results after each measurement."""
    from bench_lab import begin  # the processes of a flood start without this folder on the path
    from marked import fill_readme

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    origin = begin(parser, arguments.output)
    raise_open_files()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    found: dict[str, Any] = {"connections": arguments.connections, "rows": rows, **origin}
    for number in range(arguments.rounds):
        for kind in arguments.kinds:
            rates = measure(kind, arguments.connections, arguments.seconds, number)
            rows.append({"kind": kind, "round": number, "updates_per_s": rates})
            print(kind, {name: round(rate, 1) for name, rate in rates.items()}, flush=True)
            (arguments.output / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            fill_readme(arguments.output, "flood", table(found))
    print(table(found))


if __name__ == "__main__":
    if "--job" in sys.argv:
        task = read_job(signal.SIGKILL)
        if "cluster" in task:
            _work(task)
        else:
            _flood(task)
    else:
        main()
