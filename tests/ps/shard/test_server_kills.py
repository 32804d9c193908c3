"""A shard that is killed between two steps of an update or a load loses nothing that it has published.

The kills are exceptions in the shard's own code, so these tests need no processes. ``tests/supervisor/
test_killed_at_calls.py`` kills processes of complete runs at their system calls.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.messages import gradient_header

from zmqrl.ps.layout import Layout
from zmqrl.ps.shard import events as e
from zmqrl.ps.shard.gradients import ReceivedSlice
from zmqrl.ps.shard.history import History, last_version, read_lines
from zmqrl.ps.shard.job import ShardJob
from zmqrl.ps.shard.optimizer import OptimizerConfig
from zmqrl.ps.shard.server import ShardServer
from zmqrl.ps.shard.store import SlotStore
from zmqrl.ps.wire import messages as m

COUNT = 16
LAYOUT = Layout.of([("w", (COUNT,))], 1)
STEPS = {"commit": (SlotStore, "commit"), "append": (History, "append"), "rewind": (History, "rewind")}


class Killed(BaseException):
    """Stands in for SIGKILL: no code of the shard handles it."""


@contextlib.contextmanager
def shard(place: Path) -> Iterator[ShardServer]:
    """A shard that continues from the files in ``place``. Nothing closes its files properly if it is killed."""
    job = ShardJob(
        run="run",
        layout=LAYOUT,
        shard=0,
        codec="f32",
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.9),
        bind={},
        secret="secret",
        state_path=place / "shard-0.slots",
        history_path=place / "shard-0.jsonl",
    )
    server = ShardServer(job, logging.getLogger("test"))
    try:
        server._recover()
        yield server
    finally:
        for monitor in server.monitors:
            monitor.close()
        server.context.destroy(linger=0)


def load(server: ShardServer, *, generation: int, version: int, state: bytes = bytes(8 * COUNT)) -> None:
    """Load weights and momentum."""
    server.loading = bytearray(state)
    server._load(
        m.Load(run="run", generation=generation, version=version, view=1, quorum=1, members=(0,), offset=0, total=0)
    )


def state_of(server: ShardServer) -> bytes:
    assert server.store.newest is not None
    return b"".join(array.tobytes() for array in server._arrays(server.store.newest))


def update(server: ShardServer) -> None:
    """Make a version of one contribution."""
    machine = server.machine
    numbers = np.full(COUNT, machine.version + 1, np.float32)
    header = gradient_header(
        layout=LAYOUT.hash, generation=machine.generation, view=machine.view.id, version=machine.version
    )
    machine.roster.hello(b"peer", hello(), machine._welcome(), 0.0)
    server._handle(
        e.GradientArrived(header, ReceivedSlice("f32", memoryview(numbers.tobytes())), 4 * COUNT, lambda: True)
    )


def hello() -> m.Hello:
    return m.Hello(run="run", layout=LAYOUT.hash, role="worker", rank=0, incarnation=1, host="h", pid=1, secret="")


def kill_at(patch: pytest.MonkeyPatch, step: str, *, done: bool) -> None:
    """Kill the shard before ``step``, or after it if ``done``."""
    owner, name = STEPS[step]
    real = getattr(owner, name)

    def killed(*given: Any, **options: Any) -> Any:
        if done:
            real(*given, **options)
        raise Killed

    patch.setattr(owner, name, killed)


def agree(server: ShardServer, place: Path) -> None:
    """Assert that the shard can make versions, and that its history ends at its newest version."""
    assert server.machine.state == "open"
    lines = list(read_lines(place / "shard-0.jsonl"))
    assert [line["version"] for line in lines] == list(range(1, server.machine.version + 1))
    assert server.store.newest is not None
    assert not lines or lines[-1]["crc32"] == server.store.newest.crc32


@pytest.mark.parametrize(
    ("step", "done", "version"), [("commit", False, 3), ("commit", True, 4), ("append", False, 4), ("append", True, 4)]
)
def test_a_shard_killed_in_an_update_has_the_version_before_or_after(
    tmp_path: Path, step: str, done: bool, version: int
) -> None:
    published: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardServer, "_publish_weights", lambda server: published.append(server.machine.version))
        with contextlib.suppress(Killed), shard(tmp_path) as server:
            load(server, generation=1, version=0)
            for _ in range(3):
                update(server)
            kill_at(patch, step, done=done)
            update(server)
    assert published == [1, 2, 3]
    with shard(tmp_path) as server:
        assert (server.machine.generation, server.machine.version) == (1, version)
        agree(server, tmp_path)
        update(server)
        agree(server, tmp_path)


@pytest.mark.parametrize(
    ("step", "done", "at"),
    [("commit", False, (1, 3)), ("commit", True, (2, 1)), ("rewind", False, (2, 1)), ("rewind", True, (2, 1))],
)
def test_a_shard_killed_in_a_load_has_the_old_or_the_new_state(
    tmp_path: Path, step: str, done: bool, at: tuple[int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed), shard(tmp_path) as server:
        load(server, generation=1, version=0)
        update(server)
        checkpoint = state_of(server)
        for _ in range(2):
            update(server)
        kill_at(patch, step, done=done)
        load(server, generation=2, version=1, state=checkpoint)
    with shard(tmp_path) as server:
        assert (server.machine.generation, server.machine.version) == at
        agree(server, tmp_path)
        update(server)
        agree(server, tmp_path)


def test_a_version_is_stored_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shard(tmp_path) as server:
        load(server, generation=1, version=0)
        kept: list[tuple[int, int, int]] = []

        def publish(server: ShardServer) -> None:
            newest = server.store.newest
            assert newest is not None
            kept.append((server.machine.version, newest.version, last_version(tmp_path / "shard-0.jsonl")))

        monkeypatch.setattr(ShardServer, "_publish_weights", publish)
        for _ in range(2):
            update(server)
    assert kept == [(1, 1, 1), (2, 2, 2)]


def test_a_shard_continues_from_the_loaded_version(tmp_path: Path) -> None:
    with shard(tmp_path) as server:
        load(server, generation=1, version=0)
        update(server)
        checkpoint = state_of(server)
        update(server)
        load(server, generation=2, version=1, state=checkpoint)
        for version in (1, 2):
            assert (server.machine.generation, server.machine.version) == (2, version)
            agree(server, tmp_path)
            update(server)
