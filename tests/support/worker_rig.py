"""A worker's state machine in several initial states, with short functions for its events."""

from typing import Any, TypeVar

from support.stand_ins import frame

from zmqrl.ps.wire import messages as m
from zmqrl.ps.worker.events import (
    Action,
    Assembled,
    Contributed,
    ControlArrived,
    PublicationArrived,
    Pulling,
    SendControl,
    SendGradient,
    Tick,
)
from zmqrl.ps.worker.machine import WorkerMachine, WorkerTiming

T = TypeVar("T")

RANK = 3
ABOUT: dict[str, Any] = {"run": "run", "incarnation": 5, "generation": 1, "view": 1}
RECORD: dict[str, Any] = {"quorum": 2, "members": (1, 2, RANK), "ranks": (), "codec": "f32", "crc32": 0}


def of(kind: type[T], actions: list[Action]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def sent(kind: type[T], actions: list[Action]) -> list[tuple[int, T]]:
    """The sent control messages of one kind, each with its shard."""
    return [(a.shard, a.message) for a in of(SendControl, actions) if isinstance(a.message, kind)]


def snapshots(actions: list[Action]) -> list[tuple[int, int | None]]:
    return [(shard, request.version) for shard, request in sent(m.SnapshotRequest, actions)]


def pushed(actions: list[Action]) -> list[tuple[int, int, int]]:
    """Shard, version and attempt of each slice sent."""
    return [(action.shard, action.header.version, action.header.attempt) for action in of(SendGradient, actions)]


def weights(
    worker: WorkerMachine, shard: int, version: int, ranks: tuple[int, ...] = (), now: float = 0.0, **fields: Any
) -> list[Action]:
    message = m.Weights(shard=shard, version=version, **ABOUT | RECORD | {"ranks": ranks} | fields)
    return worker.handle(PublicationArrived(shard, message, frame(f"slice {shard} of {version}")), now)


def snapshot(worker: WorkerMachine, shard: int, version: int, now: float = 0.0, **fields: Any) -> list[Action]:
    message = m.Snapshot(shard=shard, version=version, **ABOUT | RECORD | fields)
    return worker.handle(ControlArrived(shard, message, frame(f"slice {shard} of {version}")), now)


def heartbeat(worker: WorkerMachine, shard: int, version: int, now: float = 0.0, **fields: Any) -> list[Action]:
    message = m.Heartbeat(shard=shard, version=version, **ABOUT | {"held": (), "published": True} | fields)
    return worker.handle(PublicationArrived(shard, message), now)


def need(worker: WorkerMachine, shard: int, version: int, held: tuple[int, ...] = (), now: float = 0.0) -> list[Action]:
    return worker.handle(PublicationArrived(shard, m.Need(shard=shard, version=version, held=held, **ABOUT)), now)


def bye(worker: WorkerMachine, shard: int, version: int, **fields: Any) -> list[Action]:
    about = {key: value for key, value in ABOUT.items() if key != "view"} | fields
    return worker.handle(PublicationArrived(shard, m.Bye(shard=shard, version=version, **about)), 0.0)


def welcome(worker: WorkerMachine, shard: int, version: int = 0, now: float = 0.0, **fields: Any) -> list[Action]:
    about = ABOUT | {"quorum": 2, "members": (1, 2, RANK), "codec": "f32", "state": "open", "published": False} | fields
    return worker.handle(ControlArrived(shard, m.Welcome(shard=shard, version=version, **about)), now)


def pull(worker: WorkerMachine, above: int, generation: int = 1, now: float = 0.0) -> list[Action]:
    return worker.handle(Pulling(above, generation), now)


def contribute(worker: WorkerMachine, *versions: int, elapsed: int = 0) -> list[Action]:
    """Contribute a gradient of ``versions``, one for each shard. A single version applies to all shards."""
    each = versions if len(versions) > 1 else versions * len(worker.shards)
    return worker.handle(Contributed(1, each, elapsed), 0.0)


def new(shards: int = 2, *, asynchronous: bool = False) -> WorkerMachine:
    return WorkerMachine(
        run="run",
        layout="layout",
        shards=shards,
        rank=RANK,
        incarnation=9,
        codec="f32",
        host="h",
        pid=1,
        now=0.0,
        timing=WorkerTiming(),
        asynchronous=asynchronous,
    )


def welcomed(shards: int = 2, *, asynchronous: bool = False) -> WorkerMachine:
    """A worker that every shard has welcomed at version 0."""
    worker = new(shards, asynchronous=asynchronous)
    worker.handle(Tick(), 0.0)
    for shard in range(shards):
        welcome(worker, shard)
    return worker


def computing(version: int = 0, shards: int = 2) -> WorkerMachine:
    """A worker that has the weights of ``version`` and computes a gradient on them."""
    worker = welcomed(shards)
    pull(worker, version - 1)
    actions = [action for shard in range(shards) for action in weights(worker, shard, version)]
    assert [weights.version for weights in of(Assembled, actions)] == [version]
    return worker


def contributed(version: int = 0, shards: int = 2) -> WorkerMachine:
    """A worker that has pushed a gradient of ``version`` to every shard."""
    worker = computing(version, shards)
    contribute(worker, version)
    return worker


def need_message(**fields: Any) -> m.Need:
    about: dict[str, Any] = {"shard": 0, "version": 0, "held": ()}
    return m.Need(**about | ABOUT | fields)
