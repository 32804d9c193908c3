"""CURVE on real sockets: who can connect, and who can send what. Each key belongs to one run and one rank."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from support.messages import gradient_header
from support.network import Wire, proxied
from support.rig import (
    QUICK_WORKER,
    SGD,
    WITHIN_S,
    Served,
    Worker,
    eventually,
    flat_layout,
    served,
    start_vector,
    toy_gradient,
)
from zmq.utils import z85

from zmqrl.errors import ClusterError, UsageError
from zmqrl.hosts.events import Task
from zmqrl.process_id import shard_id
from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.shard import events as shard_events
from zmqrl.ps.shard.job import ShardJob
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.keys import Authenticator, ClientKeys, KeyPair, RunKeys
from zmqrl.ps.wire.sockets import FailureMonitor, SocketRole, connect, new_context, shard_sockets, worker_sockets
from zmqrl.ps.worker.connection import Connection
from zmqrl.rundir import write_json

pytestmark = pytest.mark.processes

IMPATIENT = replace(QUICK_WORKER, lease_s=5.0)


@contextmanager
def encrypted(directory: Path, **options: Any) -> Iterator[Served]:
    with served(directory, transport="tcp", curve=True, **options) as running:
        yield running


def secrets_of(running: Served) -> list[str]:
    keys = running.shards.keys
    assert keys is not None
    pairs = (keys.supervisor, *keys.workers, *keys.shards)
    return [pair.secret for pair in pairs] + [running.shards.jobs[0].secret]


def wait_for_log(capfd: pytest.CaptureFixture[str], words: str) -> str:
    """Wait until the shards, which are child processes, log ``words``. Returns their output since the last call."""
    logged: list[str] = []

    def has_words() -> bool:
        logged.append(capfd.readouterr().err)
        return words in "".join(logged)

    eventually(has_words, f"{words!r} in the log of a shard")
    return "".join(logged)


# a run


@pytest.mark.parametrize("curve", [False, True])
def test_a_run_gives_the_same_result_with_and_without_curve(tmp_path: Path, curve: bool) -> None:
    with served(tmp_path, transport="tcp", curve=curve) as running, ExitStack() as workers:
        running.stop_at(20)
        for rank in range(2):
            workers.enter_context(Worker(running.shards.cluster_for(rank), rank))
        workers.close()
        np.testing.assert_array_equal(running.end_with(20), running.replay())
        assert all(stats.unattributed == 0 for stats in running.stats())


def test_a_restarted_shard_uses_the_same_keys(tmp_path: Path) -> None:
    with encrypted(tmp_path, workers=1) as running, ExitStack() as workers:
        workers.enter_context(Worker(running.shards.cluster_for(0), 0))
        running.wait_for(10)
        running.kill(0)
        running.restart(0)
        running.wait_for(running.version() + 10)
        running.finish(workers)


def test_an_eavesdropper_learns_neither_weights_nor_gradients_nor_keys(tmp_path: Path) -> None:
    overheard: dict[bool, bytes] = {}
    for curve in (False, True):
        with (
            served(tmp_path / str(curve), transport="tcp", curve=curve, workers=1, shards=1) as running,
            proxied(running.shards.cluster_for(0), {0}) as (cluster, proxies),
        ):
            running.stop_at(3)
            with Worker(cluster, 0):
                pass
            overheard[curve] = b"\n".join(bytes(proxy.overheard) for proxy in proxies.values())
            said = {
                "weights": start_vector(1000)[100:108].tobytes(),
                "gradient": toy_gradient(0, 1, 1000)[100:140].tobytes(),
                "header": b"zmqrl/1",
                "run": running.cluster.run.encode(),
            }
            # The search finds every text in plain traffic and none in encrypted traffic.
            assert [name for name, code in said.items() if code in overheard[curve]] == ([] if curve else list(said))
            keys = running.shards.keys
        if keys is not None:
            for pair in (keys.supervisor, *keys.workers, *keys.shards):
                for key in (pair.public, pair.secret):
                    assert key.encode() not in overheard[curve]
                    assert z85.decode(key) not in overheard[curve]
    assert all(len(code) > 3 * 2 * 4000 for code in overheard.values()), "too few slices have passed"


# rejected connections


def without_keys(keys: ClientKeys) -> ClientKeys | None:
    return None


def with_an_unknown_key(keys: ClientKeys) -> ClientKeys:
    return replace(keys, own=KeyPair.make())


def to_another_shard(keys: ClientKeys) -> ClientKeys:
    return replace(keys, shards=tuple(reversed(keys.shards)))


def of_another_run(keys: ClientKeys) -> ClientKeys:
    return RunKeys.make(workers=2, shards=2).of_worker(1)


@pytest.mark.parametrize(
    "changed",
    [
        with_an_unknown_key,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (without_keys, to_another_shard, of_another_run)),
    ],
)
def test_a_stranger_gets_an_error_about_the_handshake_while_the_run_continues(
    tmp_path: Path, changed: Callable[[ClientKeys], ClientKeys | None], capfd: pytest.CaptureFixture[str]
) -> None:
    with encrypted(tmp_path, workers=2, quorum=1) as running, ExitStack() as workers:
        workers.enter_context(Worker(running.shards.cluster_for(0), 0))
        running.wait_for(5)
        known = running.shards.cluster_for(1)
        assert known.keys is not None
        with (
            Connection(replace(known, keys=changed(known.keys)), 1, timing=IMPATIENT) as stranger,
            pytest.raises(ClusterError, match=r"no word from shard \d for \d+ s: the handshake with shard \d failed"),
        ):
            stranger.pull()
        running.wait_for(running.version() + 5)
        assert all(stats.present == (0,) for stats in running.stats())
        wait_for_log(capfd, "x handshake failed")
        running.finish(workers)


def test_a_plaintext_subscriber_and_a_plaintext_supervisor_get_nothing(tmp_path: Path) -> None:
    with encrypted(tmp_path, workers=1, shards=1) as running, ExitStack() as workers:
        with Wire(running.cluster.endpoints[0], send_most=10) as wire:
            wire.weights.send(b"\1")
            wire.control.send(b"hello")
            workers.enter_context(Worker(running.shards.cluster_for(0), 0))
            running.wait_for(20)
            assert not wire.weights.poll(500)
            assert not wire.control.poll(0)
        assert running.stats()[0].unattributed == 0
        running.finish(workers)


def test_no_connection_is_accepted_while_no_authenticator_runs() -> None:
    keys = RunKeys.make(workers=1, shards=1)
    ours, theirs = new_context(), new_context()
    try:
        sockets = shard_sockets(ours, 1000, keys.of_shard(0))
        endpoints: dict[SocketRole, str] = {}
        for role, socket in sockets.items():
            socket.bind("tcp://127.0.0.1:0")
            endpoints[role] = str(socket.getsockopt_string(zmq.LAST_ENDPOINT))
        client = worker_sockets(theirs, 0, 1, keys.of_worker(0))
        connect(client, endpoints)
        assert not sockets["weights"].poll(1000)
        assert not client["control"].poll(0, zmq.POLLOUT)
        authenticator = Authenticator(ours, keys.of_shard(0))
        late = worker_sockets(theirs, 0, 2, keys.of_worker(0))
        connect(late, endpoints)
        assert late["control"].poll(60_000, zmq.POLLOUT)
        authenticator.stop()
    finally:
        theirs.destroy(linger=0)
        ours.destroy(linger=0)


def test_a_worker_cannot_join_an_encrypted_run_without_keys(tmp_path: Path) -> None:
    with (
        encrypted(tmp_path, shards=1) as running,
        pytest.raises(UsageError, match="this run is encrypted: worker 0 cannot join without"),
    ):
        Connection(replace(running.cluster, key_files={}), 0)


# permissions by key


class Impostor:
    """Rank 0, which sends over raw connections to the only shard. The other member is rank 1."""

    def __init__(self, running: Served, stack: ExitStack) -> None:
        self.running = running
        self.cluster = running.cluster
        self.own = self.connect(stack, 0)
        self.victim = self.connect(stack, 1)
        assert isinstance(self.own.join(self.cluster, 0, 10), m.Welcome)
        assert isinstance(self.victim.join(self.cluster, 1, 11), m.Welcome)

    def connect(self, stack: ExitStack, rank: int) -> Wire:
        keys = self.running.shards.cluster_for(rank).keys
        return stack.enter_context(Wire(self.cluster.endpoints[0], keys=keys))

    def stats(self) -> m.Stats:
        return self.running.stats()[0]

    def rejected(self) -> int:
        return self.stats().unattributed

    def present_while_the_victim_pings(self) -> tuple[int, ...]:
        assert isinstance(self.victim.ask(ping(self.cluster.run, 1, 11)), m.Pong)
        return self.stats().present

    def await_rejection(self, since: int, count: int = 1) -> None:
        eventually(lambda: self.rejected() >= since + count, "the rejection")
        assert self.rejected() == since + count


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[Impostor]:
    with encrypted(tmp_path, shards=1, workers=2, quorum=2) as running, ExitStack() as stack:
        yield Impostor(running, stack)


def gradient(cluster: Cluster, rank: int, incarnation: int) -> list[bytes]:
    header = gradient_header(run=cluster.run, layout=cluster.layout.hash, rank=rank, incarnation=incarnation)
    return [framing.encode(header), toy_gradient(rank, 0, 1000).tobytes()]


def test_a_contribution_under_the_name_of_another_rank_is_rejected(impostor: Impostor) -> None:
    before = impostor.rejected()
    impostor.own.grad.send_multipart(gradient(impostor.cluster, 1, 11))
    impostor.await_rejection(before)
    assert impostor.stats().held == ()
    assert all(row[4] == 0 for row in impostor.stats().tallies), "the shard must not blame the victim"
    impostor.own.grad.send_multipart(gradient(impostor.cluster, 0, 10))
    eventually(lambda: impostor.stats().held == (0,), "its own contribution")
    impostor.victim.grad.send_multipart(gradient(impostor.cluster, 1, 11))
    eventually(lambda: impostor.stats().version == 1, "version 1")


def test_the_shard_logs_the_owner_of_a_key_used_under_another_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with encrypted(tmp_path, shards=1) as running, ExitStack() as stack:
        impostor = Impostor(running, stack)
        impostor.own.grad.send_multipart(gradient(impostor.cluster, 1, 11))
        wait_for_log(capfd, "because the sender's key is for another rank or role: 1 x GRADIENT by worker 0")


def test_a_hello_under_the_name_of_another_rank_is_refused(impostor: Impostor) -> None:
    before = impostor.rejected()
    refusal = impostor.own.ask(impostor.own.hello(impostor.cluster, 1, 99))
    assert isinstance(refusal, m.Refuse)
    assert refusal.code == "key"
    assert impostor.rejected() == before + 1
    pong = impostor.victim.ask(ping(impostor.cluster.run, 1, 11))
    assert isinstance(pong, m.Pong), "rank 1 must not be replaced"


def ping(run: str, rank: int, incarnation: int) -> m.Ping:
    return m.Ping(run=run, rank=rank, incarnation=incarnation, generation=1, version=0, computed=0, sent_us=1)


def test_pings_reports_and_leave_under_another_rank_are_rejected_without_an_answer(
    impostor: Impostor,
) -> None:
    before, run = impostor.rejected(), impostor.cluster.run
    about = {"run": run, "rank": 1, "incarnation": 11}
    for message in (ping(run, 1, 11), m.Report(**about, figures=b"\x80"), m.Leave(**about)):  # type: ignore[arg-type]
        impostor.own.control.send(framing.encode(message))
    impostor.await_rejection(before, 3)
    assert not impostor.own.control.poll(100)
    assert impostor.stats().present == (0, 1)


def test_a_subscription_cannot_make_another_rank_present_or_absent(impostor: Impostor) -> None:
    before = impostor.rejected()
    for topic in (b"P/1/12", b"P/1/11"):
        impostor.own.weights.send(b"\1" + topic)
    impostor.await_rejection(before, 2)
    impostor.own.weights.close()
    present: tuple[int, ...] = (0, 1)
    while 0 in present:
        present = impostor.present_while_the_victim_pings()
        assert 1 in present


@pytest.mark.parametrize("words", [(b"\1", b"\0"), (b"\1", b"\1", b"\1")], ids=["both", "many"])
def test_a_rank_cannot_hide_the_end_of_another_rank(impostor: Impostor, words: tuple[bytes, ...]) -> None:
    before = impostor.rejected()
    for word in words:
        impostor.own.weights.send(word + b"P/1/11")
    impostor.await_rejection(before, len(words))
    assert 1 in impostor.present_while_the_victim_pings()
    impostor.victim.weights.close()
    eventually(lambda: 1 not in impostor.stats().present, "the end of rank 1")


def test_ended_subscriptions_cannot_keep_a_dead_rank_present(impostor: Impostor, tmp_path: Path) -> None:
    assert 1 in impostor.present_while_the_victim_pings()
    impostor.victim.weights.close()
    impostor.victim.control.close()
    give_up_at = time.monotonic() + WITHIN_S
    while 1 in impostor.stats().present:
        assert time.monotonic() < give_up_at, "rank 1 must become absent"
        with Wire(impostor.cluster.endpoints[0], keys=impostor.own.keys) as again:
            again.weights.send(b"\1P/1/11")
            time.sleep(0.3)


def test_a_worker_cannot_command_a_shard_even_with_the_secret_of_the_supervisor(impostor: Impostor) -> None:
    running, run = impostor.running, impostor.cluster.run
    before = impostor.stats()
    hello = impostor.own.hello(impostor.cluster, 0, 20)
    supervisor = replace(hello, role="supervisor", secret=running.shards.jobs[0].secret)
    refusal = impostor.own.ask(supervisor)
    assert isinstance(refusal, m.Refuse)
    assert refusal.code == "key"
    view: dict[str, Any] = {"run": run, "view": 9, "quorum": 1, "members": (0,)}
    commands: list[m.Message] = [
        m.StatsRequest(run=run),
        m.Stop(run=run, version=0),
        m.ViewChange(**view),
        m.Checkpoint(run=run, version=0),
        m.Fetch(run=run, version=0, offset=0),
    ]
    for command in commands:
        impostor.own.control.send(framing.encode(command))
    load = m.Load(**view, generation=9, version=0, offset=0, total=4)
    impostor.own.control.send_multipart([framing.encode(load), b"1234"])
    impostor.await_rejection(before.unattributed, 2 + len(commands))
    assert not impostor.own.control.poll(100)
    after = impostor.stats()
    assert (after.state, after.view, after.generation, after.captured) == ("open", 1, 1, None)
    running.stop_at(0)
    assert impostor.stats().state == "ended", "the supervisor's own key commands"


def test_a_worker_still_gets_snapshots_and_pongs_with_its_own_key(impostor: Impostor) -> None:
    assert isinstance(impostor.own.ask(ping(impostor.cluster.run, 0, 10)), m.Pong)
    assert isinstance(impostor.own.ask(m.SnapshotRequest(run=impostor.cluster.run, version=None)), m.Snapshot)


# places without secrets


def test_secrets_are_not_in_the_repr_of_objects_that_hold_them() -> None:
    keys = RunKeys.make(workers=1, shards=1)
    shard_keys, worker_keys = keys.of_shard(0), keys.of_worker(0)
    layout = flat_layout(100, 1)
    job = ShardJob(
        run="r",
        layout=layout,
        shard=0,
        codec="f32",
        optimizer=SGD,
        bind={},
        secret="of the supervisor",
        state_path=Path("s"),
        history_path=Path("h"),
        keys=shard_keys,
    )
    assert ShardJob.from_json(job.to_json()) == job
    assert ClientKeys.from_json(worker_keys.to_json()) == worker_keys
    carriers = [
        keys,
        shard_keys,
        worker_keys,
        job,
        Cluster(run="r", layout=layout, codec="f32", endpoints=(), keys=worker_keys),
        Task(process=shard_id(0), module="x", job=job.to_json(), log_path=Path("l"), threads=1),
        m.Hello(
            run="r", layout="l", role="supervisor", rank=0, incarnation=1, host="h", pid=1, secret="of the supervisor"
        ),
        shard_events.Identity(
            run="r", layout="l", shard=0, incarnation=1, codec="f32", payload_bytes={}, secret="of the supervisor"
        ),
    ]
    secrets = [pair.secret for pair in (keys.supervisor, *keys.workers, *keys.shards)]
    for carrier in carriers:
        shown = repr(carrier)
        assert not [secret for secret in (*secrets, "of the supervisor") if secret in shown]


def test_secrets_are_not_in_the_arguments_the_environment_or_the_log_of_a_shard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with encrypted(tmp_path, workers=1) as running, ExitStack() as workers:
        workers.enter_context(Worker(running.shards.cluster_for(0), 0))
        running.wait_for(5)
        stranger = replace(running.shards.cluster_for(0), keys=RunKeys.make(workers=1, shards=2).of_worker(0))
        with Connection(stranger, 0, timing=IMPATIENT) as connection, pytest.raises(ClusterError):
            connection.pull()
        public = [
            Path(f"/proc/{running.pid(shard)}/{name}").read_bytes().decode(errors="replace")
            for shard in running.all
            for name in ("cmdline", "environ")
        ]
        logged = wait_for_log(capfd, "x handshake failed")
        running.finish(workers)
        secrets = secrets_of(running)
    for text in (*public, logged, *capfd.readouterr()):
        assert not [secret for secret in secrets if secret in text]


# key files


def test_a_key_file_is_valid_only_for_its_rank_and_run(tmp_path: Path) -> None:
    keys = RunKeys.make(workers=2, shards=3).of_worker(1)
    path = tmp_path / "worker-1.json"
    with pytest.raises(UsageError, match=r"cannot read .*worker-1\.json, the keys of rank 1: No such file"):
        ClientKeys.read(path, run="r", rank=1)
    write_json(path, {"run": "r", "rank": 1, **keys.to_json()}, mode=0o600)
    assert ClientKeys.read(path, run="r", rank=1) == keys
    for run, rank in (("r", 0), ("other", 1)):
        with pytest.raises(UsageError, match=rf"rank 1 of run r, not of rank {rank} of {run}"):
            ClientKeys.read(path, run=run, rank=rank)


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": "short"},
        {"public": 7},
        {"shards": None},
        {"shards": ["x" * 41]},
        {"secret": '"' * 40},
        {"public": "#" * 40},
    ],
)
def test_an_error_names_a_damaged_key_file_but_not_its_content(tmp_path: Path, changes: dict[str, object]) -> None:
    keys = RunKeys.make(workers=1, shards=1).of_worker(0)
    path = tmp_path / "worker-0.json"
    write_json(path, {"run": "r", "rank": 0, **keys.to_json(), **changes})
    with pytest.raises(UsageError, match=r"worker-0\.json is not a key file\.$"):
        ClientKeys.read(path, run="r", rank=0)


def test_the_log_counts_failed_handshakes_by_cause() -> None:
    keys = RunKeys.make(workers=1, shards=1)
    context = new_context()
    authenticator = Authenticator(context, keys.of_shard(0))
    try:
        sockets = shard_sockets(context, 1000, keys.of_shard(0))
        socket = sockets["control"]
        monitor = FailureMonitor(socket)
        socket.bind("tcp://127.0.0.1:0")
        stranger = context.socket(zmq.DEALER)
        replace(keys.of_worker(0), own=KeyPair.make()).secure(stranger, 0)
        stranger.connect(socket.getsockopt_string(zmq.LAST_ENDPOINT))

        def counted() -> bool:
            monitor.read()
            return "handshake failed auth" in monitor.take()

        eventually(counted, "the failure")
        monitor.close()
    finally:
        authenticator.stop()
        context.destroy(linger=0)
