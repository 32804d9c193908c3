"""On one host, payloads stay in shared memory. Whatever fails there, they travel in messages instead."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from support.network import BareShard, Listener, Wire
from support.rig import (
    SGD,
    WITHIN_S,
    Served,
    Worker,
    eventually,
    random_pause_s,
    served,
    toy_gradient,
    toy_workers,
    worker_process,
)

from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.machine import ShardTiming
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import FloatVector
from zmqrl.ps.wire.memory import SharedMemory, SharedPayload
from zmqrl.ps.worker import connection as connection_module
from zmqrl.ps.worker.connection import Connection, PulledWeights

pytestmark = pytest.mark.processes

NOBODYS = "1/1/0123456789abcdef"
COUNT = 1000


def shares(worker: Worker) -> bool:
    """Whether the worker and every shard read in each other's memory."""
    return all(published is not None for published in worker.connection._published)


def newest_is_shared(worker: Worker, running: Served) -> bool:
    """Whether all shards have read the newest gradient in the worker's memory."""
    outgoing = worker.connection._outgoing
    return outgoing is not None and len(outgoing.readers) == len(running.all) and not outgoing.trackers


@contextmanager
def publications(running: Served, topic: bytes) -> Iterator["zmq.Socket[bytes]"]:
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.rcvtimeo = int(1000 * WITHIN_S)
        subscriber.subscribe(topic)
        subscriber.connect(running.cluster.endpoints[0]["weights"])
        yield subscriber


@pytest.mark.parametrize("options", [{"codec": "bf16"}, {"consistent": True}, {"quorum": 2}], ids=str)
def test_messages_carry_places_instead_of_payloads(tmp_path: Path, options: dict[str, object]) -> None:
    with (
        served(tmp_path, shards=2, workers=3, **options) as running,  # type: ignore[arg-type]
        publications(running, m.TOPIC_SHARED) as subscriber,
        ExitStack() as stack,
    ):
        workers = stack.enter_context(toy_workers([running.cluster] * 3, pause_s=random_pause_s(0.005)))
        places: list[int] = []
        while len(places) < 10:
            _, header, payload = subscriber.recv_multipart()
            message = framing.decode(header)
            assert isinstance(message, m.Weights)
            assert payload == b""
            if message.place:  # 0 until the first worker shares its memory
                places.append(message.place)
        assert places == sorted(set(places)), "each publication has a place of its own"
        eventually(lambda: all(newest_is_shared(worker, running) for worker in workers), "gradients in memory")
        if "codec" in options:
            running.stop_soon()
        else:
            running.finish(stack)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_workers_with_and_without_shared_memory_train_together(tmp_path: Path, asynchronous: bool) -> None:
    with served(tmp_path, workers=2, asynchronous=asynchronous) as running, ExitStack() as stack:
        clusters = [running.cluster, replace(running.cluster, shares_memory=False)]
        workers = stack.enter_context(toy_workers(clusters, pause_s=random_pause_s(0.005)))
        eventually(lambda: shares(workers[0]), "shared memory")
        running.wait_for(running.version() + 20)
        assert not shares(workers[1])
        if asynchronous:
            running.stop_soon()
        else:
            running.finish(stack)
    for shard in running.all:
        assert {rank for line in running.history(shard) for rank in line["ranks"]} == {0, 1}


def unreadable_by_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    create = SharedMemory.create

    def misnamed(payload_bytes: int) -> SharedMemory:
        memory = create(payload_bytes)
        memory.name = NOBODYS
        return memory

    monkeypatch.setattr(SharedMemory, "create", misnamed)


def unreadable_by_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedMemory, "open", lambda name, payload_bytes: None)


@pytest.mark.parametrize("breaks", [unreadable_by_shards, unreadable_by_the_worker])
def test_without_access_payloads_travel_in_messages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    breaks: Callable[[pytest.MonkeyPatch], None],
) -> None:
    breaks(monkeypatch)
    with served(tmp_path, shards=2, workers=1) as running, ExitStack() as stack:
        worker = stack.enter_context(Worker(running.cluster, 0))
        running.wait_for(20)
        assert not shares(worker)
        running.finish(stack)
    shard_said, worker_said = capfd.readouterr().err, caplog.text
    assert ("x SHARE_MEMORY of memory that cannot be read" in shard_said) == (breaks is unreadable_by_shards)
    assert ("x MEMORY_SHARED of memory that cannot be read" in worker_said) == (breaks is unreadable_by_the_worker)


@pytest.mark.parametrize("place", [1, 0])
def test_a_worker_hears_of_a_new_process_of_a_shard_whose_memory_it_does_not_know(tmp_path: Path, place: int) -> None:
    """The new process publishes so often that it sends no heartbeat, and only in memory."""
    shard, memory, incarnation = BareShard(tmp_path, 4 * COUNT), SharedMemory.create(4 * COUNT), 1
    layout = Layout.of([("w", (COUNT,))], 1)
    cluster = Cluster(run="r", layout=layout, codec="f32", endpoints=(shard.endpoints,), shares_memory=True)
    heard: list[type[object]] = []

    def serve() -> bool:
        """Answer what has arrived, and publish. Returns True."""
        about: dict[str, Any] = {"run": "r", "shard": 0, "incarnation": incarnation, "generation": 1, "version": 5}
        about |= {"view": 1, "quorum": 1, "members": (0,), "codec": "f32"}
        while shard.sockets["control"].poll(0):
            peer, header = shard.sockets["control"].recv_multipart()
            heard.append(type(message := framing.decode(header)))
            if isinstance(message, m.Hello):
                welcome = m.Welcome(**about, state="open", published=False)
                shard.sockets["control"].send_multipart([peer, framing.encode(welcome)])
            if isinstance(message, m.ShareMemory):
                shared = m.MemoryShared(run="r", shard=0, incarnation=incarnation, memory=memory.name)
                shard.sockets["control"].send_multipart([peer, framing.encode(shared)])
        header = framing.encode(m.Weights(**about, ranks=(0,), crc32=0, place=place))
        shard.sockets["weights"].send_multipart([m.TOPIC_SHARED, header, b""])
        return True

    with shard, Connection(cluster, 0) as worker:
        eventually(lambda: serve() and worker._published[0] is not None, "shared memory")
        incarnation, heard[:] = 2, []
        eventually(lambda: serve() and m.Hello in heard, "HELLO to the new process")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_weights_that_were_overwritten_while_they_were_read_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """Every third slice is torn. The garbage must not reach a worker."""
    torn = itertools.cycle((False, False, True))
    whole: list[bool] = []

    class Torn(SharedPayload):
        def __init__(self, memory: SharedMemory, number: int) -> None:
            super().__init__(memory, number)
            self.is_torn = next(torn)

        @property
        def buffer(self) -> memoryview:
            garbage = np.full(len(self) // 4, np.nan, np.float32).data.cast("B")
            return garbage if self.is_torn else super().buffer

        def is_whole(self) -> bool:
            return not self.is_torn and super().is_whole()

    def gradient(rank: int, weights: PulledWeights) -> FloatVector:
        whole.append(bool(np.isfinite(weights.vector).all()))
        return toy_gradient(rank, weights.version, len(weights.vector))

    monkeypatch.setattr(connection_module, "SharedPayload", Torn)
    with (
        served(tmp_path, shards=2, workers=1, asynchronous=asynchronous) as running,
        Worker(running.cluster, 0, gradient=gradient) as worker,
    ):
        running.wait_for(15)
        assert len(whole) >= 15
        assert all(whole)
        assert worker.connection.tally().sent > 0
        running.stop_soon()


def test_a_gradient_that_the_shard_cannot_read_is_sent_again_in_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = SharedMemory.end
    monkeypatch.setattr(SharedMemory, "end", lambda memory, number: end(memory, number) if number != 5 else None)
    with served(tmp_path, shards=1, workers=1) as running, ExitStack() as stack:
        worker = stack.enter_context(Worker(running.cluster, 0))
        eventually(lambda: shares(worker), "shared memory")
        running.wait_for(running.version() + 20)
        running.finish(stack)
        assert worker.connection.tally().resent >= 1
        assert running.stats()[0].unattributed == 1, "the shard counts the message that it could not use"


def test_a_restarted_shard_shares_memory_again(tmp_path: Path) -> None:
    with served(tmp_path, shards=2, workers=2) as running, Listener(running.cluster) as listener, ExitStack() as stack:
        workers = stack.enter_context(toy_workers([running.cluster] * 2, pause_s=random_pause_s(0.005)))
        for shard in (0, 1, 1):
            eventually(lambda: all(map(shares, workers)), "shared memory")
            running.wait_for(running.version() + 5)
            running.kill(shard)
            incarnation = running.restart(shard).incarnation
            eventually(
                lambda shard=shard, incarnation=incarnation: all(  # type: ignore[misc]
                    (found := worker.connection._published[shard]) is not None and found.incarnation == incarnation
                    for worker in workers
                ),
                "the memory of the new process",
            )
            running.wait_for(running.version() + 5)
        running.finish(stack)
        assert listener.contradictions == []


def test_the_memory_of_a_killed_worker_is_replaced_by_that_of_its_successor(tmp_path: Path) -> None:
    def memories(pid: int) -> set[str]:
        links = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
        return {link for link in links if "memfd:zmqrl-" in link}

    with served(tmp_path, shards=1, workers=1) as running:
        for _ in range(2):
            with worker_process(running.cluster, 0) as process:
                running.wait_for(running.version() + 20)
                assert len(memories(process.pid)) == 2, "its own, and that of the shard"
                eventually(
                    lambda process=process: memories(running.pid(0)) == memories(process.pid),  # type: ignore[misc]
                    "the old one is unmapped",
                )


def test_no_gradient_is_sent_twice_if_nothing_fails(tmp_path: Path) -> None:
    patient = ShardTiming(need_s=10 * WITHIN_S, need_most_s=10 * WITHIN_S)
    with served(tmp_path, shards=1, workers=1, timing=patient) as running, Connection(running.cluster, 0) as mine:
        weights = mine.pull(-1, timeout_s=WITHIN_S)
        for _ in range(100):
            assert weights is not None
            buffer = mine.gradient_buffer()
            buffer[:] = np.float32(0.5)
            mine.push(weights, buffer)
            weights = mine.pull(weights.version, timeout_s=WITHIN_S)
        assert mine.tally().resent == 0


def test_a_gradient_that_waits_for_other_ranks_stays_as_it_was(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=1, workers=2, consistent=True) as running,
        Connection(running.cluster, 0) as first,
        Connection(running.cluster, 1) as second,
    ):
        pulled = [connection.pull(-1, timeout_s=WITHIN_S) for connection in (first, second)]
        assert pulled[0] is not None
        assert pulled[1] is not None
        before = pulled[0].vector.copy()
        eventually(lambda: second._published[0] is not None, "shared memory")
        for value in range(1, 8):  # only the first counts. The others use its slot again
            second.gradient_buffer()[:] = value
            second.push(pulled[1], second.gradient_buffer())
            eventually(lambda value=value: running.heard_of(1, 0) == value - 1, "the push")  # type: ignore[misc]
        first.gradient_buffer()[:] = 1
        first.push(pulled[0], first.gradient_buffer())
        after = first.pull(0, timeout_s=WITHIN_S)
        assert after is not None
        np.testing.assert_array_equal(after.vector, before - SGD.learning_rate * np.float32(1))


def test_a_shard_keeps_count_when_memory_is_shared_twice_and_forgets_it_when_the_worker_leaves(tmp_path: Path) -> None:
    def memories() -> int:
        maps = Path(f"/proc/{running.pid(0)}/maps").read_text(encoding="utf-8")
        return len({line.split()[5] for line in maps.splitlines() if "memfd:zmqrl-" in line})

    memory = SharedMemory.create(4 * COUNT)
    with served(tmp_path, count=COUNT, shards=1, workers=1) as running, Wire(running.cluster.endpoints[0]) as wire:
        cluster = running.cluster
        share = m.ShareMemory(run=cluster.run, rank=0, incarnation=7, memory=memory.name)
        welcome = wire.join(cluster, 0, 7)
        assert isinstance(welcome, m.Welcome)
        shared = wire.ask(share)
        assert isinstance(shared, m.MemoryShared)
        theirs = SharedMemory.open(shared.memory, 4 * COUNT)
        assert theirs is not None
        number = memory.write(np.ones(COUNT, np.float32))
        header = m.Gradient(
            run=cluster.run,
            layout=cluster.layout.hash,
            generation=welcome.generation,
            view=welcome.view,
            shard=0,
            version=welcome.version,
            rank=0,
            incarnation=7,
            attempt=0,
            codec="f32",
            place=number,
        )
        wire.grad.send_multipart([framing.encode(header), b""])
        eventually(lambda: theirs.has_read(0, number), "the gradient")
        assert wire.ask(share) == shared
        assert theirs.has_read(0, number)
        wire.grad.send_multipart([framing.encode(replace(header, place=0)), np.ones(COUNT, np.float32).tobytes()])
        eventually(lambda: running.heard_of(0, 0) == 2, "a gradient in a message")
        assert theirs.has_read(0, number)
        assert memories() == 2
        assert isinstance(wire.ask(m.Leave(run=cluster.run, rank=0, incarnation=7)), m.Left)
        eventually(lambda: memories() == 1, "the memory of the worker is unmapped")
        assert isinstance(wire.join(cluster, 0, 8), m.Welcome)
        assert wire.ask(replace(share, incarnation=8)) == shared
        assert not theirs.has_read(0, number), "the next process of the rank counts from 1 again"
