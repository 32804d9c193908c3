"""A process names the malformed messages that it ignores and their senders, instead of dropping them silently."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from support.network import BareShard
from support.rig import eventually

from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.control import ShardControl
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.events import MalformedArrived
from zmqrl.ps.shard.job import ShardJob
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.shard.reception import Reception
from zmqrl.ps.shard.server import ShardServer
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.keys import RunKeys, Speaker
from zmqrl.ps.wire.sockets import SocketRole, new_context, shard_sockets
from zmqrl.ps.worker import events as worker_events
from zmqrl.ps.worker.connection import Connection
from zmqrl.ps.worker.machine import WorkerMachine
from zmqrl.supervisor.supervisor import MOST_REFUSED, Supervisor

LAYOUT = Layout.of([("w", (16,))], 1)
BYE = framing.encode(m.Bye(run="r", shard=0, incarnation=2, generation=3, version=4))
LEFT = framing.encode(m.Left(run="r", shard=0))
LOAD = framing.encode(
    m.Load(run="r", generation=2, version=0, view=1, quorum=1, members=(0,), offset=0, total=1),
)


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[BareShard]:
    with BareShard(tmp_path, 64) as made:
        yield made


def frames(*parts: bytes) -> list[zmq.Frame]:
    return [zmq.Frame(part) for part in parts]


def test_a_shard_counts_and_names_malformed_messages() -> None:
    reception = Reception(None, logging.getLogger("test"))
    events = [
        reception.control(frames(b"peer", BYE)),
        reception.control(frames(b"peer", LOAD)),
        reception.control(frames(b"peer", LEFT, b"payload")),
        reception.control(frames(b"peer")),
        reception.gradient(frames(BYE, b"payload")),
        reception.gradient(frames(LEFT)),
        reception.gradient(frames(b"garbage", b"payload")),
        reception.presence(frames(b"\1Q")),
        reception.presence(frames(b"Q")),
    ]
    assert events == [MalformedArrived()] * 9
    reasons = (
        "BYE on PULL of a shard",
        "BYE on ROUTER of a shard",
        "LEFT on PULL of a shard",
        "LEFT on ROUTER of a shard",
        "LOAD with 0 frames after the header",
        "a message of 0 frames on ROUTER of a shard",
        "an unknown topic on XPUB of a shard",
        "no subscription on XPUB of a shard",
        "not MessagePack: ExtraData",
    )
    assert reception.ignored.take(0.0) == "ignored messages: " + ", ".join(
        f"1 x {reason} from an unknown sender" for reason in reasons
    )


@pytest.mark.parametrize(("transport", "sender"), [("ipc", "process {pid}"), ("tcp", "127.0.0.1")])
def test_a_shard_without_keys_names_the_process_or_the_address_of_the_sender(
    tmp_path: Path, transport: str, sender: str
) -> None:
    sender = sender.format(pid=os.getpid())
    reception, context = Reception(None, logging.getLogger("test")), new_context()
    try:
        receivers = shard_sockets(context, 64)
        senders: dict[SocketRole, int] = {"grad": zmq.PUSH, "control": zmq.DEALER}
        for role, kind in senders.items():
            receivers[role].bind(f"ipc://{tmp_path}/{role}" if transport == "ipc" else "tcp://127.0.0.1:*")
            with context.socket(kind) as socket:
                socket.connect(receivers[role].getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
                socket.send(BYE)
                arrived = receivers[role].recv_multipart(copy=False)
            (reception.gradient if role == "grad" else reception.control)(arrived)
        assert reception.ignored.take_all() == (
            f"ignored messages: 1 x BYE on PULL of a shard from {sender}, 1 x BYE on ROUTER of a shard from {sender}"
        )
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize(("speaker", "sender"), [(3, "worker 3"), ("supervisor", "supervisor")])
def test_a_shard_with_keys_names_the_owner_of_the_key(
    speaker: Speaker, sender: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reception = Reception(RunKeys.make(workers=4, shards=1).of_shard(0), logging.getLogger("test"))
    monkeypatch.setattr(reception, "_speaker", lambda frame: speaker)
    reception.control(frames(b"peer", BYE))
    assert reception.ignored.take_all() == f"ignored messages: 1 x BYE on ROUTER of a shard from {sender}"


def test_a_shard_names_the_last_ignored_messages_when_it_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = ShardJob(
        run="r",
        layout=LAYOUT,
        shard=0,
        codec="f32",
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1),
        bind={},
        secret="secret",
        state_path=tmp_path / "shard-0.slots",
        history_path=tmp_path / "shard-0.jsonl",
    )
    server = ShardServer(job, logging.getLogger("test"))
    server.reception.control(frames(b"peer", BYE))
    server.close()
    assert "ignored messages: 1 x BYE on ROUTER of a shard from an unknown sender" in caplog.text


@pytest.mark.processes
def test_a_worker_names_misplaced_kinds(
    shard: BareShard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "TELL_EVERY_S", 0.0)
    cluster = Cluster(run="r", layout=LAYOUT, codec="f32", endpoints=(shard.endpoints,))
    with Connection(cluster, 0):
        while shard.sockets["weights"].recv() != b"\1X":
            pass
        shard.sockets["weights"].send_multipart([m.TOPIC_BYE, LEFT])
        peer = shard.sockets["control"].recv_multipart()[0]
        shard.sockets["control"].send_multipart([peer, BYE])
        names = ("LEFT on SUB of a worker from shard 0", "BYE on DEALER of a worker from shard 0")
        eventually(lambda: all(name in caplog.text for name in names), "both names in the log")
    assert {record.levelname for record in caplog.records} == {"WARNING"}


@pytest.mark.processes
def test_a_worker_passes_on_the_payload_of_every_kind_that_has_one(
    shard: BareShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "WITH_PAYLOAD", m.WITH_PAYLOAD | {m.Need, m.Missing})
    need = m.Need(run="another", shard=0, incarnation=2, generation=3, version=4, view=5, held=())
    missing = m.Missing(run="another", shard=0, version=4)
    arrived: list[tuple[m.Message, bytes | None]] = []
    handle = WorkerMachine.handle

    def noting(machine: WorkerMachine, event: worker_events.Event, now: float) -> list[worker_events.Action]:
        if isinstance(event, worker_events.PublicationArrived | worker_events.ControlArrived):
            arrived.append((event.message, bytes(event.payload.buffer) if event.payload is not None else None))
        return handle(machine, event, now)

    monkeypatch.setattr(WorkerMachine, "handle", noting)
    with Connection(Cluster(run="r", layout=LAYOUT, codec="f32", endpoints=(shard.endpoints,)), 0):
        while shard.sockets["weights"].recv() != b"\1N":
            pass
        shard.sockets["weights"].send_multipart([m.TOPIC_NEED, framing.encode(need), b"one"])
        peer = shard.sockets["control"].recv_multipart()[0]
        shard.sockets["control"].send_multipart([peer, framing.encode(missing), b"two"])
        eventually(lambda: len(arrived) == 2, "both messages")
    assert sorted(arrived, key=lambda each: each[1] or b"") == [(need, b"one"), (missing, b"two")]


@pytest.mark.processes
def test_a_worker_names_the_last_ignored_messages_when_it_ends(
    shard: BareShard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framing, "TELL_EVERY_S", float("inf"))
    cluster = Cluster(run="r", layout=LAYOUT, codec="f32", endpoints=(shard.endpoints,))
    with Connection(cluster, 0) as connection:
        while shard.sockets["weights"].recv() != b"\1X":
            pass
        name = "1 x LEFT on SUB of a worker from shard 0"
        shard.sockets["weights"].send_multipart([m.TOPIC_BYE, LEFT])
        eventually(lambda: name in caplog.text, "the first message in the log")
        shard.sockets["weights"].send_multipart([m.TOPIC_BYE, LEFT])
        eventually(lambda: bool(connection._ignored._counts), "the second message")
        assert caplog.text.count(name) == 1
    assert caplog.text.count(name) == 2


@pytest.mark.processes
def test_a_supervisor_names_misplaced_kinds(shard: BareShard) -> None:
    told: list[str] = []
    others: list[m.Message] = []
    control = ShardControl(
        "r",
        LAYOUT.hash,
        "secret",
        [shard.endpoints["control"]],
        other=lambda _, message: others.append(message),
        warn=told.append,
    )
    try:
        eventually(lambda: control.send(0, control.hello()), "the connection")
        peer = shard.sockets["control"].recv_multipart()[0]
        shard.sockets["control"].send_multipart([peer, BYE])
        eventually(lambda: not list(control.arrivals(0.05)) and bool(told), "the name")
    finally:
        control.close()
    assert told == ["ignored messages: 1 x BYE on DEALER of a supervisor from shard 0"]
    assert others == []


@pytest.mark.processes
def test_a_supervisor_names_the_last_ignored_messages_even_if_no_message_follows(
    shard: BareShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    control = ShardControl("r", LAYOUT.hash, "secret", [shard.endpoints["control"]], warn=told.append)
    bye = "ignored messages: 1 x BYE on DEALER of a supervisor from shard 0"
    try:
        eventually(lambda: control.send(0, control.hello()), "the connection")
        peer = shard.sockets["control"].recv_multipart()[0]
        monkeypatch.setattr(framing, "TELL_EVERY_S", float("inf"))
        shard.sockets["control"].send_multipart([peer, BYE])
        eventually(lambda: not list(control.arrivals(0.05)) and told == [bye], "the name")
        shard.sockets["control"].send_multipart([peer, BYE])
        eventually(lambda: not list(control.arrivals(0.05)) and bool(control._ignored._counts), "the second message")
        assert told == [bye]
        monkeypatch.setattr(framing, "TELL_EVERY_S", 0.0)
        assert list(control.arrivals(0.0)) == []
        assert told == [bye, bye]
        control._ignored.add("another")
        monkeypatch.setattr(framing, "TELL_EVERY_S", float("inf"))
    finally:
        control.close()
    assert told == [bye, bye, "ignored messages: 1 x another"]


def test_a_supervisor_shows_each_refusal_once() -> None:
    notices: list[str] = []
    supervisor: Any = object.__new__(Supervisor)
    supervisor.refused, supervisor.console = set(), SimpleNamespace(notice=notices.append)
    for _ in range(2):
        supervisor._arrived(0, m.Refuse(run="r", code="secret", reason="this is not the secret."))
        supervisor._arrived(1, m.Refused(run="r", shard=1, reason="worker 3 runs zmqrl 7."))
    assert notices == ["shard 0 refuses the supervisor: this is not the secret.", "refused: worker 3 runs zmqrl 7."]
    for number in range(2 * MOST_REFUSED):
        supervisor._arrived(1, m.Refused(run="r", shard=1, reason=f"reason {number}"))
    assert len(notices) == MOST_REFUSED
