"""Hostile bytes on the sockets of a live run change nothing: they are counted, or break their own connection."""

import random
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq
from support.messages import gradient_header
from support.network import Wire
from support.rig import Served, Worker, anonymous_mb, eventually, random_pause_s, served, toy_workers

from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.sockets import MARGIN_BYTES, SOCKET_ROLES

pytestmark = pytest.mark.processes

COUNT = 1000
MOST_GROWTH_MB = 30
# A greeting and READY of ZMTP 3.0 with the NULL mechanism, as in RFC 23.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x26\x05READY\x0bSocket-Type\x00\x00\x00\x04%s\x08Identity\x00\x00\x00\x00"
# READY has room for a socket type of 4 letters. A ROUTER refuses a peer of type PAIR.
TYPES = {"grad": b"PUSH", "weights": b"XSUB", "control": b"PAIR"}


def counted(running: Served) -> int:
    """The number of late, duplicate and rejected contributions on all shards."""
    return sum(stats.unattributed + sum(sum(row[2:]) for row in stats.tallies) for stats in running.stats())


def memory_mb(running: Served) -> list[float]:
    return [anonymous_mb(running.pid(shard)) for shard in running.all]


def is_no_message(frames: list[bytes], payloads: set[type]) -> bool:
    try:
        message = framing.decode(frames[0])
    except framing.MalformedMessage:
        return True
    return (len(frames) == 2) != (type(message) in payloads) or len(frames) > 2


def mutated(frames: list[bytes], chance: random.Random) -> list[bytes]:
    """``frames`` with one fault: changed, removed or added bytes, or a lost, repeated, empty or extra frame."""
    header = bytearray(frames[0])
    match chance.randrange(9):
        case 0:
            for _ in range(chance.randint(1, 4)):
                header[chance.randrange(len(header))] ^= 1 << chance.randrange(8)
        case 1:
            del header[chance.randrange(len(header)) :]
        case 2:
            header += chance.randbytes(chance.randint(1, 40))
        case 3:
            return [chance.randbytes(chance.randrange(200)), *frames[1:]]
        case 4:
            return frames[1:] or [b""]
        case 5:
            return [*frames, chance.randbytes(chance.randrange(5000))]
        case 6:
            return [b"", *frames]
        case 7:
            return [*frames[:1], *(frame[: chance.randrange(len(frame))] for frame in frames[1:])]
        case _:
            # Deep nesting and wrong lengths make a careless reader allocate a lot of memory.
            return [chance.choice([b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", bytes(70_000)])]
    return [bytes(header), *frames[1:]]


def hostile_gradients(running: Served, shard: int, incarnation: int, chance: random.Random) -> Iterator[list[bytes]]:
    """Contributions in the name of worker 0 with a wrong field or frame. All of their numbers are NaN."""
    cluster = running.cluster
    nan = np.full(cluster.layout.slices[shard].count, np.nan, np.float32).tobytes()
    while True:
        version = running.version()
        right = gradient_header(
            run=cluster.run, layout=cluster.layout.hash, shard=shard, version=version, incarnation=incarnation
        )
        for _ in range(200):
            wrong: dict[str, object] = chance.choice(
                [
                    {},
                    {"run": "another"},
                    {"layout": "0" * 16},
                    {"shard": 60},
                    {"generation": chance.randrange(2**32)},
                    {"view": chance.randrange(2, 2**32)},
                    {"version": chance.randrange(2**53)},
                    {"version": version - 1 if version else 0},
                    {"rank": chance.randrange(2, 2**16)},
                    {"incarnation": chance.randrange(2**53)},
                    {"codec": "bf16"},
                ]
            )
            frames = [framing.encode(replace(right, **wrong)), nan]  # type: ignore[arg-type]
            yield frames if chance.random() < 0.3 else mutated(frames, chance)


def hostile_controls(running: Served, chance: random.Random) -> Iterator[list[bytes]]:
    """Messages of every kind that a stranger must not send, and mutated copies of them."""
    run, layout = running.cluster.run, running.cluster.layout.hash
    ranks = tuple(range(1000))
    view: dict[str, object] = {"run": run, "view": 9, "quorum": 1, "members": ranks}
    hello = m.Hello(
        run=run, layout="0" * 16, role="worker", rank=0, incarnation=2**53 - 1, host="x", pid=1, secret="guess"
    )
    about: dict[str, object] = {"run": run, "shard": 0}
    kinds: list[m.Message] = [
        hello,
        replace(hello, layout=layout, role="supervisor"),
        replace(hello, layout=layout, rank=60_000),
        replace(hello, run="another"),
        m.SnapshotRequest(run=run, version=None),
        m.Ping(run=run, rank=0, incarnation=1, generation=1, version=2**53 - 1, computed=0, sent_us=0),
        m.Leave(run=run, rank=0, incarnation=1),
        m.Report(run=run, rank=0, incarnation=1, figures=bytes(1000)),
        m.StatsRequest(run=run),
        m.ViewChange(**view),  # type: ignore[arg-type]
        m.Stop(run=run, version=0),
        m.Checkpoint(run=run, version=2**53 - 1),
        m.Fetch(run=run, version=0, offset=0),
        m.Load(**view, generation=9, version=0, offset=0, total=4),  # type: ignore[arg-type]
        m.Loaded(**about, generation=1, offset=0),  # type: ignore[arg-type]
        m.Missing(**about, version=0),  # type: ignore[arg-type]
    ]
    while True:
        message = chance.choice(kinds)
        frames = [framing.encode(message)] + ([bytes(4)] if isinstance(message, m.Load) else [])
        yield frames if chance.random() < 0.3 else mutated(frames, chance)


def hostile_subscriptions(chance: random.Random) -> Iterator[list[bytes]]:
    number = 0
    while True:
        number += 1
        yield chance.choice(
            [
                [b"\1P/%d/%d" % (number, number)],
                [b"\1P/0/x%d" % number],
                [b"\1P/%d/1" % (2**40 + number)],
                [b"\1%d" % number + chance.randbytes(chance.randrange(60))],
                [b"\0%d" % number],
                [chance.randbytes(chance.randrange(300))],
                [chance.randbytes(10), chance.randbytes(10)],
                [b""],
            ]
        )


def is_foreign_to_the_subscriptions(frames: list[bytes]) -> bool:
    return frames[0][:1] not in (b"\0", b"\1", b"")


@pytest.mark.parametrize("turns", [4, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_thousands_of_hostile_messages_are_counted_and_change_nothing(tmp_path: Path, turns: int) -> None:
    """Each turn sends 3000 messages, half of them to each shard."""
    chance = random.Random(8)
    with served(tmp_path, count=COUNT, shards=2, workers=2, transport="tcp") as running, ExitStack() as workers:
        first, _ = workers.enter_context(toy_workers([running.cluster] * 2, pause_s=random_pause_s(0.01)))
        running.wait_for(5)
        before_mb, certain, before = memory_mb(running), 0, counted(running)
        for turn in range(turns):
            with ExitStack() as connections:
                for shard in running.all:
                    wire = connections.enter_context(Wire(running.cluster.endpoints[shard]))
                    gradients = hostile_gradients(running, shard, first.connection.incarnation, chance)
                    controls, subscriptions = hostile_controls(running, chance), hostile_subscriptions(chance)
                    for _ in range(500):
                        certain += send(wire.grad, next(gradients), {m.Gradient})
                        certain += send(wire.control, next(controls), {m.Load})
                        frames = next(subscriptions)
                        wire.weights.send_multipart(frames)
                        certain += is_foreign_to_the_subscriptions(frames)
                eventually(lambda: counted(running) >= before + certain, f"{certain} counted")  # noqa: B023
                version = running.version()
                running.wait_for(version + 3)
            if turn == 0:
                before_mb = memory_mb(running)  # after the warm-up, and without connections, which need memory
        after_mb = memory_mb(running)
        assert certain > 1250 * turns
        assert all(stats.view == 1 and stats.generation == 1 for stats in running.stats())
        assert all(after < before + MOST_GROWTH_MB for before, after in zip(before_mb, after_mb, strict=True)), after_mb
        sys.stdout.write(f"{3000 * turns} hostile messages: {before_mb} -> {after_mb} MB\n")
        running.finish(workers)


def send(to: "zmq.Socket[bytes]", frames: list[bytes], payloads: set[type]) -> bool:
    """Send the frames. Returns True if the frames are not a valid message, so that the shard must count them."""
    to.send_multipart(frames)
    return is_no_message(frames, payloads)


def test_non_finite_numbers_are_rejected_and_later_contributions_are_still_used(tmp_path: Path) -> None:
    with served(tmp_path, count=COUNT, shards=1) as running, Wire(running.cluster.endpoints[0]) as wire:
        cluster = running.cluster
        assert isinstance(wire.join(cluster, 1, 5), m.Welcome)
        header = gradient_header(run=cluster.run, layout=cluster.layout.hash, rank=1, incarnation=5)
        numbers = np.ones(COUNT, np.float32)
        for wrong in (np.nan, np.inf, -np.inf):
            numbers[-1] = wrong
            wire.grad.send_multipart([framing.encode(header), numbers.tobytes()])
        eventually(lambda: running.stats()[0].tallies == ((1, 0, 0, 0, 3),), "three rejections")
        assert running.stats()[0].held == ()
        numbers[-1] = np.finfo(np.float32).max  # huge, but finite
        wire.grad.send_multipart([framing.encode(header), numbers.tobytes()])
        eventually(lambda: running.stats()[0].held == (1,), "a contribution")


def test_oversized_frames_and_garbage_break_only_their_own_connection(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(9)
    with served(tmp_path, count=COUNT, shards=1, workers=1, transport="tcp") as running, ExitStack() as workers:
        workers.enter_context(Worker(running.cluster, 0, pause_s=random_pause_s(0.01)))
        endpoints = running.cluster.endpoints[0]
        ports = {role: int(endpoints[role].rpartition(":")[2]) for role in SOCKET_ROLES}
        running.wait_for(5)
        before_mb = memory_mb(running)[0]
        limits = {"grad": 4 * COUNT + MARGIN_BYTES, "weights": m.MAX_SUBSCRIPTION_BYTES, "control": m.MAX_CONTROL_BYTES}
        for _ in range(20):
            with Wire(endpoints) as wire:
                for role, socket_of in (("grad", wire.grad), ("weights", wire.weights), ("control", wire.control)):
                    socket_of.send(b"\1" * (limits[role] + 1))
                time.sleep(0.01)
        for turn in range(300):
            role = SOCKET_ROLES[turn % 3]
            with socket.create_connection(("127.0.0.1", ports[role]), 5) as garbage:
                garbage.sendall(
                    chance.choice(
                        [
                            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                            chance.randbytes(chance.randrange(2000)),
                            GREETING + chance.randbytes(100),
                            GREETING + READY % TYPES[role] + b"\2\x0f" + b"\xff" * 7 + bytes(100),
                            GREETING + READY % TYPES[role] + b"\2\x00\x00\x00\x00\x7f\xff\xff\xff" + bytes(100),
                            GREETING[: chance.randrange(64)],
                        ]
                    )
                )
        version = running.version()
        running.wait_for(version + 10)
        logged = ""

        def losses() -> dict[str, int]:
            nonlocal logged
            logged += capfd.readouterr().err
            found: dict[str, int] = dict.fromkeys(SOCKET_ROLES, 0)
            for role, count in re.findall(r"connections to (\w+): (\d+) x disconnected", logged):
                found[role] += int(count)
            return found

        eventually(lambda: all(count >= 80 for count in losses().values()), "the disconnections in the log")
        assert memory_mb(running)[0] < before_mb + MOST_GROWTH_MB
        running.finish(workers)


def test_a_storm_of_connections_does_not_hold_up_the_run(tmp_path: Path) -> None:
    with served(tmp_path, shards=1, workers=1, transport="tcp") as running, ExitStack() as workers:
        worker = workers.enter_context(Worker(running.cluster, 0))
        port = int(running.cluster.endpoints[0]["weights"].rpartition(":")[2])
        running.wait_for(5)
        version = worker.version
        for _ in range(3000):
            with socket.create_connection(("127.0.0.1", port), 5) as garbage:
                garbage.sendall(b"garbage" * 10)
        eventually(lambda: worker.version > version + 20, "new versions")
        running.finish(workers)


def test_memory_for_ten_thousand_topics_is_freed(tmp_path: Path) -> None:
    chance = random.Random(10)
    with served(tmp_path, shards=1, workers=1, transport="tcp") as running, ExitStack() as workers:
        workers.enter_context(Worker(running.cluster, 0, pause_s=random_pause_s(0.01)))
        running.wait_for(5)
        memory = []
        for turn in range(1, 4):
            with Wire(running.cluster.endpoints[0], send_most=20_000) as wire:
                for _ in range(10_000):
                    wire.weights.send(b"\1" + chance.randbytes(32))
                eventually(lambda turn=turn: counted(running) >= 20_000 * turn - 10_000, "subscribed")  # type: ignore[misc]
                version = running.version()
                running.wait_for(version + 5)
                memory.append(memory_mb(running)[0])
            eventually(lambda turn=turn: counted(running) >= 20_000 * turn, "unsubscribed")  # type: ignore[misc]
        # Subscriptions take about 43 bytes of memory per byte of a topic, but only until the connection ends.
        assert memory[2] < memory[0] + MOST_GROWTH_MB / 3, memory
        running.finish(workers)
