"""A shard's state machine at version 0, with short functions for its events."""

import logging
from dataclasses import replace
from typing import Any, TypeVar

import zmq
from support.messages import gradient_header
from support.stand_ins import received

from zmqrl.ps.shard.events import (
    Action,
    Event,
    GradientArrived,
    Identity,
    PresenceChanged,
    Publish,
    PublishWeights,
    Record,
    Send,
    StateRestored,
    Tick,
    Update,
    Updated,
    View,
)
from zmqrl.ps.shard.machine import ShardMachine, ShardTiming
from zmqrl.ps.shard.reception import Reception
from zmqrl.ps.wire import framing
from zmqrl.ps.wire import messages as m

T = TypeVar("T")

RECEPTION = Reception(None, logging.getLogger("test"))
SUPERVISOR = b"supervisor"
IDENTITY = Identity(
    run="run",
    layout="layout",
    shard=1,
    incarnation=7,
    codec="f32",
    payload_bytes={"f32": 64, "bf16": 32},
    secret="secret",
)
HELLO = m.Hello(run="run", layout="layout", role="worker", rank=0, incarnation=10, host="h", pid=1, secret="")
GRADIENT = gradient_header(shard=1, incarnation=10)
RECORD = Record.handed_over(1, 0, View(1, 2, (0, 1, 2)))


def of(kind: type[T], actions: list[Action]) -> list[T]:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: list[Action]) -> list[m.Message]:
    return [action.message for action in of(Send, actions)]


def to(kind: type[T], actions: list[Action]) -> list[tuple[bytes, T]]:
    """The sent messages of one kind, each with its receiver."""
    return [(action.peer, action.message) for action in of(Send, actions) if isinstance(action.message, kind)]


def published(actions: list[Action]) -> list[str]:
    """The publications that subscribers receive, in order."""
    heard = [action for action in actions if isinstance(action, Publish | PublishWeights)]
    return ["weights" if isinstance(a, PublishWeights) else type(a.message).__name__.lower() for a in heard]


def handle(shard: ShardMachine, event: Event, now: float = 0.0, *, finite: bool = True) -> list[Action]:
    """Handle an event. Carries out each Update. ``finite``: whether the result of an Update is finite. Returns all
    actions. Asserts that the receivers of messages can decode them.
    """
    actions = []
    for action in shard.handle(event, now):
        actions.append(action)
        if isinstance(action, Send | Publish):
            assert framing.decode(framing.encode(action.message)) == action.message
        if isinstance(action, Update):
            actions += handle(shard, Updated(action.record, finite), now)
    return actions


def control(shard: ShardMachine, message: m.Message, peer: bytes = SUPERVISOR, now: float = 0.0) -> list[Action]:
    """Handle a message of any kind on ROUTER, in the form in which it arrives there."""
    frames = [peer, framing.encode(message), *([b"state"] if type(message) in m.WITH_PAYLOAD else [])]
    return handle(shard, RECEPTION.control([zmq.Frame(part) for part in frames]), now)


def arrive(shard: ShardMachine, worker: int, now: float = 0.0, incarnation: int = 10) -> list[Action]:
    """Let a worker subscribe and say HELLO."""
    here = handle(shard, PresenceChanged(worker, incarnation, here=True), now)
    return here + control(shard, replace(HELLO, rank=worker, incarnation=incarnation), b"%d" % worker, now)


def push(
    machine: ShardMachine, worker: int, now: float = 0.0, *, finite: bool = True, size: int = 64, **fields: Any
) -> Any:
    """Deliver a contribution to the open version, with changed ``fields`` if given."""
    header = replace(
        GRADIENT, rank=worker, generation=machine.generation, version=machine.version, view=machine.view.id
    )
    event = GradientArrived(replace(header, **fields), received(f"payload {worker}"), size, lambda: finite)
    return handle(machine, event, now)


def make_version(shard: ShardMachine, *workers: int, now: float = 0.0) -> list[Action]:
    return [action for worker in workers for action in push(shard, worker, now)]


def opened(
    *,
    consistent: bool = False,
    asynchronous: bool = False,
    workers: tuple[int, ...] = (0, 1, 2),
    identity: Identity = IDENTITY,
    **record: Any,
) -> ShardMachine:
    """A shard at version 0 with members 0 to 2, a quorum of two, and all workers present."""
    shard = ShardMachine(identity, ShardTiming(), consistent=consistent, asynchronous=asynchronous)
    control(shard, replace(HELLO, role="supervisor", secret="secret"))
    shard.handle(StateRestored(replace(RECORD, **record), recovered=False), 0.0)
    for worker in workers:
        arrive(shard, worker)
    return shard


def tallies(shard: ShardMachine) -> dict[int, list[int]]:
    """By rank: the numbers of used, late, duplicate and rejected contributions."""
    return {rank: list(tally) for rank, tally in shard.contributions.tallies.items()}


def stop_at(version: int | None) -> m.Stop:
    return m.Stop(run="run", version=version)


def ticks(shard: ShardMachine, until_s: float, step_s: float = 0.05) -> list[tuple[float, str]]:
    """What the shard publishes, and when, if no message arrives."""
    heard = []
    for i in range(1, round(until_s / step_s) + 1):
        heard += [(round(i * step_s, 3), what) for what in published(shard.handle(Tick(), i * step_s))]
    return heard
