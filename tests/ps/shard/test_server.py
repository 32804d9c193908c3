"""Runs with real shard processes and real sockets give the results of synchronous training."""

import os
import signal
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zmq
from support.network import Listener, Wire, proxied
from support.rig import (
    QUICK_WORKER,
    WITHIN_S,
    Interrupted,
    Worker,
    eventually,
    random_pause_s,
    served,
    signal_that_does_not_wake,
    toy_gradient,
    toy_workers,
)
from torch import nn

from zmqrl.errors import ClusterError
from zmqrl.profile.profiler import ProfilerJob
from zmqrl.profile.run_tables import RunTables
from zmqrl.profile.tables import NO_CONTRIBUTION, NOT_MADE
from zmqrl.ps.flat import FlatParameters
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS, FloatVector
from zmqrl.ps.worker.connection import Connection, PulledWeights
from zmqrl.ps.worker.gradients import MOST_KEPT

pytestmark = pytest.mark.processes

ADAM = OptimizerConfig(name="adam", learning_rate=0.01)
OPTIMIZERS: dict[str, tuple[OptimizerConfig, Callable[[list[nn.Parameter]], torch.optim.Optimizer]]] = {
    "adam": (
        OptimizerConfig(name="adam", learning_rate=0.01, epsilon=1e-5),
        lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-5),
    ),
    "rmsprop": (
        OptimizerConfig(name="rmsprop", learning_rate=0.003, momentum=0.5),
        lambda p: torch.optim.RMSprop(p, lr=0.003, momentum=0.5),
    ),
    "sgd": (
        OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
}


def make_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 5))


def loss_of(model: nn.Module, rank: int, version: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * version + rank)
    inputs, targets = torch.randn(8, 12, generator=generator), torch.randn(8, 5, generator=generator)
    return nn.functional.mse_loss(model(inputs), targets)


def backward(loss: torch.Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


class Learner:
    """The ``gradient`` function of a worker, with its own torch model."""

    def __init__(self) -> None:
        self.model = make_model()
        self.flat = FlatParameters(self.model)

    def gradient(self, rank: int, weights: PulledWeights) -> FloatVector:
        self.flat.load(weights.vector)
        buffer = np.empty(weights.vector.size, np.float32)
        with self.flat.gradient_in(buffer):
            backward(loss_of(self.model, rank, weights.version))
        return buffer


@pytest.mark.parametrize(
    ("optimizer", "shards", "transport"),
    [("adam", 1, "ipc"), ("adam", 3, "tcp"), ("rmsprop", 3, "ipc"), ("sgd", 1, "tcp")],
)
def test_two_workers_train_a_torch_model_as_torch_does_on_their_mean_gradient(
    tmp_path: Path, optimizer: str, shards: int, transport: str
) -> None:
    config, make_optimizer = OPTIMIZERS[optimizer]
    updates = 20
    alone = make_model()
    flat = FlatParameters(alone)
    options = {"layout": flat.layout(shards), "start": flat.vector(), "optimizer": config, "transport": transport}
    with served(tmp_path, **options) as running:  # type: ignore[arg-type]
        running.stop_at(updates)
        with ExitStack() as workers:
            for rank in range(2):
                workers.enter_context(Worker(running.cluster, rank, gradient=Learner().gradient))
        trained = running.end_with(updates)

    parameters = list(alone.parameters())
    torch_optimizer = make_optimizer(parameters)
    for version in range(updates):
        torch_optimizer.zero_grad()
        backward((loss_of(alone, 0, version) + loss_of(alone, 1, version)) / 2)
        torch_optimizer.step()
    assert not np.allclose(trained, options["start"], atol=1e-2)  # type: ignore[arg-type]
    np.testing.assert_allclose(trained, flat.vector(), rtol=1e-4, atol=1e-5)


def test_flat_parameters_are_views_of_the_vector_and_gradients_views_of_the_buffer() -> None:
    model = make_model()
    flat = FlatParameters(model)
    before = flat.vector()
    assert before.size == flat.layout(1).count == sum(p.numel() for p in model.parameters())
    vector, buffer = before.copy(), np.full(before.size, 9, np.float32)
    flat.load(vector)
    np.testing.assert_array_equal(flat.vector(), before)
    vector += 1
    np.testing.assert_array_equal(flat.vector(), before + 1)
    with flat.gradient_in(buffer):
        backward(loss_of(model, 0, 0))
    expected = torch.cat([p.reshape(-1) for p in torch.autograd.grad(loss_of(model, 0, 0), list(model.parameters()))])
    np.testing.assert_array_equal(buffer, expected.numpy())
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert np.shares_memory(parameter.grad.numpy(), buffer)
        assert np.shares_memory(parameter.detach().numpy(), vector)
    with flat.gradient_in(buffer):
        pass
    assert not buffer.any(), "a gradient must start at zero"


def test_frozen_parameters_are_not_part_of_the_vector_and_other_dtypes_are_refused() -> None:
    model = make_model()
    first = next(model.parameters())
    first.requires_grad = False
    assert FlatParameters(model).vector().size == sum(p.numel() for p in model.parameters()) - first.numel()
    with pytest.raises(TypeError, match="float32"):
        FlatParameters(make_model().double())


def test_bf16_payloads_carry_rounded_weights_and_leave_the_master_weights_float32(tmp_path: Path) -> None:
    with served(tmp_path, codec="bf16", transport="tcp") as running:
        running.stop_at(20)
        with Worker(running.cluster, 0) as first, Worker(running.cluster, 1):
            pass
        master = running.end_with(20)
        np.testing.assert_array_equal(master, running.replay())
        before_last = first.last
    assert before_last is not None
    rounded = CODECS["bf16"].as_float32(CODECS["bf16"].encode(before_last).tobytes())
    np.testing.assert_array_equal(before_last, rounded)
    assert (CODECS["bf16"].as_float32(CODECS["bf16"].encode(master).tobytes()) != master).any()


def test_each_version_is_made_of_exactly_k_ranks_and_every_slice_sent_is_accounted_for(tmp_path: Path) -> None:
    updates, quorum = 60, 3
    with served(tmp_path, workers=4, quorum=quorum, shards=2) as running, Listener(running.cluster) as listener:
        running.stop_at(updates)
        with toy_workers([running.cluster] * 4, pause_s=random_pause_s(0.01)) as workers:
            for worker in workers:
                worker.thread.join(WITHIN_S)

            def sent() -> list[int]:  # a connection can send a last gradient after its worker has heard of the end
                tallies = [worker.connection.tally() for worker in workers]
                return [tally.sent + tally.resent for tally in tallies]

            def counted() -> list[tuple[int, ...]]:
                tallies = [{row[0]: row[1:] for row in stats.tallies} for stats in running.stats()]
                return [tuple(np.sum([tally[rank] for tally in tallies], axis=0)) for rank in range(4)]

            eventually(lambda: [sum(counts) for counts in counted()] == sent(), "every slice counted")
            outcomes = counted()
        np.testing.assert_array_equal(running.end_with(updates), running.replay())
        assert sum(counts[0] for counts in outcomes) == updates * quorum * 2
        assert all(counts[3] == 0 for counts in outcomes), "no contribution must be rejected"
        for worker, counts in zip(workers, outcomes, strict=True):
            tally = worker.connection.tally()
            assert tally.used <= counts[0] <= tally.used + tally.unknown
        for shard, stats in enumerate(running.stats()):
            lines = running.history(shard)
            assert len(lines) == updates
            for column, outcome in ((2, "late"), (3, "duplicate"), (4, "rejected")):
                total = sum(row[column] for row in stats.tallies) + (stats.unattributed if outcome == "rejected" else 0)
                assert sum(line[outcome] for line in lines) <= total, "later contributions have no line"
            for line in lines:
                assert line["ranks"] == sorted(line["ranks"])
                assert (line["view"], line["generation"]) == (1, 1)
            heard = listener.weights[shard]
            assert len(heard) > 5
            assert listener.contradictions == []
            for (_, version), (message, crc32) in heard.items():
                assert message.crc32 == crc32
                if version:
                    assert (lines[version - 1]["crc32"], tuple(lines[version - 1]["ranks"])) == (crc32, message.ranks)


def test_nothing_is_published_before_a_quorum_has_subscribed(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=1) as running,
        Listener(running.cluster) as listener,
        Connection(running.cluster, 0, timing=QUICK_WORKER) as first,
    ):
        eventually(lambda: running.stats()[0].present == (0,), "worker 0")
        with pytest.raises(ClusterError, match="no version above -1"):
            first.pull(timeout_s=0.5)
        heard = len(listener.said[0])
        eventually(lambda: len(listener.said[0]) > heard + 2, "heartbeats")
        assert listener.newest(0) == -1
        with Connection(running.cluster, 1, timing=QUICK_WORKER) as second:
            assert second.pull(timeout_s=10) is not None
            assert first.pull(timeout_s=10) is not None
            eventually(lambda: listener.newest(0) == 0, "version 0")


def test_a_pull_that_timed_out_does_not_answer_a_later_one(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=1, workers=2, quorum=1) as running,
        Connection(running.cluster, 0) as patient,
        Connection(running.cluster, 1) as impatient,
    ):
        weights = patient.pull(timeout_s=10)
        assert weights is not None
        assert impatient.pull(timeout_s=10) is not None
        with pytest.raises(ClusterError, match="no version above 0"):
            impatient.pull(0, timeout_s=0.1)
        patient.push(weights, patient.gradient_buffer())
        eventually(lambda: impatient.passed(0), "version 1")
        found = impatient.pull(0, timeout_s=10)
        assert found is not None
        assert found.version == 1
        with pytest.raises(ClusterError, match="no version above 1"):
            impatient.pull(1, timeout_s=0.2)


def pulled(connection: Connection, above: int = -1) -> PulledWeights:
    weights = connection.pull(above, timeout_s=10)
    assert weights is not None, "the run has ended"
    return weights


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_gradient_names_the_weights_it_was_computed_on_after_a_pull_that_timed_out(
    tmp_path: Path, asynchronous: bool
) -> None:
    with (
        served(tmp_path, shards=1, workers=2, quorum=1, asynchronous=asynchronous) as running,
        Connection(running.cluster, 0) as busy,
        Connection(running.cluster, 1) as impatient,
    ):
        first, weights = pulled(impatient), pulled(busy)
        if asynchronous:  # otherwise, the weights of the last pull answer the next one
            os.kill(running.pid(0), signal.SIGSTOP)
            impatient.push(first, impatient.gradient_buffer())
        with pytest.raises(ClusterError, match="no version above 0"):
            impatient.pull(0, timeout_s=0.2)
        os.kill(running.pid(0), signal.SIGCONT)
        for _ in range(3):
            busy.push(weights, busy.gradient_buffer())
            weights = pulled(busy, weights.version)
        newest = 4 if asynchronous else 3
        running.wait_for(newest)
        eventually(lambda: impatient.passed(newest - 1), "the newest version")
        if not asynchronous:
            impatient.push(first, impatient.gradient_buffer())
            eventually(lambda: impatient.tally().skipped == 1, "a skipped slice")
        found = pulled(impatient, 0)
        assert found.version == newest
        impatient.push(found, impatient.gradient_buffer())
        assert pulled(impatient, newest).version == newest + 1
        last = running.history(0)[-1]
        assert (last["ranks"], last["version"], last.get("staleness", [0])) == ([1], newest + 1, [0])


def test_gradients_of_the_caller_are_not_kept(tmp_path: Path) -> None:
    with served(tmp_path, shards=2, workers=1) as running, Connection(running.cluster, 0) as connection:
        weights, gradients = pulled(connection), list[weakref.ref[FloatVector]]()
        for _ in range(50):
            gradient = np.zeros(1000, np.float32)
            gradients.append(weakref.ref(gradient))
            connection.push(weights, gradient)
            weights = pulled(connection, weights.version)
        del gradient
        eventually(lambda: sum(each() is not None for each in gradients) <= MOST_KEPT, "few gradients are left")


@pytest.mark.parametrize("codec", ["f32", "bf16"])
def test_the_buffers_of_gradients_are_used_again(tmp_path: Path, codec: str) -> None:
    with served(tmp_path, shards=2, workers=1, codec=codec) as running, Connection(running.cluster, 0) as connection:
        weights, buffers = pulled(connection), dict[int, FloatVector]()
        for _ in range(50):
            buffer = connection.gradient_buffer()
            assert connection.gradient_buffer() is buffer, "the same vector until it is pushed"
            buffers[buffer.ctypes.data] = buffer
            connection.push(weights, buffer)
            weights = pulled(connection, weights.version)
        assert len(buffers) <= MOST_KEPT + 1


@pytest.mark.parametrize(("codec", "number"), [("f32", np.nan), ("f32", -np.inf), ("bf16", np.nan), ("bf16", 3.4e38)])
def test_a_gradient_that_shards_would_reject_is_not_sent(tmp_path: Path, codec: str, number: float) -> None:
    with served(tmp_path, shards=1, workers=1, codec=codec) as running, Connection(running.cluster, 0) as connection:
        weights, gradient = pulled(connection), connection.gradient_buffer()
        gradient[7] = number
        with pytest.raises(ClusterError, match=f"the gradient of version 0 is not finite as {codec}"):
            connection.push(weights, gradient)
        connection.push(weights, np.zeros_like(gradient))
        assert pulled(connection, 0).version == 1


def test_a_worker_that_cannot_send_its_gradient_gives_up(tmp_path: Path) -> None:
    with served(tmp_path, shards=1, workers=1) as running:
        cluster = running.cluster
        nowhere = {**cluster.endpoints[0], "grad": f"ipc://{tmp_path}/nothing-listens"}
        cluster = replace(cluster, endpoints=(nowhere,))
        with Connection(cluster, 0, timing=replace(QUICK_WORKER, lease_s=1.0)) as connection:
            connection.push(pulled(connection), connection.gradient_buffer())
            with pytest.raises(ClusterError, match="shard 0 answers, but no gradient could be sent to it for 5 s"):
                connection.pull(0, timeout_s=10)


@pytest.mark.timeout(120)
def test_a_signal_that_does_not_wake_the_main_thread_ends_a_pull(tmp_path: Path) -> None:
    with served(tmp_path, workers=1) as running, Connection(running.cluster, 0, timing=QUICK_WORKER) as connection:
        assert connection.pull() is not None
        with pytest.raises(Interrupted), signal_that_does_not_wake():
            connection.pull(0)


def test_a_late_joiner_gets_the_newest_version_at_once(tmp_path: Path) -> None:
    go_on = threading.Event()

    def pause_s(_: int, version: int) -> float:
        if version == 100:
            go_on.wait(20)
        return 0.0

    with served(tmp_path, workers=2, quorum=1) as running, Worker(running.cluster, 0, pause_s=pause_s) as first:
        running.stop_at(120)
        eventually(lambda: first.version == 100, "version 100")
        with Worker(running.cluster, 1) as late:
            eventually(lambda: late.version >= 100, "the late joiner's first version")
            go_on.set()
        assert late.pulled[0] == (1, 100)
        first.thread.join(WITHIN_S)
        np.testing.assert_array_equal(running.end_with(120), running.replay())


def test_a_subscriber_that_reads_late_still_gets_the_published_weights(tmp_path: Path) -> None:
    with (
        served(tmp_path, count=500_000, shards=1, workers=1, transport="tcp") as running,
        zmq.Context() as context,
        context.socket(zmq.SUB) as late,
        ExitStack() as workers,
    ):
        late.rcvhwm = 1
        late.subscribe(m.TOPIC_WEIGHTS)
        late.connect(running.cluster.endpoints[0]["weights"])
        workers.enter_context(Worker(running.cluster, 0))
        running.wait_for(30)  # by now, all slots of the shard have been overwritten several times
        for _ in range(8):
            _, header, payload = late.recv_multipart()
            message = framing.decode(header)
            assert isinstance(message, m.Weights)
            assert zlib.crc32(payload) == message.crc32
        running.finish(workers)


def test_a_worker_can_leave_and_come_back(tmp_path: Path) -> None:
    with served(tmp_path, workers=2, quorum=1) as running, Worker(running.cluster, 0, pause_s=random_pause_s(0.02)):
        for _ in range(2):
            with Worker(running.cluster, 1) as guest:
                eventually(lambda guest=guest: guest.connection.tally().used > 3, "contributions")  # type: ignore[misc]
                eventually(lambda: all(stats.present == (0, 1) for stats in running.stats()), "both ranks")
                guest.leaving.set()
            eventually(lambda: all(stats.present == (0,) for stats in running.stats()), "rank 1 gone")
        running.stop_soon()
    for shard in range(2):
        ranks = {rank for line in running.history(shard) for rank in line["ranks"]}
        assert ranks == {0, 1}


def test_a_second_process_of_a_rank_takes_over_and_the_first_is_refused(tmp_path: Path) -> None:
    with served(tmp_path, workers=1) as running, Connection(running.cluster, 0, timing=QUICK_WORKER) as first:
        assert first.pull(timeout_s=10) is not None
        time.sleep(0.002)  # incarnations are times in milliseconds
        with Worker(running.cluster, 0):
            with pytest.raises(ClusterError, match=r"refuses worker 0: another process has taken rank 0"):
                first.pull(10_000, timeout_s=10)
            running.stop_soon()


def test_a_stranger_is_refused_with_a_reason(tmp_path: Path) -> None:
    with served(tmp_path) as running:
        cluster = running.cluster
        renamed = replace(cluster.layout, tensors=(("other", cluster.layout.tensors[0][1]),))
        for stranger, rank, sentence in (
            (
                replace(cluster, layout=renamed),
                0,
                r"your layout is \w{16}, but the run has \w{16}: use the one in cluster\.json\.",
            ),
            (replace(cluster, run="other"), 0, r"shard \d at this address serves run \w+, not run other\."),
            (cluster, 5, r"rank 5 is not a member of this run\."),
        ):
            with (
                Connection(stranger, rank, timing=QUICK_WORKER) as connection,
                pytest.raises(ClusterError, match=rf"shard \d refuses worker {rank}: {sentence}"),
            ):
                connection.pull(timeout_s=5)


def test_only_the_supervisor_changes_views_stops_or_loads(tmp_path: Path) -> None:
    with served(tmp_path, shards=1, workers=2) as running, Wire(running.cluster.endpoints[0]) as wire:
        run = running.cluster.run
        assert isinstance(wire.join(running.cluster, 0, 1), m.Welcome)
        before = running.stats()[0]
        impostor = replace(wire.hello(running.cluster, 0, 2), role="supervisor", secret="guess")
        refusal = wire.ask(impostor)
        assert isinstance(refusal, m.Refuse)
        assert refusal.code == "secret"
        view: dict[str, object] = {"run": run, "view": 9, "quorum": 1, "members": (0,)}
        for message, payload in (
            (m.ViewChange(**view), None),  # type: ignore[arg-type]
            (m.Stop(run=run, version=0), None),
            (m.Checkpoint(run=run, version=0), None),
            (m.Fetch(run=run, version=0, offset=0), None),
            (m.StatsRequest(run=run), None),
            (m.Load(**view, generation=7, version=0, offset=0, total=8000), bytes(8000)),  # type: ignore[arg-type]
        ):
            wire.control.send_multipart([framing.encode(message)] + ([payload] if payload else []))
        eventually(lambda: running.stats()[0].unattributed == before.unattributed + 7, "seven rejections")
        after = running.stats()[0]
        assert (after.view, after.quorum, after.generation, after.state) == (1, 2, 1, "open")


def test_a_piece_of_a_load_that_does_not_continue_the_pieces_before_it_gets_no_answer(tmp_path: Path) -> None:
    with served(tmp_path, shards=1, count=1000) as running:
        control, before = running.shards.control, running.stats()[0]
        whole = 2 * 4 * 1000  # weights and momentum
        pieces = [(4000, whole, 4000), (0, whole - 4, 4000), (0, whole, whole + 4)]  # offset, total and length of each
        pieces += [(0, whole, 4000), (3996, whole, 4000), (0, whole, 4000), (4000, whole, 4000)]
        for offset, total, length in pieces:
            view: dict[str, Any] = {"run": running.cluster.run, "view": 2, "quorum": 2, "members": (0, 1)}
            assert control.send(0, m.Load(**view, generation=2, version=0, offset=offset, total=total), bytes(length))
        loaded: list[int] = []

        def has_loaded() -> bool:
            loaded.extend(message.offset for _, message in control.arrivals(0.1) if isinstance(message, m.Loaded))
            return loaded[-1:] == [whole]

        eventually(has_loaded, "the last piece")
        assert loaded == [4000, 4000, whole]
        after = running.stats()[0]
        assert (after.generation, after.view, after.unattributed - before.unattributed) == (2, 2, 4)


@pytest.mark.parametrize("number", [3e38, 1e21], ids=["the sum overflows", "adam's square overflows"])
def test_a_non_finite_update_is_not_stored_and_its_ranks_are_named(tmp_path: Path, number: float) -> None:
    with served(tmp_path, workers=2, optimizer=ADAM) as running, ExitStack() as stack:
        workers = [stack.enter_context(Connection(running.cluster, rank, timing=QUICK_WORKER)) for rank in range(2)]
        for version in range(3):
            for rank, connection in enumerate(workers):
                weights = connection.pull(version - 1, timeout_s=10)
                assert weights is not None
                gradient = toy_gradient(rank, version, 1000)
                if version == 2:
                    gradient[17] = number  # only on shard 0
                connection.push(weights, gradient)
        eventually(lambda: bool(running.stats()[0].failure), "the failure")
        eventually(lambda: running.stats()[1].version == 3, "the other shard's version")
        first, second = running.stats()
        assert first.failure == "version 3 has numbers that are not finite, from contributions of ranks 0, 1"
        assert (first.version, first.state, second.failure) == (2, "ended", "")
        assert [line["version"] for line in running.history(0)] == [1, 2]
        running.kill(0)
        assert running.restart(0).version == 2, "a part of the update was stored"
        assert np.isfinite(running.end_with(2)).all()


def test_weights_that_are_finite_only_as_float32_are_not_published_as_bfloat16(tmp_path: Path) -> None:
    plain = OptimizerConfig(name="sgd", learning_rate=1.0)
    with (
        served(tmp_path, workers=1, codec="bf16", optimizer=plain, start=np.zeros(1000, np.float32)) as running,
        Connection(running.cluster, 0, timing=QUICK_WORKER) as connection,
    ):
        for version, number in enumerate((-3.38e38, -2e36)):
            gradient = np.zeros(1000, np.float32)
            gradient[17] = number
            connection.push(pulled(connection, version - 1), gradient)
        eventually(lambda: bool(running.stats()[0].failure), "the failure")
        first = running.stats()[0]
        assert first.failure == "version 2 has numbers that are not finite, from contributions of rank 0"
        assert (first.version, first.state) == (1, "ended")


def test_the_quorum_can_shrink_while_a_version_waits(tmp_path: Path) -> None:
    with served(tmp_path, workers=3) as running:
        with Worker(running.cluster, 0) as first, Worker(running.cluster, 1):
            running.tell(m.ViewChange(run=running.cluster.run, view=2, quorum=2, members=(0, 1)))
            eventually(lambda: first.version > 10, "versions of two")
            version = running.stop_soon()
        np.testing.assert_array_equal(running.end_with(version), running.replay())
        assert {(line["view"], line["quorum"]) for shard in running.all for line in running.history(shard)} == {(2, 2)}


def test_the_profile_names_no_rank_for_a_version_that_a_smaller_quorum_completed(tmp_path: Path) -> None:
    profiler = ProfilerJob(tmp_path / "profile", "h")
    with served(tmp_path, shards=1, workers=2, profiler=profiler) as running, Worker(running.cluster, 0):
        with Worker(running.cluster, 1) as guest:
            eventually(lambda: guest.version > 3, "versions of two")
            guest.leaving.set()
        eventually(lambda: running.stats()[0].present == (0,) and running.stats()[0].held == (0,), "rank 1 gone")
        waited = running.version()
        running.tell(m.ViewChange(run=running.cluster.run, view=2, quorum=1, members=(0,)))
        running.wait_for(waited + 3)
        running.stop_soon()
    (shard,) = RunTables.read(tmp_path / "profile").of_role("shard")
    table = shard.table("versions")
    closing = dict(zip(table["version"].tolist(), table["closing_rank"].tolist(), strict=True))
    assert closing[0] == NOT_MADE
    assert {closing[version] for version in range(1, waited + 1)} <= {0, 1}
    assert [closing[waited + i] for i in (1, 2, 3)] == [NO_CONTRIBUTION, 0, 0]


def test_all_shards_stop_at_one_version_and_every_pull_returns_none(tmp_path: Path) -> None:
    with served(tmp_path, shards=4, workers=3, quorum=2) as running:
        with toy_workers([running.cluster] * 3, pause_s=random_pause_s(0.01)) as workers:
            running.wait_for(10)
            version = running.stop_soon()
        assert all(worker.ended.is_set() for worker in workers)
        assert [(stats.version, stats.state) for stats in running.stats()] == [(version, "ended")] * 4
        assert [len(running.history(shard)) for shard in running.all] == [version] * 4
        np.testing.assert_array_equal(running.end_with(version), running.replay())


def test_a_stop_can_be_cancelled(tmp_path: Path) -> None:
    with served(tmp_path, workers=1) as running:
        running.stop_at(5)
        with Connection(running.cluster, 0, timing=QUICK_WORKER) as connection:
            version = -1
            while (weights := connection.pull(version, timeout_s=10)) is not None:
                version = weights.version
                connection.push(weights, toy_gradient(0, version, 1000))
        running.stop_at(None)
        assert all(stats.state == "open" for stats in running.stats())
        running.stop_at(10)
        with Worker(running.cluster, 0):
            pass
        np.testing.assert_array_equal(running.end_with(10), running.replay())


def test_a_worker_is_recognized_after_its_control_connection_was_cut(tmp_path: Path) -> None:
    with (
        served(tmp_path, shards=1, workers=2, quorum=1, transport="tcp") as running,
        proxied(running.cluster, {0}) as (cluster, proxies),
        Connection(cluster, 0, timing=QUICK_WORKER) as connection,
    ):
        assert connection.pull(timeout_s=10) is not None
        proxies[0, "control"].cut(heal=True)
        cut_at = time.monotonic()

        def heard_s_after_the_cut() -> float:
            asked_at = time.monotonic()  # the silence is counted until a later time
            return asked_at - running.stats()[0].silent_ms[0] / 1000 - cut_at

        eventually(lambda: heard_s_after_the_cut() > 1.5, "its pings count as its own")
        assert running.stats()[0].unattributed == 0


@pytest.mark.parametrize("address", ["0", "0.0.0.0", "*"])
def test_a_shard_does_not_listen_on_every_network(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClusterError), served(tmp_path, shards=1, transport="tcp", address=address):
        pytest.fail("it listens")
    assert f"cannot bind tcp://{address}:0: it would listen on every network." in capfd.readouterr().err
