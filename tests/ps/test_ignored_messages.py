"""A process names the messages that it ignores because of their kind, instead of dropping them silently."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from support.rig import eventually

from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.control import ShardControl
from zmqrl.ps.layout import Layout
from zmqrl.ps.shard.events import MalformedArrived
from zmqrl.ps.shard.reception import Reception
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.sockets import SocketRole, new_context, shard_sockets
from zmqrl.ps.worker.connection import Connection
from zmqrl.supervisor.supervisor import MOST_REFUSED, Supervisor

LAYOUT = Layout.of([("w", (16,))], 1)
BYE = framing.encode(m.Bye(run="r", shard=0, incarnation=2, generation=3, version=4))
LEFT = framing.encode(m.Left(run="r", shard=0))
LOAD = framing.encode(
    m.Load(run="r", generation=2, version=0, view=1, quorum=1, members=(0,), offset=0, total=1),
)


class BareShard:
    """The sockets of a shard without its program."""

    def __init__(self, path: Path) -> None:
        self.context = new_context()
        self.sockets = shard_sockets(self.context, 64)
        self.endpoints: dict[SocketRole, str] = {role: f"ipc://{path}/{role}" for role in self.sockets}
        for role, socket in self.sockets.items():
            socket.bind(self.endpoints[role])


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[BareShard]:
    made = BareShard(tmp_path)
    yield made
    made.context.destroy(linger=0)


def frames(*parts: bytes) -> list[zmq.Frame]:
    return [zmq.Frame(part) for part in parts]


def test_a_shard_counts_and_names_misplaced_kinds() -> None:
    reception = Reception(None, logging.getLogger("test"))
    events = [
        reception.control(frames(b"peer", BYE)),
        reception.control(frames(b"peer", LOAD)),
        reception.control(frames(b"peer", LEFT, b"payload")),
        reception.control(frames(b"peer")),
        reception.gradient(frames(BYE, b"payload")),
        reception.gradient(frames(LEFT)),
        reception.gradient(frames(b"garbage", b"payload")),
    ]
    assert events == [MalformedArrived()] * 7
    assert reception.ignored.take(0.0) == (
        "ignored messages: 1 x BYE on PULL of a shard, 1 x BYE on ROUTER of a shard, "
        "1 x LEFT on PULL of a shard, 1 x LEFT on ROUTER of a shard, "
        "1 x LOAD with 0 frames after the header, 1 x a message of 0 frames on ROUTER"
    )


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
