"""A worker's gradients stay unchanged while anything can read them, and their memory is used again after that."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zmqrl.ps.cluster_file import Cluster
from zmqrl.ps.layout import Layout
from zmqrl.ps.wire import messages as m
from zmqrl.ps.wire.codec import CODECS, FloatVector
from zmqrl.ps.wire.memory import SLOTS, SharedMemory
from zmqrl.ps.worker import events as e
from zmqrl.ps.worker.gradients import MOST_KEPT, Gradients, Outgoing

COUNT, RANK = 1000, 3
LAYOUT = Layout.of([("w", (COUNT,))], 1)
CLUSTER = Cluster(run="r", layout=LAYOUT, codec="f32", endpoints=(), shares_memory=True)
CONTRIBUTED = e.Contributed(1, (0,))


def gradients(codec: m.Codec = "f32") -> Gradients:
    return Gradients(replace(CLUSTER, codec=codec), RANK, logging.getLogger("test"))


def push(mine: Gradients, gradient: FloatVector, codec: m.Codec = "f32") -> Outgoing:
    return mine.outgoing(CONTRIBUTED, gradient, CODECS[codec].encode(gradient))


def test_a_gradient_in_the_buffer_is_not_copied() -> None:
    mine = gradients()
    assert mine.memory is not None
    buffer = mine.buffer()
    buffer[:] = 7
    assert not mine.memory.holds(1), "not complete yet"
    outgoing = push(mine, buffer)
    assert (outgoing.is_shared, outgoing.number) == (True, 1)
    assert mine.memory.holds(1)
    assert mine.memory.slot(1).ctypes.data == buffer.ctypes.data


def test_another_gradient_does_not_overwrite_the_buffer() -> None:
    mine = gradients()
    buffer = mine.buffer()
    buffer[:] = 7
    outgoing = push(mine, np.ones(COUNT, np.float32))
    assert not outgoing.is_shared
    assert (buffer == 7).all()
    assert mine.buffer() is buffer


def test_a_gradient_that_is_pushed_twice_is_not_given_out_as_a_buffer() -> None:
    mine = gradients()
    buffer = mine.buffer()
    first = push(mine, buffer)
    for _ in range(SLOTS):
        push(mine, buffer)
    assert not np.may_share_memory(mine.buffer(), first.payload)


@pytest.mark.parametrize("codec", ["f32", "bf16"])
def test_without_memory_every_gradient_travels_in_messages(
    codec: m.Codec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(payload_bytes: int) -> SharedMemory:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(SharedMemory, "create", refuse)
    mine = gradients(codec)
    assert caplog.messages == ["no memory to share (Cannot allocate memory): payloads travel in messages"]
    outgoing = push(mine, mine.buffer(), codec)
    assert (mine.memory, outgoing.is_shared, outgoing.number) == (None, False, 0)
    mine.close()


class Use(RuleBasedStateMachine):
    """Gradients are pushed, closed, handled and lost in any order, by shards that can restart.

    ``pushed`` has all contributions, with the number that their vectors must have while they can be read.
    """

    codec: m.Codec = "f32"

    def __init__(self) -> None:
        super().__init__()
        self.mine = gradients(self.codec)
        self.shards = [SharedMemory.create(100) for _ in range(2)]
        self.pushed: list[tuple[Outgoing, float, list[SharedMemory]]] = []
        self.pushes = 0

    def _push(self, gradient: Callable[[], FloatVector], readers: list[int]) -> None:
        self.pushes += 1
        vector = gradient()
        vector[:] = self.pushes
        outgoing = push(self.mine, vector, self.codec)
        if outgoing.is_shared:
            outgoing.readers += [self.shards[each] for each in readers]
        self.pushed.append((outgoing, self.pushes, list(outgoing.readers)))

    @rule(readers=st.sampled_from([[], [0], [1], [0, 1]]))
    def push_the_buffer(self, readers: list[int]) -> None:
        self._push(self.mine.buffer, readers)

    @rule(readers=st.sampled_from([[], [0], [0, 1]]))
    def push_another_vector(self, readers: list[int]) -> None:
        self._push(lambda: np.empty(COUNT, np.float32), readers)

    @rule()
    def look_at_the_buffer(self) -> None:
        self.mine.buffer()[:] = -1

    @precondition(lambda self: self.pushed)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.pushed))[0].released = True

    @precondition(lambda self: self.pushed)
    @rule(data=st.data(), shard=st.sampled_from([0, 1]))
    def handle(self, data: st.DataObject, shard: int) -> None:
        """A shard handles a contribution, and any earlier one was handled or lost."""
        number = data.draw(st.sampled_from(self.pushed))[0].number
        if number > self.shards[shard].handled[RANK]:
            self.shards[shard].handled[RANK] = number

    @rule(shard=st.sampled_from([0, 1]))
    def restart(self, shard: int) -> None:
        self.shards[shard].is_gone = True
        self.shards[shard] = SharedMemory.create(100)

    @invariant()
    def what_can_be_read_is_unchanged(self) -> None:
        for outgoing, value, readers in self.pushed:
            waits = [each for each in readers if not each.is_gone and each.handled[RANK] < outgoing.number]
            if waits or not outgoing.released:
                assert (CODECS[self.codec].as_float32(outgoing.payload) == value).all()
                memory = self.mine.memory
                assert memory is not None
                assert not outgoing.is_shared or memory.holds(outgoing.number)

    def teardown(self) -> None:
        for memory in [*self.shards, self.mine.memory]:
            assert memory is not None
            memory.close()


class UseOfBfloat16(Use):
    codec: m.Codec = "bf16"  # exact up to 256


TestUse = Use.TestCase
TestUseOfBfloat16 = UseOfBfloat16.TestCase


@pytest.mark.parametrize("codec", ["f32", "bf16"])
def test_a_few_vectors_are_enough(codec: m.Codec) -> None:
    mine, shard, addresses = gradients(codec), SharedMemory.create(100), set[int]()
    for _ in range(20):
        buffer = mine.buffer()
        addresses.add(buffer.ctypes.data)
        outgoing = push(mine, buffer, codec)
        assert outgoing.is_shared
        outgoing.readers.append(shard)
        shard.handled[RANK] = outgoing.number
        outgoing.released = True
    assert len(addresses) <= MOST_KEPT


def with_every_slot_sent() -> tuple[Gradients, SharedMemory]:
    """Gradients whose memory is full, and the memory of a shard that has handled none of them."""
    mine, shard = gradients(), SharedMemory.create(100)
    for _ in range(SLOTS):
        outgoing = push(mine, mine.buffer())
        outgoing.readers.append(shard)
        outgoing.released = True
    return mine, shard


def test_a_gradient_in_the_buffer_is_in_the_memory_whatever_has_happened_since() -> None:
    mine, shard = with_every_slot_sent()
    shard.handled[RANK] = 1
    buffer = mine.buffer()
    shard.handled[RANK] = 0  # a shard never does this, but a worker must not depend on it
    assert push(mine, buffer).is_shared


def test_a_slot_is_free_again_after_a_lost_gradient() -> None:
    mine, shard = with_every_slot_sent()
    in_message = push(mine, mine.buffer())
    assert (in_message.is_shared, in_message.number) == (False, SLOTS)
    shard.handled[RANK] = in_message.number  # none of the others has arrived
    assert push(mine, mine.buffer()).is_shared
